"""What a DeepSeek's `config.json` may say, and what is refused by name."""

import json
import math

import numpy as np
import pytest
from places import GOLDEN
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tddpo_jax.models.families import read_config
from tddpo_jax.models.flops import matmul_parameters
from tddpo_jax.models.rope import yarn_frequencies
from tddpo_jax.models.tensor_table import parameter_count
from tddpo_jax.weights.hugging_face import read_config as read_folder
from tddpo_jax.weights.locate import model_folder

FOLDER = GOLDEN / "deepseek-v3" / "model"
GIVEN = json.loads((FOLDER / "config.json").read_text())
YARN, PACKING = GIVEN["rope_scaling"], GIVEN["quantization_config"]


def changed(**changes):
    return read_config({**GIVEN, **changes}, "config.json")


def test_a_file_of_transformers_5_says_the_same():
    """It has one object for rope, and numbers that follow from others."""
    rewritten = AutoConfig.from_pretrained(FOLDER).to_dict()
    assert read_config(rewritten, "config.json") == read_folder(FOLDER)


def test_scores_are_those_of_the_full_size():
    """The scale of DeepSeek V3's scores, of heads of 192 features, with two magnitudes of 1."""
    config = changed(qk_nope_head_dim=128, qk_rope_head_dim=64)
    wanted = 192**-0.5 * (0.1 * math.log(40) + 1) ** 2
    assert config.attention_shape.scale == pytest.approx(wanted)
    assert config.attention_shape.scale == pytest.approx(0.1352337788608801)
    assert config.rope_factor == 1


@pytest.mark.parametrize(
    "magnitudes",
    [{"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.7, "mscale_all_dim": 1.3}, {}],
)
@pytest.mark.parametrize("context", [16, 4096])
def test_yarn_is_that_of_transformers(context, magnitudes):
    """The frequencies of 64 features, and the factor of what is rotated."""
    plain = {name: value for name, value in YARN.items() if not name.startswith("mscale")}
    rope = {**plain, **magnitudes, "original_max_position_embeddings": context}
    attributes = {**GIVEN, "rope_scaling": rope, "qk_rope_head_dim": 64}
    config = read_config(attributes, "config.json")
    wanted, factor = ROPE_INIT_FUNCTIONS["yarn"](AutoConfig.for_model(**attributes))
    found = yarn_frequencies(64, config.rope_theta, config.yarn)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert config.rope_factor == pytest.approx(factor)


@pytest.mark.parametrize(
    ("name", "parameters", "active"),
    [
        ("V3", 671_026_419_200, 36_624_596_992),
        ("V3.1", 671_026_419_200, 36_624_596_992),
        ("V3.2-Exp", 671_877_944_064, 37_476_106_240),
    ],
)
def test_the_published_sizes(name, parameters, active):
    """Parameters by transformers, with the corrections of the routers' choice and without the layer
    that predicts further tokens. A token uses the weights of all products, head included, but of
    the experts only those that it chooses."""
    config = read_folder(model_folder(f"deepseek-ai/DeepSeek-{name}"))
    assert parameter_count(config.parameters) == parameters
    assert matmul_parameters(config) + config.vocabulary * config.width == active


def test_layers_have_one_type():
    """V3 has no indexer, so all its layers see all keys."""
    layers = GIVEN["num_hidden_layers"]
    assert changed(layer_types=["full_attention"] * layers) == changed()
    with pytest.raises(ValueError, match=r"layer_types = .* the others require .*'full_attention'"):
        changed(layer_types=["indexed_attention"] * layers)


def test_layers_that_predict_further_tokens_are_dropped():
    """The one behind the last layer is dropped even if the file counts none."""
    for count, wanted in ((0, (4,)), (1, (4,)), (2, (4, 5))):
        config = changed(num_nextn_predict_layers=count)
        assert config.dropped == tuple(f"model.layers.{number}." for number in wanted)


REFUSED = {
    "scores": ({"scoring_func": "softmax"}, "scoring_func = 'softmax' is not supported"),
    "choice": ({"topk_method": "greedy"}, "topk_method = 'greedy' is not supported"),
    "some layers": ({"moe_layer_freq": 2}, "moe_layer_freq = 2 is not supported"),
    "weights": ({"norm_topk_prob": False}, "norm_topk_prob = False is not supported"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "biases": ({"attention_bias": True}, "attention_bias = True"),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
    "rope of halves": ({"rope_interleave": False}, "rope_interleave = False"),
    "no shared experts": ({"n_shared_experts": 0}, "n_shared_experts must be a whole number"),
    "no latent of queries": ({"q_lora_rank": None}, "q_lora_rank is missing"),
    "grouped heads": ({"num_key_value_heads": 2}, "num_key_value_heads = 2 is not supported"),
    "another head": ({"head_dim": 32}, "head_dim = 32 is not supported; the others require 16"),
    "odd rope": ({"qk_rope_head_dim": 15}, r"qk_rope_head_dim \(15\) must be even"),
    "no number of dense layers": (
        {"first_k_dense_replace": None},
        "first_k_dense_replace must be a whole number from 0",
    ),
    "uneven groups": ({"n_group": 3}, r"n_routed_experts \(8\) must be a multiple of n_group"),
    "groups of one": ({"n_group": 8}, "every group must have two experts"),
    "more groups than there are": ({"topk_group": 5}, "topk_group must be .* 1 to 4, got 5"),
    "more experts than are kept": (
        {"num_experts_per_tok": 5},
        "num_experts_per_tok must be a whole number from 1 to 4, got 5",
    ),
    "another packing": (
        {"quantization_config": {**PACKING, "quant_method": "gptq"}},
        "quantization_config with quant_method = 'gptq' is not supported, only 'fp8'",
    ),
    "another format": ({"quantization_config": {**PACKING, "fmt": "e5m2"}}, "fmt = 'e5m2'"),
    "other blocks": (
        {"quantization_config": {**PACKING, "weight_block_size": [64, 128]}},
        r"weight_block_size = \[64, 128\] is not supported, only \[128, 128\]",
    ),
    "packing that is no object": ({"quantization_config": "fp8"}, "'fp8' is not an object"),
    "another rope": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type 'linear'"),
    "yarn with more": ({"rope_scaling": {**YARN, "extra": 1}}, "type 'yarn' with .*extra"),
    "magnitude of -1": ({"rope_scaling": {**YARN, "mscale": -1}}, "mscale must be a positive"),
    "bounds that meet": ({"rope_scaling": {**YARN, "beta_slow": 32}}, "beta_slow must be less"),
    "no base": ({"rope_theta": None}, "rope_theta is missing"),
    "unknown": ({"surprise": 1}, "surprise is not understood"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^config.json: .*{message}"):
        changed(**changes)
