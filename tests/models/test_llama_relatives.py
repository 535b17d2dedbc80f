"""Mistral, Qwen2 and Qwen3, on one device and on eight, against transformers on the same files."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_models
import torch
from flax import nnx
from qwix import QArray
from tiny_adapters import adapted
from tiny_runs import SHAPE
from transformers import AutoModelForCausalLM

from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.adapters.lora import add_adapters
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.adapters.peft_files import export_adapter
from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import LoraConfig, TrainConfig
from tddpo_jax.generation.batching import continue_prompts
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.models.flops import matmul_parameters
from tddpo_jax.models.tensor_table import hub_tensors, parameter_count
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.shardings import path_name, place, row_sharding
from tddpo_jax.planning.abstract import abstract_weights, placed
from tddpo_jax.scoring.forward import hidden_states
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import model_folder

# PEFT asks transformers for an attribute that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

RELATIVES: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 9},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
}
# Prompts and answers on both sides of the window.
PAIRS = tiny_models.random_examples(
    [(9, 30, 14), (1, 5, 40), (25, 3, 3), (12, 12, 12)], vocabulary=SHAPE["vocab_size"]
)
SIGNS = np.array([1.0, -1.0], np.float32)  # of chosen and rejected
MESHES = {"one device": (1, 1, 1), "eight devices": (2, 2, 2)}


@pytest.fixture(scope="module", params=RELATIVES.values(), ids=RELATIVES)
def theirs(request):
    """transformers' model, in float32."""
    return tiny_models.hugging_face(**{**SHAPE, **request.param})


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("relative") / "model", theirs)


@pytest.fixture(scope="module")
def expected(theirs):
    """transformers' log-probs of every branch, and the gradients of their signed sum."""
    theirs.zero_grad()
    logps = torch.stack(
        [torch.stack([_log_prob(theirs, p.prompt, ids) for ids in p.responses]) for p in PAIRS]
    )
    (logps * torch.from_numpy(SIGNS)).sum().backward()
    gradients = {name: weight.grad.numpy().copy() for name, weight in theirs.named_parameters()}
    return logps.detach().numpy(), gradients


def _log_prob(model, prompt, response):
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_log_probs_and_gradients_are_those_of_transformers(mesh, folder, expected):
    """Pairs are packed with their prompts once; transformers computes every branch by itself."""
    devices = tiny_models.mesh_of(*mesh)
    model = hugging_face.load(folder, devices)
    how = Computation(jnp.float32, "xla", "full", row_sharding(devices), "tiles")
    (batch,) = pack(PAIRS, [Shape(4, 130, 120, 3)])
    rows = jax.tree.map(lambda x: place(x, row_sharding(devices)), batch)

    def value(model, rows):
        logps = branch_logps(hidden_states(model, rows, how), model.head_weight, rows)
        return jnp.sum(logps * rows.weight[..., None] * SIGNS[None, None]), logps

    both = tiny_models.quick_jit(jax.value_and_grad(value, has_aux=True))
    (_, logps), gradients = both(model, rows)
    wanted_logps, wanted = expected
    for row, at in zip(*np.nonzero(batch.example >= 0), strict=True):
        np.testing.assert_allclose(logps[row, at], wanted_logps[batch.example[row, at]], rtol=1e-4)
    ours = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(gradients)}
    tensors = hub_tensors(model.config.parameters)
    assert tensors.keys() == wanted.keys()
    for name, (parameter, layer) in tensors.items():
        found = np.asarray(ours[parameter.path])[... if layer is None else layer]
        assert np.linalg.norm(found - wanted[name]) <= 1e-3 * np.linalg.norm(wanted[name]), name


def test_greedy_answers_are_those_of_transformers(theirs, folder):
    """On eight devices."""
    devices = tiny_models.mesh_of(*MESHES["eight devices"])
    answers = continue_prompts(
        adapter_set([hugging_face.load(folder, devices)]),
        [pair.prompt for pair in PAIRS],
        [Sampling(max_new_tokens=20)] * len(PAIRS),
        [(0,)] * len(PAIRS),
        [0] * len(PAIRS),
        stop_ids=(-1,),
        bos=None,
        mesh=devices,
        dtype=jnp.float32,
    )
    for pair, answer in zip(PAIRS, answers, strict=True):
        ids = torch.from_numpy(pair.prompt.astype(np.int64))[None]
        for _ in range(20):
            with torch.no_grad():
                best = theirs(ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], dim=1)
        assert list(answer.token_ids) == ids[0, len(pair.prompt) :].tolist()


