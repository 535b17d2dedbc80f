"""What a Llama 4's `config.json` may say, and what is refused by name."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest
import tiny_models
from places import GOLDEN
from safetensors.numpy import save_file
from transformers import AutoConfig

from tddpo_jax.adapters.lora import target_paths
from tddpo_jax.config.schema import LoraConfig
from tddpo_jax.models.families import read_config
from tddpo_jax.models.flops import matmul_parameters
from tddpo_jax.models.tensor_table import parameter_count
from tddpo_jax.weights.hugging_face import export, load
from tddpo_jax.weights.hugging_face import read_config as read_folder
from tddpo_jax.weights.locate import model_folder

SCOUT = json.loads((GOLDEN / "llama4-scout" / "model" / "config.json").read_text())
TEXT = SCOUT["text_config"]


def read(**changes):
    """A text part with these attributes; `...` removes one."""
    changed = {**TEXT, **changes}
    return read_config({n: x for n, x in changed.items() if x is not ...}, "config.json")


@pytest.mark.parametrize("name", ["llama4-scout", "llama4-maverick"])
def test_a_file_of_transformers_5_says_the_same(name):
    """It lists the kind of every layer, and has one object for rope."""
    folder = GOLDEN / name / "model"
    rewritten = AutoConfig.from_pretrained(folder).to_dict()
    assert read_config(rewritten, "config.json") == read_folder(folder)


@pytest.mark.parametrize(
    ("file", "same"),
    [
        ({"no_rope_layers": ...}, {}),
        ({"no_rope_layers": [1, 1, 1, 0, 1]}, {}),
        ({"no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0], "layer_types": None}, {}),
        ({"no_rope_layers": [1, 0, 1, 0, 1]}, {"no_rope_layer_interval": 2}),
        ({"moe_layers": [1, 3]}, {"interleave_moe_layer_step": 2}),
        ({"moe_layers": [0, 1, 2, 3, 4]}, {}),
        ({"attn_temperature_tuning": 4}, {}),
        ({"attention_chunk_size": ...}, {"attention_chunk_size": 8192}),
        ({"attn_scale": ..., "floor_scale": ...}, {"attn_scale": 0.1, "floor_scale": 8192}),
        ({"rope_theta": ...}, {"rope_theta": 500000.0}),
        ({"cache_implementation": "hybrid"}, {}),
    ],
)
def test_what_a_file_leaves_out_is_as_in_transformers(file, same):
    assert read(**file) == read(**same)


def test_the_layers_repeat_what_they_can():
    """Every fourth layer sees everything; with experts in every second one a period is four long,
    in every third one twelve."""

    def periods(layers, **changes):
        config = read(num_hidden_layers=layers, **changes)
        return [(each.repeats, len(each.period)) for each in config.segments]

    assert periods(48) == [(12, 4)]
    assert periods(5) == [(1, 4), (1, 1)]
    assert periods(48, interleave_moe_layer_step=2) == [(12, 4)]
    assert periods(48, interleave_moe_layer_step=3) == [(4, 12)]
    assert periods(3) == [(3, 1)]


REFUSED = {
    "activation": ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "biases": ({"attention_bias": True}, "attention_bias = True"),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
    "packed": (
        {"quantization_config": {"quant_method": "fbgemm_fp8"}},
        "quantization_config is not supported for Llama 4; use the repository .* in bfloat16",
    ),
    "temperature": ({"attn_temperature_tuning": 2}, "attn_temperature_tuning = 2 is neither true"),
    "norms": ({"use_qk_norm": "no"}, "use_qk_norm = 'no' is neither true nor false"),
    "period of 0": ({"floor_scale": 0}, "floor_scale must be a positive number, got 0"),
    "chunk of 0": ({"attention_chunk_size": 0}, "attention_chunk_size must be a whole number"),
    "too short a list": ({"no_rope_layers": [1, 0]}, "no_rope_layers must be a list of 0 or 1"),
    "another list": ({"no_rope_layers": [1, 1, 2, 0, 1]}, "no_rope_layers must be a list"),
    "a layer too many": ({"moe_layers": [5]}, "moe_layers must be a list of numbers from 0 to 4"),
    "no list": ({"moe_layers": "all"}, "moe_layers must be a list"),
    "other layers": ({"layer_types": ["full_attention"] * 5}, "layer_types is not supported"),
    "another rope": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn'"),
    "crossed limits": (
        {"rope_scaling": {**TEXT["rope_scaling"], "low_freq_factor": 2.0}},
        "low_freq_factor must be at most high_freq_factor",
    ),
    "missing": ({"num_local_experts": ...}, "num_local_experts is missing"),
    "more experts than there are": ({"num_experts_per_tok": 5}, "num_experts_per_tok must be"),
    "too many layers": ({"num_hidden_layers": 10_001}, "a whole number from 1 to 10000, got 10001"),
    "uneven heads": ({"num_key_value_heads": 4}, "num_attention_heads"),
    "unknown": ({"surprise": 1}, "surprise is not understood"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^config.json: .*{message}"):
        read(**changes)


def test_the_whole_of_text_and_vision_refuses_too():
    whole = {**SCOUT, "text_config": {**TEXT, "surprise": 1}}
    with pytest.raises(ValueError, match="text_config: surprise is not understood"):
        read_config(whole, "config.json")
    with pytest.raises(ValueError, match="quantization_config is not supported"):
        read_config({**SCOUT, "quantization_config": {}}, "config.json")
    with pytest.raises(ValueError, match=r"config\.json: surprise is not understood"):
        read_config({**SCOUT, "surprise": 1}, "config.json")
    with pytest.raises(ValueError, match="text_config is missing"):
        read_config({"model_type": "llama4"}, "config.json")


def test_adapters_go_to_attention_and_to_feed_forwards_of_all_tokens():
    """Maverick's period has a feed-forward in every layer, and experts beside every second one."""
    config = read_folder(GOLDEN / "llama4-maverick" / "model")
    paths = target_paths(LoraConfig(), config)
    names = [
        *(f"{name}_proj" for name in "qkvo"),
        *(f"feed_forward.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert paths == [f"layers_0_{place}.{name}" for place in range(4) for name in names]
    with pytest.raises(ValueError, match=r"lora\.targets: experts names nothing that can have"):
        target_paths(LoraConfig(targets=("experts",)), config)


def test_a_folder_of_text_alone_has_the_same_weights(tmp_path):
    """transformers' causal language model drops the vision part, and the beginning of names."""
    folder = GOLDEN / "llama4-scout" / "model"
    (tmp_path / "config.json").write_text(json.dumps(TEXT))
    tensors = {
        name.removeprefix("language_model."): tensor
        for name, tensor in tiny_models.tensors_of(folder).items()
        if name.startswith("language_model.")
    }
    save_file(tensors, tmp_path / "model.safetensors")
    text, whole = (tiny_models.load(each) for each in (tmp_path, folder))
    assert (text.config.image_token, whole.config.image_token) == (None, 330)
    pairs = zip(jax.tree.leaves(text), jax.tree.leaves(whole), strict=True)
    assert all(bool(jnp.all(found == wanted)) for found, wanted in pairs)


def test_an_export_has_the_switch_that_transformers_reads(tmp_path):
    folder = shutil.copytree(GOLDEN / "llama4-scout" / "model", tmp_path / "model")
    tiny_models.change_config(folder, text_config={**TEXT, "attn_temperature_tuning": 4})
    export(load(folder, tiny_models.one_device()), folder, tmp_path / "output")
    assert json.loads((tmp_path / "output" / "config.json").read_text()) == SCOUT


@pytest.mark.parametrize(
    ("name", "parameters", "active"),
    [
        ("Llama-4-Scout-17B-16E", 107_769_861_120, 16_137_912_320),
        ("Llama-4-Maverick-17B-128E", 400_711_848_960, 16_149_708_800),
    ],
)
def test_the_published_sizes(name, parameters, active):
    """Parameters of the text part by transformers, and the weights that one token multiplies."""
    for hub_id in (f"meta-llama/{name}", f"meta-llama/{name}-Instruct"):
        config = read_folder(model_folder(hub_id))
        assert parameter_count(config.parameters) == parameters
        assert matmul_parameters(config) + config.vocabulary * config.width == active
