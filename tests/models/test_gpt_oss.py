"""What a gpt-oss's `config.json` may say, and what is refused by name."""

import json

import numpy as np
import pytest
from places import GOLDEN
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tddpo_jax.models.families import read_config
from tddpo_jax.models.rope import yarn_frequencies
from tddpo_jax.weights.hugging_face import read_config as read_folder

FOLDER = GOLDEN / "gpt-oss" / "model"
GIVEN = json.loads((FOLDER / "config.json").read_text())
YARN = GIVEN["rope_scaling"]


def test_a_file_of_transformers_5_says_the_same():
    """It has one object for rope."""
    rewritten = AutoConfig.from_pretrained(FOLDER).to_dict()
    assert read_config(rewritten, "config.json") == read_folder(FOLDER)


@pytest.mark.parametrize("factor", [0.5, 1.0, 32.0])
def test_yarn_is_that_of_transformers(factor):
    """Frequencies and the factor of attention, which is 1 without stretching."""
    changed = {**GIVEN, "rope_scaling": {**YARN, "factor": factor}}
    config = read_config(changed, "config.json")
    wanted, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](AutoConfig.for_model(**changed))
    found = yarn_frequencies(config.head_size, config.rope_theta, config.yarn)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert config.rope_factor == pytest.approx(attention_factor)


def test_a_base_inside_goes_before_the_outer_one_unless_it_is_null():
    for inner, wanted in ((5.0, 5.0), (None, 150_000.0)):
        changed = {**GIVEN, "rope_scaling": {**YARN, "rope_theta": inner}}
        assert read_config(changed, "config.json").rope_theta == wanted


def test_a_limit_that_is_missing_is_that_of_transformers():
    without = {name: value for name, value in GIVEN.items() if name != "swiglu_limit"}
    assert read_config(without, "config.json").limit == AutoConfig.for_model("gpt_oss").swiglu_limit


def without_yarn(name):
    return {"rope_scaling": {field: value for field, value in YARN.items() if field != name}}


TURNS = ["full_attention", "sliding_attention"]
REFUSED = {
    "another number of experts": (
        {"experts_per_token": 2},
        "experts_per_token and num_experts_per_tok differ",
    ),
    "more experts than there are": (
        {"num_experts_per_tok": 7, "experts_per_token": 7},
        "num_experts_per_tok must be a whole number from 1 to 6, got 7",
    ),
    "another packing": (
        {"quantization_config": {"quant_method": "gptq"}},
        "quantization_config with 'gptq' is not supported, only mxfp4",
    ),
    "packing that is no object": ({"quantization_config": "mxfp8"}, "with 'mxfp8' is not"),
    "layers in another order": ({"layer_types": TURNS * 2}, "layer_types is not supported"),
    "layers that are all alike": ({"layer_types": TURNS[:1] * 4}, "must take turns"),
    "too few layers": ({"layer_types": TURNS[::-1]}, "layer_types is not supported"),
    "another rope": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "type 'linear'"),
    "yarn with more": ({"rope_scaling": {**YARN, "mscale": 1.0}}, "type 'yarn' with .*mscale"),
    "yarn without a factor": (without_yarn("factor"), "type 'yarn' with"),
    "yarn without rounding": (without_yarn("truncate"), "type 'yarn' with"),
    "rounding that is text": ({"rope_scaling": {**YARN, "truncate": "no"}}, "type 'yarn' with"),
    "factor of 0": ({"rope_scaling": {**YARN, "factor": 0}}, "factor must be a positive number"),
    "no context": (
        {"rope_scaling": {**YARN, "original_max_position_embeddings": None}},
        "original_max_position_embeddings must be a whole number",
    ),
    "bounds that meet": (
        {"rope_scaling": {**YARN, "beta_slow": 32.0}},
        "beta_slow must be less than beta_fast",
    ),
    "rope that is no object": ({"rope_scaling": ["yarn"]}, r"rope_scaling = \['yarn'\] is not an"),
    "no base": ({"rope_theta": None}, "rope_theta is missing"),
    "base of 0": ({"rope_theta": 0}, "rope_theta must be a positive number, got 0"),
    "no biases": ({"attention_bias": False}, "attention_bias = False"),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "another activation": ({"swiglu_alpha": 1.5}, "swiglu_alpha = 1.5 is not supported"),
    "missing": ({"sliding_window": None}, "sliding_window is missing"),
    "too many layers": ({"num_hidden_layers": 10_001}, "a whole number from 1 to 10000, got 10001"),
    "text for a number": ({"head_dim": "20"}, "head_dim must be a whole number"),
    "uneven heads": ({"num_key_value_heads": 4}, "num_attention_heads"),
    "unknown": ({"surprise": 1}, "surprise is not understood"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^config.json: .*{message}"):
        read_config({**GIVEN, **changes}, "config.json")
