"""Tiny models of every family beside what transformers makes of them.

`golden/FAMILY/model` has the hub's own layout. `golden/FAMILY/golden.json` holds the numbers of
transformers 5.24 in float32 with eager attention. Its own error against float64 is below 1e-5. A
mistake of a family's mathematics changes a log-prob by 1e-3 to 6."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.batches.layout import Example, Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.generation.batching import continue_prompts
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.models.tensor_table import hub_tensors, parameter_count
from tddpo_jax.placement.shardings import path_name, place, row_sharding
from tddpo_jax.weights import hugging_face

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir())
RESPONSES = ("chosen", "rejected")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """The folder of the model, and transformers' numbers."""
    folder = GOLDEN / request.param
    return folder / "model", json.loads((folder / "golden.json").read_text())


@pytest.fixture(scope="module")
def model(family):
    return hugging_face.load(family[0], tiny_models.one_device(), jnp.float32)


def examples_of(numbers):
    return [
        Example(
            row,
            np.array(pair["prompt_ids"], np.int32),
            tuple(np.array(pair[f"{name}_ids"], np.int32) for name in RESPONSES),
        )
        for row, pair in enumerate(numbers["pairs"])
    ]


def packed(numbers, rows):
    (batch,) = pack(
        examples_of(numbers), [Shape(rows, max(512 // rows, 96), max(400 // rows, 80), 6)]
    )
    return batch


def test_the_table_holds_the_model(family, model):
    assert parameter_count(model.config.parameters) == family[1]["parameters"]


def test_every_token_has_the_log_prob_of_transformers(family, model):
    """Both responses share their prompt here, and all pairs share a row of the stream."""
    _, numbers = family
    batch = packed(numbers, 1)

    @tiny_models.quick_jit
    def token_logps(model, batch):
        states = tiny_models.run(model, batch)[0, batch.score_position[0]]
        log_probs = jax.nn.log_softmax(states @ model.head_weight.T)
        return jnp.take_along_axis(log_probs, batch.score_target[0][:, None], axis=1)[:, 0]

    found = np.asarray(token_logps(model, jax.tree.map(jnp.asarray, batch)))
    position = batch.positions[0][batch.score_position[0]]
    for number, row in enumerate(batch.example[0]):
        pair = numbers["pairs"][row]
        for branch, name in enumerate(RESPONSES):
            # The chosen response is stored reversed, and so are its scores.
            own = batch.score_branch[0] == 2 * number + branch
            order = np.argsort(position[own])
            np.testing.assert_array_equal(batch.score_target[0][own][order], pair[f"{name}_ids"])
            np.testing.assert_allclose(found[own][order], pair[f"{name}_logps"], atol=1e-4)


def gradient_norms(model, batch):
    """Norms of the gradients of the sum of logp_chosen - logp_rejected, by transformers' names."""

    def value(model):
        logps = branch_logps(tiny_models.run(model, batch), model.head_weight, batch)
        return jnp.sum(jnp.where(batch.lengths > 0, logps, 0) * jnp.array([1.0, -1.0]))

    leaves = jax.tree_util.tree_leaves_with_path(jax.grad(value)(model))
    by_path = {path_name(path): leaf for path, leaf in leaves}
    return {
        name: jnp.linalg.norm(by_path[each.path] if place is None else by_path[each.path][place])
        for each in model.config.parameters
        for name, place in zip(each.module_names(), each.hub_names().values(), strict=True)
    }


def assert_norms(found, numbers):
    assert found.keys() == numbers["gradient_norms"].keys()
    for name, wanted in numbers["gradient_norms"].items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, err_msg=name)


def test_every_gradient_has_the_norm_of_transformers(family, model):
    batch = jax.tree.map(jnp.asarray, packed(family[1], 1))
    assert_norms(tiny_models.quick_jit(gradient_norms)(model, batch), family[1])


def test_eight_devices_have_the_same_gradients(family):
    """The vocabularies are odd, so no mesh can have a tensor axis."""
    folder, numbers = family
    mesh = tiny_models.mesh_of(2, 4, 1)
    model = hugging_face.load(folder, mesh, jnp.float32)
    batch = jax.tree.map(lambda x: place(x, row_sharding(mesh)), packed(numbers, 8))
    assert_norms(tiny_models.quick_jit(gradient_norms)(model, batch), numbers)


def test_greedy_answers_are_those_of_transformers(family, model):
    """40 tokens with a cache, past any end of turn; no choice of transformers was close."""
    _, numbers = family
    wanted = numbers["continuations"]
    found = continue_prompts(
        adapter_set([model]),
        [np.array(one["prompt_ids"], np.int32) for one in wanted],
        [Sampling(max_new_tokens=len(one["continuation_ids"])) for one in wanted],
        [(0,)] * len(wanted),
        [-1] * len(wanted),
        stop_ids=(-1,),
        bos=None,
        mesh=tiny_models.one_device(),
        dtype=jnp.float32,
    )
    for answer, one in zip(found, wanted, strict=True):
        assert list(answer.token_ids) == one["continuation_ids"]


def test_an_export_is_the_folder_bit_for_bit(family, tmp_path):
    """Every tensor comes back, also those of a part that is not trained."""
    folder, _ = family
    model = hugging_face.load(folder, tiny_models.one_device())
    hugging_face.export(model, folder, tmp_path / "output")
    written, stored = (tiny_models.tensors_of(each) for each in (tmp_path / "output", folder))
    assert written.keys() == stored.keys()
    for name, tensor in stored.items():
        assert written[name].tobytes() == tensor.tobytes(), name
    assert hub_tensors(model.config.parameters).keys() <= stored.keys()
