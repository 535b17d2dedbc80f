"""Adapters between our tree and the real `peft` package, in both directions."""

from __future__ import annotations

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_models
import tiny_runs
import torch
from both_logits import our_logits, their_logits
from places import GOLDEN
from safetensors.numpy import load_file, save_file
from tiny_adapters import adapted
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tddpo_jax.adapters import load, peft_files
from tddpo_jax.adapters.peft_files import export_adapter, load_adapter, read_peft_config
from tddpo_jax.commands.export import export_run
from tddpo_jax.config import reading
from tddpo_jax.generation.generator import Generator
from tddpo_jax.models.llama.tensors import LINEAR_NAMES
from tddpo_jax.models.tensor_table import linear_parameters
from tddpo_jax.system.console import Screen
from tddpo_jax.training import prepare
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import resolve

NUMPY = {"float16": np.float16, "bfloat16": jnp.bfloat16}

# PEFT asks transformers for an attribute that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

LLAMA_4 = GOLDEN / "llama4-maverick" / "model"
TOKENS = np.random.default_rng(1).integers(0, tiny_models.CONFIG.vocabulary, (3, 37), np.int32)
# Rank and alpha whose quotient is no float; all linear layers, or a few.
ADAPTERS = {"all": LINEAR_NAMES, "some": ("q_proj", "o_proj", "down_proj")}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("base"), tiny_models.hugging_face())


