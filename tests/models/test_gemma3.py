"""What a Gemma 3's `config.json` may say, and what is refused by name."""

import copy
import json

import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from transformers import AutoConfig

from tddpo_jax.__main__ import logps_command
from tddpo_jax.batches.layout import Example
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.data.examples import Vocabulary, check_vocabulary
from tddpo_jax.models.families import read_config
from tddpo_jax.models.tensor_table import parameter_count
from tddpo_jax.weights.hugging_face import read_config as read_folder
from tddpo_jax.weights.locate import model_folder

TEXT = json.loads((GOLDEN / "gemma3-text" / "model" / "config.json").read_text())
WHOLE = json.loads((GOLDEN / "gemma3" / "model" / "config.json").read_text())


@pytest.mark.parametrize("name", ["gemma3-text", "gemma3"])
def test_a_file_of_transformers_5_says_the_same(name):
    """It lists the kind of every layer and has one rope for each kind."""
    folder = GOLDEN / name / "model"
    rewritten = AutoConfig.from_pretrained(folder).to_dict()
    assert read_config(rewritten, "config.json") == read_folder(folder)


def test_of_old_and_new_attributes_of_rope_those_count_that_count_in_transformers():
    ropes = {"sliding_attention": {"rope_theta": 5.0}, "full_attention": {"rope_theta": 6.0}}
    scaling = {"rope_type": "linear", "factor": 3.0}
    old = {"rope_theta": 7.0, "rope_local_base_freq": 8.0, "rope_scaling": scaling}
    for rope in (ropes, {**ropes, "full_attention": {}}):
        both = {**TEXT, **old, "rope_parameters": rope}
        theirs = AutoConfig.for_model(**copy.deepcopy(both)).to_dict()
        assert read_config(both, "config.json") == read_config(theirs, "config.json")


REFUSED = {
    "softcaps": ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    "softcap of the head": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    "activation": ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
    "biases": ({"attention_bias": True}, "attention_bias = True"),
    "no causal mask": ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "untied": ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
    "rope": ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope of type 'yarn'"),
    "rope without a factor": ({"rope_scaling": {"type": "linear"}}, "rope of type 'linear'"),
    "factor of 0": ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a positive"),
    "theta of 0": ({"rope_theta": 0}, "rope_theta must be a positive number, got 0"),
    "local theta of 0": ({"rope_local_base_freq": 0}, "rope_local_base_freq must be a positive"),
    "kind of rope": ({"rope_scaling": {"rope_type": ["linear"]}}, "rope of type \\['linear'\\]"),
    "too many layers": ({"num_hidden_layers": 10_001}, "a whole number from 1 to 10000, got 10001"),
    "unknown": ({"surprise": 1}, "surprise is not understood"),
    "text for a number": ({"head_dim": "24"}, "head_dim must be a whole number"),
    "no heads": ({"num_key_value_heads": 0}, "num_key_value_heads must be a whole number"),
    "uneven heads": ({"num_key_value_heads": 5}, "num_attention_heads"),
    "missing": ({"sliding_window": None}, "sliding_window is missing"),
    "other layers": ({"layer_types": ["full_attention"] * 8}, "layer_types"),
    "scaled local rope": (
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "linear", "factor": 2.0},
                "full_attention": {"rope_type": "default"},
            }
        },
        "rope of type 'linear'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read_config({**TEXT, **changes}, "config.json")
    nested = {**WHOLE, "text_config": {**WHOLE["text_config"], **changes}}
    if name != "other layers":
        with pytest.raises(ValueError, match=message):
            read_config(nested, "config.json")


def test_the_whole_of_text_and_vision_refuses_too():
    with pytest.raises(ValueError, match="surprise is not understood"):
        read_config({**WHOLE, "surprise": 1}, "config.json")
    with pytest.raises(ValueError, match="text_config is missing"):
        read_config({"model_type": "gemma3"}, "config.json")


@pytest.mark.parametrize(
    ("size", "parameters", "scale"),
    [
        ("1b", 999_885_952, 34.0),
        ("4b", 3_880_263_168, 50.5),
        ("12b", 11_766_034_176, 62.0),
        ("27b", 27_009_346_304, 73.5),
    ],
)
def test_the_published_sizes(size, parameters, scale):
    """Parameters of the text part by transformers; the embedding's factor in bfloat16."""
    config = read_folder(model_folder(f"google/gemma-3-{size}-it"))
    assert parameter_count(config.parameters) == parameters
    assert float(jnp.asarray(config.embedding_scale, jnp.bfloat16)) == scale


def test_a_row_with_a_part_of_an_image_is_refused_by_name(tmp_path):
    """330 stands for an image in the model that also has a vision part, and is text elsewhere."""
    row = {"prompt_ids": [2, 330, 5], "chosen_ids": [7, 1], "rejected_ids": [8, 1]}
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps(row) + "\n")
    for name, status in (("gemma3", 2), ("gemma3-text", 0)):
        words = ["--model", str(GOLDEN / name / "model"), "--data", str(data)]
        output = ["--output", str(tmp_path / f"{name}.jsonl")]
        assert run_command(logps_command, [*words, *output], resumes=False) == status


def test_the_message_names_the_token(tmp_path):
    examples = [Example(3, np.array([330, 2]), (np.array([1]), np.array([4])))]
    message = "data d row 3: 'prompt' holds the id 330, which stands for an image"
    with pytest.raises(ValueError, match=message):
        check_vocabulary("d", examples, Vocabulary(331, (330,)))
