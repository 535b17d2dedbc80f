"""Adapters of experts between our tree and the real `peft` package, in both directions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_models
import torch
from both_logits import our_logits, their_logits
from flax import nnx
from tiny_adapters import adapted
from tiny_gpt_oss import FOLDER
from transformers import AutoModelForCausalLM

from tddpo_jax.adapters.expert_factors import Factors, factors, stored
from tddpo_jax.adapters.lora import merged, target_paths
from tddpo_jax.adapters.peft_files import export_adapter, load_adapter
from tddpo_jax.config.schema import LoraConfig
from tddpo_jax.models.tensor_table import TargetParameter, Transform
from tddpo_jax.weights.hugging_face import read_config

# PEFT asks transformers for an attribute that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

LAYERS = read_config(FOLDER).layers
TOKENS = np.random.default_rng(1).integers(3, 300, (2, 21), np.int32)
BOTH = ("experts.gate_up", "experts.down")
TARGETS = {"both and more": ("q_proj", *BOTH), "up": BOTH[:1], "down": BOTH[1:]}


@pytest.fixture(scope="module")
def base():
    return tiny_models.load(FOLDER, jnp.float32)


def transformers_model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_peft_computes_with_our_folder_what_we_compute(targets, base, tmp_path):
    """With the adapter beside the weights, and merged into them by PEFT and by us."""
    ours = adapted(base, 1, rank=3, alpha=7.0, targets=targets)
    export_adapter(ours, tmp_path, str(FOLDER))
    theirs = peft.PeftModel.from_pretrained(transformers_model(), tmp_path)
    found = our_logits(ours, TOKENS)
    assert_close(found, their_logits(theirs, TOKENS))
    assert_close(
        our_logits(merged(ours, jnp.float32), TOKENS),
        their_logits(theirs.merge_and_unload(), TOKENS),
    )
    assert np.abs(found - our_logits(base, TOKENS)).max() > 0.1
    again = tiny_models.load(FOLDER, jnp.float32)
    load_adapter(again, tmp_path, tiny_models.one_device())
    assert jax.tree.all(jax.tree.map(np.array_equal, again, ours))


def test_we_compute_with_a_folder_of_peft_what_peft_computes(base, tmp_path):
    """Its target parameters are in another order."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=["v_proj"],
        target_parameters=["mlp.experts.down_proj", "experts.gate_up_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(transformers_model(), config).eval()
    theirs.save_pretrained(tmp_path)
    ours = tiny_models.load(FOLDER, jnp.float32)
    load_adapter(ours, tmp_path, tiny_models.one_device())
    assert_close(our_logits(ours, TOKENS), their_logits(theirs, TOKENS))
    file = tmp_path / "adapter_config.json"
    attributes = json.loads(file.read_text())

    def read(given):
        file.write_text(json.dumps({**attributes, "target_parameters": given}))
        again = nnx.clone(base)
        load_adapter(again, tmp_path, tiny_models.one_device())
        return again

    names = config.target_parameters
    for given in (
        [*names, "mlp.experts.gate_up_proj", "down_proj"],  # two or three for one weight
        [*names, *(f"model.layers.{layer}.self_attn.v_proj.weight" for layer in range(LAYERS))],
        [
            *(f"{layer}.mlp.experts.down_proj" for layer in range(LAYERS)),
            *(f"model.layers.{layer}.mlp.experts.gate_up_proj" for layer in range(LAYERS)),
        ],
    ):
        assert jax.tree.all(jax.tree.map(np.array_equal, read(given), ours)), given
    for given, message in (
        (["mlp.experts.side_proj"], "target_parameters has mlp.experts.side_proj, which names not"),
        (
            ["9.mlp.experts.down_proj"],
            r"target_parameters has 9\.mlp\.experts\.down_proj, which nam",
        ),
        ("mlp.experts.down_proj", "target_parameters must be a list of names"),
        (["mlp.experts.down_proj"], r"experts\.base_layer\.lora_A\.weight is unknown"),
        (
            [f"{layer}.mlp.experts.gate_up_proj" for layer in range(0, LAYERS, 2)],
            rf"adapter_config\.json: target_parameters names experts\.gate_up in {LAYERS // 2} of "
            rf"{LAYERS} layers; adapters of experts must be in all layers",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read(given)


class Llama4Experts(torch.nn.Module):
    """PEFT takes weights with inputs before outputs for the other way round, as in Llama 4."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.zeros(3, 5, 8))


def test_factors_trade_places_where_peft_takes_inputs_for_outputs():
    """Three experts of 2 x 4 outputs and 5 inputs, rank 2. Expected: what PEFT merges is ours."""
    rng = np.random.default_rng(0)
    ours = Factors(rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 2, 4, 2)))
    halves = TargetParameter(
        "experts.gate_up_proj",
        Transform(
            lambda b: b.reshape(len(b), 2, -1, b.shape[2]),
            lambda b: b.reshape(len(b), -1, b.shape[3]),
        ),
        swapped=True,
    )
    config = peft.LoraConfig(r=2, lora_alpha=2, target_parameters=["experts.gate_up_proj"])
    theirs = peft.get_peft_model(torch.nn.ModuleDict({"experts": Llama4Experts()}), config)
    files = stored(ours, halves)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.from_numpy(files.a if "lora_A" in name else files.b))
    found = theirs.merge_and_unload().experts.gate_up_proj.detach().numpy()
    wanted = np.einsum("ehfr,eri->eihf", ours.b, ours.a).reshape(3, 5, 8)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for one, other in zip(factors(files, halves, 3), ours, strict=True):
        np.testing.assert_array_equal(one, other)


def test_experts_are_adapted_if_they_are_named():
    config = read_config(FOLDER)
    assert not any("experts" in path for path in target_paths(LoraConfig(), config))
    assert target_paths(LoraConfig(targets=BOTH), config) == [
        f"layers_0_{stack}.experts.{name}" for stack in (0, 1) for name in ("gate_up", "down")
    ]
    with pytest.raises(ValueError, match=r"lora\.dropout: must be 0 for adapters of experts"):
        target_paths(LoraConfig(targets=BOTH, dropout=0.1), config)
    with pytest.raises(ValueError, match=r"o_proj, experts\.gate_up, experts\.down"):
        target_paths(LoraConfig(targets=("gate_proj",)), config)


@pytest.mark.parametrize("name", ["experts.gate_up", "experts.down"])
def test_experts_that_peft_cannot_adapt_are_refused(name):
    config = read_config(FOLDER.parents[1] / "deepseek-v3" / "model")
    message = rf"lora\.targets: {name} names nothing that can have an adapter here, only q_a_proj, "
    with pytest.raises(ValueError, match=message):
        target_paths(LoraConfig(targets=("q_a_proj", name)), config)