def pefts_model(targets, **settings):
    """A model with an adapter of rank 3 and alpha 7. Without PEFT's start, B is random too."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=list(targets),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **settings,
    )
    return peft.get_peft_model(tiny_models.hugging_face(), config).eval()


@pytest.mark.parametrize("targets", ADAPTERS.values(), ids=ADAPTERS)
def test_peft_computes_with_our_folder_what_we_compute(targets, base, tmp_path):
    ours = adapted(tiny_models.load(base), 1, rank=3, alpha=7.0, targets=targets)
    export_adapter(ours, tmp_path / "adapter", str(base))
    theirs = peft.PeftModel.from_pretrained(tiny_models.hugging_face(), tmp_path / "adapter")
    np.testing.assert_allclose(
        our_logits(ours, TOKENS), their_logits(theirs, TOKENS), rtol=1e-4, atol=1e-4
    )
    assert np.abs(our_logits(ours, TOKENS) - our_logits(tiny_models.load(base), TOKENS)).max() > 0.1


@pytest.mark.parametrize("targets", ADAPTERS.values(), ids=ADAPTERS)
def test_we_compute_with_a_folder_of_peft_what_peft_computes(targets, base, tmp_path):
    theirs = pefts_model(targets)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = tiny_models.load(base)
    load_adapter(ours, tmp_path / "adapter", tiny_models.one_device())
    np.testing.assert_allclose(
        our_logits(ours, TOKENS), their_logits(theirs, TOKENS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("of_text", [True, False])
def test_names_of_both_models_of_transformers_are_read(of_text, tmp_path):
    """PEFT names a Llama 4's tensors by the model of text, or by the one with a vision part."""
    model = AutoModelForCausalLM if of_text else AutoModelForImageTextToText
    pattern = r"(language_model\.)?model\.layers\..*(q_proj|gate_proj)"
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=pattern, init_lora_weights=False)
    peft.get_peft_model(model.from_pretrained(LLAMA_4), config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ours = tiny_models.load(LLAMA_4)
    load_adapter(ours, tmp_path, tiny_models.one_device())
    # A layer with experts and one without, each the second of its stack.
    for layer, block in {5: ours.layers_0_1, 6: ours.layers_0_2}.items():
        for linear, part in (
            (block.q_proj, "q_proj"),
            (block.feed_forward.gate_proj, "gate_proj"),
        ):
            wanted = next(
                x for n, x in tensors.items() if f".{layer}." in n and f"{part}.lora_B" in n
            )
            np.testing.assert_array_equal(linear.adapter.b[...][1], wanted)
    save_file({**tensors, **other_names(tensors)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"lora_A\.weight is there twice, also as"):
        load_adapter(tiny_models.load(LLAMA_4), tmp_path, tiny_models.one_device())


def other_names(tensors):
    """The tensors under the names of the other model."""
    long, short = "base_model.model.language_model.model.", "base_model.model.model."
    is_long = next(iter(tensors)).startswith(long)
    here, there = (long, short) if is_long else (short, long)
    return {name.replace(here, there): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("family", ["llama4-maverick", "gemma3"])
def test_layers_of_a_vision_part_get_no_adapter(family):
    """They have names such as `vision_model.model.layers.0.self_attn.q_proj`."""
    config = read_config(GOLDEN / family / "model")
    weights = linear_parameters(config.parameters)
    pattern = peft_files._modules(weights)
    names = {name.removesuffix(".weight") for each in weights for name in each.module_names()}
    assert all(re.fullmatch(pattern, name) for name in names)
    stored = tiny_models.tensors_of(GOLDEN / family / "model")
    vision = {name.removesuffix(".weight") for name in stored if name.startswith(config.carried)}
    assert any("q_proj" in name for name in vision)
    assert not any(re.fullmatch(pattern, name) for name in vision)


def test_rslora_divides_by_the_root_of_the_rank(base, tmp_path):
    """Both ways between PEFT and us, with scale 7 / sqrt(3); the folder still says rsLoRA."""
    theirs = pefts_model(["q_proj"], use_rslora=True)
    theirs.save_pretrained(tmp_path / "first")
    ours = tiny_models.load(base)
    load_adapter(ours, tmp_path / "first", tiny_models.one_device())
    np.testing.assert_allclose(
        our_logits(ours, TOKENS), their_logits(theirs, TOKENS), rtol=1e-4, atol=1e-4
    )
    export_adapter(ours, tmp_path / "second", str(base), rslora=True)
    again = peft.PeftModel.from_pretrained(tiny_models.hugging_face(), tmp_path / "second")
    np.testing.assert_allclose(
        their_logits(again, TOKENS), their_logits(theirs, TOKENS), rtol=1e-4, atol=1e-4
    )
    written = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert (written["use_rslora"], written["lora_alpha"]) == (True, 7.0)


def test_a_round_trip_keeps_every_bit(base, tmp_path):
    """49 ranks: alpha / 49 * 49 is not alpha in float64."""
    first = adapted(tiny_models.load(base), 1, rank=49, alpha=1.0, dropout=0.1)
    export_adapter(first, tmp_path / "first", "owner/base")
    second = tiny_models.load(base)
    load_adapter(second, tmp_path / "first", tiny_models.one_device())
    export_adapter(second, tmp_path / "second", "owner/base")
    for name in LINEAR_NAMES:
        before, after = (getattr(model.layers, name).adapter for model in (first, second))
        assert (before.scale, before.dropout) == (after.scale, after.dropout)
        np.testing.assert_array_equal(before.a[...], after.a[...])
        np.testing.assert_array_equal(before.b[...], after.b[...])
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_an_adapter_in_bfloat16_is_read_as_float32(base, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bfloat16")
    file = tmp_path / "bfloat16" / "adapter_model.safetensors"
    halves = {name: x.astype(jnp.bfloat16) for name, x in load_file(file).items()}
    save_file(halves, file)
    model = tiny_models.load(base)
    load_adapter(model, tmp_path / "bfloat16", tiny_models.one_device())
    name = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"
    found = model.layers.q_proj.adapter.a[...][2]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, halves[name].astype(np.float32))


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """A good adapter folder, to be spoiled."""
    folder = tmp_path_factory.mktemp("good") / "adapter"
    export_adapter(
        adapted(tiny_models.load(base), 1, rank=3, targets=("q_proj",)), folder, str(base)
    )
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("bias", "all"),
        ("use_rslora", "yes"),
        ("use_dora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 5}),
        ("alpha_pattern", {"q_proj": 5}),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 1]]),
        ("init_lora_weights", "pissa"),
        ("trainable_token_indices", [3]),
        ("something_new", 1),
        ("r", 0),
        ("lora_alpha", None),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(name, value, folder, tmp_path):
    attributes = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**attributes, name: value}))
    with pytest.raises(ValueError, match=rf"adapter_config.json: {name} "):
        read_peft_config(tmp_path)