def test_the_checkpoint_comes_back_bit_for_bit(folder, tmp_path):
    """With the same model type, so that transformers reads the same model."""
    hugging_face.export(tiny_models.load(folder), folder, tmp_path / "output")
    before, after = (tiny_models.tensors_of(each) for each in (folder, tmp_path / "output"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].tobytes() == tensor.tobytes(), name
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    written = json.loads((folder / "config.json").read_text())
    assert reloaded.config.model_type == written["model_type"]


def test_the_table_counts_the_parameters_of_transformers(theirs, folder):
    config = hugging_face.read_config(folder)
    assert parameter_count(config.parameters) == theirs.num_parameters()
    products = [m.weight.numel() for n, m in theirs.named_modules() if n.endswith("_proj")]
    assert matmul_parameters(config) == sum(products)


def test_peft_computes_with_our_adapter_what_we_compute(theirs, folder, tmp_path):
    ours = adapted(tiny_models.load(folder), 1, rank=3, alpha=2.0)
    export_adapter(ours, tmp_path / "adapter", str(folder))
    again = AutoModelForCausalLM.from_pretrained(folder)
    merged = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    tokens = np.random.default_rng(1).integers(0, SHAPE["vocab_size"], (3, 37), np.int32)
    with torch.no_grad():
        logits = merged(torch.from_numpy(tokens)).logits
    found = tiny_models.hidden_states(ours, tokens) @ ours.head_weight.T
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_only_products_go_into_four_bits(folder):
    """A plan of the same run has the same arrays."""
    model = tiny_models.load(folder)
    quantize(model)
    add_adapters(model, LoraConfig(), 0, tiny_models.one_device())
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, QArray))
    small = {path_name(path) for path, leaf in leaves if isinstance(leaf, QArray)}
    table = model.config.parameters
    assert small == {each.path for each in table if each.tensor.kind == "linear"}
    config, mesh = resolve({"train": {"mode": "qlora"}}), tiny_models.mesh_of(2, 2, 2)
    planned = {
        path_name(path): (leaf.shape, leaf.dtype)
        for part in abstract_weights(config, model.config, jnp.float32)[1:]
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed(part, model.config, mesh))
    }
    found = jax.tree_util.tree_leaves_with_path(model)
    assert planned == {path_name(path): (leaf.shape, leaf.dtype) for path, leaf in found}


def test_weight_decay_pulls_matrices_alone(folder):
    """With gradients of zero, only decay moves a weight."""
    weights = nnx.state(tiny_models.load(folder), nnx.Param)
    optimizer = make_optimizer(TrainConfig(weight_decay=0.1), hugging_face.read_config(folder))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    moves, _ = optimizer.update(zeros, optimizer.init(weights), weights)
    for path, move in jax.tree_util.tree_leaves_with_path(moves):
        name = path_name(path)
        assert bool(jnp.any(move)) == (not name.endswith("bias") and "norm" not in name), name


@pytest.mark.parametrize(
    ("size", "parameters", "active"),
    [
        ("0.6B", 596_049_920, 595_984_384),
        ("1.7B", 1_720_574_976, 1_720_451_072),
        ("4B", 4_022_468_096, 4_022_272_000),
        ("8B", 8_190_735_360, 7_568_097_280),
        ("14B", 14_768_307_200, 13_989_969_920),
        ("32B", 32_762_123_264, 31_983_534_080),
    ],
)
def test_the_sizes_of_qwen3_are_known_without_the_hub(size, parameters, active):
    """Expected: transformers' models of these sizes, counted on the meta device.

    `active` counts the weights of all products of a token, the head's included."""
    config = hugging_face.read_config(model_folder(f"Qwen/Qwen3-{size}"))
    assert parameter_count(config.parameters) == parameters
    assert matmul_parameters(config) + config.vocabulary * config.width == active
