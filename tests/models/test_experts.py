"""Routed experts beside the plain sum: every expert computes every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from tddpo_jax.models.experts import chunks
from tddpo_jax.models.experts.experts import Bank, Banks, ExpertsShape, routed_sum, router_logits
from tddpo_jax.models.experts.grouped import tile_rows
from tddpo_jax.models.experts.routing import (
    sigmoid_in_groups,
    sigmoid_of_best,
    softmax_of_best,
)

EXPERTS, WIDTH, INNER, TOKENS = 7, 12, 10, (3, 41)


def gated(gate, up):
    return jax.nn.silu(gate) * (up + 1)


def dense_sum(x, route, banks, shape):
    """The definition, expert by expert, with the adapters merged."""
    out = jnp.zeros_like(x)
    for expert in range(shape.experts):
        share = jnp.sum(jnp.where(route.expert == expert, route.weight, 0), axis=-1)[..., None]
        chosen = jnp.any(route.expert == expert, axis=-1)[..., None]
        read = x * share if shape.weighs_input else x
        of = [(b.weight + jnp.einsum("e...r,eri->e...i", b.b, b.a))[expert] for b in banks]
        gate, up = (read @ of[0][n].T + banks.gate_up.bias[expert, n][None, None] for n in (0, 1))
        y = gated(gate, up) @ of[1].T
        out = out + jnp.where(chosen, y if shape.weighs_input else y * share, 0)
    return out


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape)

    gate_up = Bank(
        normal(EXPERTS, 2, INNER, WIDTH),
        normal(EXPERTS, 2, INNER),
        normal(EXPERTS, 3, WIDTH),
        normal(EXPERTS, 2, INNER, 3),
    )
    down = Bank(
        normal(EXPERTS, WIDTH, INNER),
        None,
        normal(EXPERTS, 3, INNER),
        normal(EXPERTS, WIDTH, 3),
    )
    return normal(*TOKENS, WIDTH), normal(EXPERTS, WIDTH), Banks(gate_up, down)


@pytest.mark.parametrize(("chosen", "weighs_input"), [(3, False), (1, True)])
def test_routed_experts_are_the_sum_over_all(numbers, chosen, weighs_input):
    """In float64, 1e-12: the values, and the gradients of everything. Expert 5 gets no token."""
    shape = ExpertsShape(EXPERTS, chosen, WIDTH, INNER, gated, weighs_input=weighs_input)
    choose = sigmoid_of_best if weighs_input else softmax_of_best

    def value(run, x, router, banks):
        away = jnp.where(jnp.arange(EXPERTS) == 5, -1e9, 0.0).astype(x.dtype)
        route = choose(router_logits(x, router, away), chosen)
        y = run(x, route, banks, shape)
        return jnp.sum(jnp.sin(y)), y

    with jax.enable_x64(True):
        x, router, banks = jax.tree.map(jnp.asarray, numbers)
        both = [
            jax.jit(jax.grad(functools.partial(value, run), argnums=(0, 1, 2), has_aux=True))(
                x, router, banks
            )
            for run in (routed_sum, dense_sum)
        ]
    for found, wanted in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("tokens", [1, 2, 500])
def test_parts_of_the_experts_add_up(numbers, tokens):
    """Two halves of the experts, each alone, on few and on many tokens."""
    x = jax.random.normal(jax.random.key(tokens), (1, tokens, WIDTH))
    banks = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numbers[2])
    shape = ExpertsShape(EXPERTS, 3, WIDTH, INNER, gated)
    route = softmax_of_best(router_logits(x, jnp.asarray(numbers[1], jnp.float32)), 3)

    def part(start, stop):
        some = jax.tree.map(lambda leaf: leaf[start:stop], banks)
        return routed_sum(x, route, some, shape, first=start)

    found = part(0, 4) + part(4, EXPERTS)
    wanted = dense_sum(x, route, banks, shape)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_rows_of_a_batch_may_use_other_ranks_of_an_adapter(numbers):
    """A gate scales the three ranks of one product's adapter in each of three rows. Expected: each
    row alone, with a factor that has its gate in it."""
    x, router, banks = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numbers)
    run = tiny_models.quick_jit(
        functools.partial(routed_sum, shape=ExpertsShape(EXPERTS, 3, WIDTH, INNER, gated))
    )
    gate = jnp.array([[0.0, 0, 0], [1, 0, 2], [0, -1, 0]])
    route = softmax_of_best(router_logits(x, router), 3)
    found = run(x, route, banks._replace(gate_up=banks.gate_up._replace(gate=gate)))
    for row in range(3):
        own = banks.gate_up._replace(b=banks.gate_up.b * gate[row][None, None, None])
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], (x, route))
        wanted = run(*one, banks._replace(gate_up=own))
        np.testing.assert_allclose(found[row], wanted[0], atol=1e-5 * np.abs(wanted).max())


def test_parts_of_the_tokens_compute_what_all_do_at_once(numbers, monkeypatch):
    """123 tokens of three choices each, in four parts of 31 tokens, with a gate for each row of the
    batch. Values, and the gradients of tokens, router and weights."""
    monkeypatch.setattr(chunks, "choices_of_part", lambda experts: 100)
    x, router, banks = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), numbers)
    gate = jnp.array([[0.5, 0, 1], [1, 0, 2], [0, -1, 0]])
    banks = banks._replace(gate_up=banks.gate_up._replace(gate=gate))
    shape = ExpertsShape(EXPERTS, 3, WIDTH, INNER, gated)

    def value(x, router, banks, run):
        y = run(x, softmax_of_best(router_logits(x, router), 3), banks, shape, first=1)
        return jnp.sum(jnp.sin(y)), y

    both = tiny_models.quick_jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
    results = [both(x, router, banks, run) for run in (chunks.in_parts, routed_sum)]
    for found, wanted in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@jax.custom_vjp
def nan_gradient(x, used):
    """x; the gradient of the rows that are not used is NaN."""
    return x


nan_gradient.defvjp(
    lambda x, used: (x, used), lambda used, d_x: (jnp.where(used, d_x, jnp.nan), None)
)


def test_what_a_kernel_leaves_behind_the_used_rows_changes_nothing(numbers, monkeypatch):
    """Four of seven experts are here, so rows are free. The stand-in for the kernels leaves NaN in
    them, and in their gradients. Expected: the values and the gradients of tiles, in float64."""
    tokamax = pytest.importorskip("tokamax")

    def ragged_dot(x, weight, sizes, implementation):
        used = (jnp.arange(len(x)) < jnp.sum(sizes))[:, None]
        y = jax.lax.ragged_dot(nan_gradient(x, used), weight, sizes)
        return jnp.where(used, y, jnp.nan)

    monkeypatch.setattr(tokamax, "ragged_dot", ragged_dot)
    shape = ExpertsShape(EXPERTS, 3, WIDTH, INNER, gated)

    def value(x, router, banks, implementation):
        route = softmax_of_best(router_logits(x, router), 3)
        y = routed_sum(x, route, banks, shape, implementation=implementation)
        return jnp.sum(jnp.sin(y)), y

    both = tiny_models.quick_jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
    with jax.enable_x64(True):
        x, router, banks = jax.tree.map(jnp.asarray, numbers)
        here = jax.tree.map(lambda leaf: leaf[:4], banks)
        results = [both(x, router, here, name) for name in ("tokamax", "tiles")]
    for found, wanted in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12 * np.abs(wanted).max())


def test_tiles_follow_the_rows_of_an_expert():
    assert [tile_rows("tiles", n, 32) for n in (4, 1000, 2048, 10**6)] == [16, 16, 64, 128]
    assert tile_rows("tokamax", 10**6, 32) == 1


def test_groups_choose_before_experts():
    """Two groups of three, one kept. Scores before the correction: 0.9 alone in the first group,
    0.6 and 0.5 in the second, which is better together. The correction lifts the last expert over
    the second one, but its weight stays its own score."""
    scores = np.array([0.9, 0.1, 0.05, 0.6, 0.5, 0.45])
    logits = jnp.log(scores / (1 - scores))[None]
    correction = jnp.array([0.0, 0, 0, 0, 0, 0.1])
    route = sigmoid_in_groups(logits, correction, 2, groups=2, kept_groups=1, factor=2.5)
    np.testing.assert_array_equal(route.expert, [[3, 5]])
    np.testing.assert_allclose(route.weight, [[2.5 * 0.6 / 1.05, 2.5 * 0.45 / 1.05]], rtol=1e-6)