A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
SPOILED = {
    "missing": ({A: None}, f"tensor {A} is missing"),
    "unknown layer": (
        {A.replace("1", "3"): np.zeros((3, 24), np.float32)},
        "layers.3.* is unknown",
    ),
    "unknown kind": (
        {A.replace("lora_A", "magnitude"): np.zeros(3, np.float32)},
        "magnitude.* is unknown",
    ),
    "unknown target": (
        {A.replace("q_proj", "lm_head"): np.zeros(3, np.float32)},
        "lm_head.* is unknown",
    ),
    "wrong rank": (
        {A: np.zeros((2, 24), np.float32)},
        r"shape \[2, 24\], .* require \[3, 24\]",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_tensors_that_do_not_fit_are_named(name, base, folder, tmp_path):
    changes, message = SPOILED[name]
    shutil.copytree(folder, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {**load_file(file), **changes}
    save_file({name: x for name, x in tensors.items() if x is not None}, file)
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny_models.load(base), tmp_path / "adapter", tiny_models.one_device())


def test_files_that_are_not_whole_are_named(base, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: not a whole"):
        load_adapter(tiny_models.load(base), tmp_path / "adapter", tiny_models.one_device())
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json: not JSON"):
        load_adapter(tiny_models.load(base), tmp_path / "adapter", tiny_models.one_device())


def test_an_adapter_in_a_pickle_is_named(base, folder, tmp_path):
    """As PEFT wrote it before version 0.7."""
    shutil.copytree(folder, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(
        tmp_path / "adapter" / "adapter_model.bin"
    )
    with pytest.raises(ValueError, match=r"holds adapter_model\.bin, but only adapter_model\.safe"):
        load_adapter(tiny_models.load(base), tmp_path / "adapter", tiny_models.one_device())


def test_a_model_without_adapters_is_not_written(base, tmp_path):
    with pytest.raises(ValueError, match="no adapter to write"):
        export_adapter(tiny_models.load(base), tmp_path / "adapter", "base")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("stored", NUMPY)
def test_the_four_bits_are_those_of_the_stored_weights(stored, inputs, tmp_path):
    """Trained in one dtype, stored in another, loaded in any: the codes and scales are the same.

    What is exported is then the policy, rounded once to the checkpoint's dtype.
    """
    shutil.copytree(inputs.model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = {name: tensor.astype(NUMPY[stored]) for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    other = "bfloat16" if stored == "float16" else "float32"
    changes = {"model.path": str(tmp_path / "model"), "model.dtype": other, "lora.rank": 2}
    changes |= {"train.mode": "qlora", "train.max_steps": 2}
    (summary,) = tiny_runs.run(inputs, tmp_path / "run", changes)
    assert summary["state"] == "finished"

    run, mesh = resolve(str(tmp_path / "run")), tiny_models.one_device()
    settings = tiny_runs.settings(inputs, tmp_path / "again", changes)
    trained = prepare.prepare([reading.resolve(settings)], Screen(quiet=True))
    quantized = [trained.policy.model(trained.policy.fresh(0))]
    quantized += [load.load_unmerged(run, mesh, dtype) for dtype in (jnp.float32, jnp.dtype(other))]
    quantized += [Generator.from_path(str(tmp_path / "run"), "float32").adapters.model]
    for name in LINEAR_NAMES:
        first, *rest = (getattr(model.layers, name).weight.get_value() for model in quantized)
        for another in rest:
            np.testing.assert_array_equal(another.qvalue, first.qvalue)
            np.testing.assert_array_equal(another.scale, first.scale)

    export_run(tmp_path / "run", tmp_path / "whole", adapter=False)
    policy = load.load_model(run, mesh, jnp.float32)
    whole = load.load_model(resolve(str(tmp_path / "whole")), mesh, jnp.float32)
    for name in LINEAR_NAMES:
        found, wanted = (getattr(m.layers, name).weight.get_value() for m in (whole, policy))
        np.testing.assert_array_equal(found, wanted.astype(stored).astype("float32"))
