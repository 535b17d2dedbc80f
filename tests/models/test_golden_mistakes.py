"""Mistakes in a family's mathematics: each is seen beside the numbers of transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from golden_families import largest_error, load, numbers_of, token_logps

from tddpo_jax.models.architecture import stacks
from tddpo_jax.models.attention import ranges
from tddpo_jax.models.deepseek import indexer, latent_attention
from tddpo_jax.models.deepseek import model as deepseek
from tddpo_jax.models.experts import routing
from tddpo_jax.models.gpt_oss import model as gpt_oss
from tddpo_jax.models.llama.model import Block as LlamaBlock
from tddpo_jax.models.llama4 import model as llama4
from tddpo_jax.models.rope import Yarn, rotate

# A checkpoint may hold a layer that predicts further tokens.
pytestmark = pytest.mark.filterwarnings("ignore:.*predicts further tokens")


def with_config(**changes):
    """A mistake in one number of the config."""

    def change(model, patch):
        model.config = dataclasses.replace(model.config, **changes)

    return change


def plain_norms(model, patch):
    """`w` in place of `1 + w`."""
    for each in model.config.parameters:
        if each.tensor.kind == "norm":
            weight = functools.reduce(getattr, each.path.split("."), model)
            weight[...] = weight[...] - 1


def no_head_norms(model, patch):
    patch.setattr(LlamaBlock, "queries_keys_values", without_norms(LlamaBlock.queries_keys_values))


def without_norms(method):
    def plain(block, *args):
        block.q_norm = block.k_norm = lambda x: x
        return method(block, *args)

    return plain


def unscaled_embedding(model, patch):
    patch.setattr(type(model.config), "embedding_scale", 1.0)


def exact_gelu(model, patch):
    gelu = jax.nn.gelu
    patch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False))


def filled(path, value=0.0):
    """A parameter of every layer has one value everywhere."""

    def change(model, patch):
        for each in model.config.parameters:
            if each.tensor.path == path:
                weight = functools.reduce(getattr, each.path.split("."), model)
                weight[...] = jnp.full_like(weight[...], value)

    return change


def whole_bounds(model, patch):
    yarn = dataclasses.replace(model.config.yarn, whole_bounds=True)
    model.config = dataclasses.replace(model.config, yarn=yarn)
    in_blocks(model)


def in_blocks(model):
    """The blocks have the config of the model."""
    for block in blocks(model):
        block.config = model.config


def blocks(model):
    """The blocks of all stacks of layers."""
    found = stacks(model.config.segments)
    return [getattr(model, stack.name) for segment in found for stack in segment]


def no_attention_factor(model, patch):
    patch.setattr(Yarn, "attention_factor", 1.0)


def no_limit(model, patch):
    with_experts(activation=gpt_oss.Clamped(1e9))(model, patch)


def with_experts(**changes):
    """A mistake in one setting of the experts."""

    def change(model, patch):
        for block in blocks(model):
            block.experts.shape = dataclasses.replace(block.experts.shape, **changes)

    return change


def softmax_first(model, patch):
    def route(logits, count):
        expert = routing.softmax_of_best(logits, count).expert
        return routing.Route(expert, jnp.take_along_axis(jax.nn.softmax(logits), expert, axis=-1))

    patch.setattr(gpt_oss, "softmax_of_best", route)


def halves_in_place_of_turns(model, patch):
    for block in blocks(model):
        gate_up = block.experts.gate_up
        for part in (gate_up.weight, gate_up.bias):
            turns = part[...].swapaxes(2, 3)
            part[...] = turns.reshape(part.shape)


def no_norms_of_local_heads(model, patch):
    with_config(head_norms=False)(model, patch)
    in_blocks(model)


def rope_everywhere(model, patch):
    for block in blocks(model):
        block.is_local = True


def rope_of_halves(module):
    """The module pairs features as halves in place of adjacent ones."""

    def rotate_halves(x, angle, factor=1.0, pairs=None):
        return rotate(x, angle, factor)

    return lambda model, patch: patch.setattr(module, "rotate", rotate_halves)


def in_router(**changes):
    """A mistake in one number of the routers."""

    def change(model, patch):
        router = model.layers_1_0.router
        router.config = dataclasses.replace(router.config, **changes)

    return change


def not_normalised(model, patch):
    def route(logits, correction, count, *, factor, **settings):
        found = routing.sigmoid_in_groups(logits, correction, count, factor=factor, **settings)
        scores = jnp.take_along_axis(jax.nn.sigmoid(logits), found.expert, axis=-1)
        return routing.Route(found.expert, factor * scores)

    patch.setattr(deepseek, "sigmoid_in_groups", route)


def all_keys(model, patch):
    patch.setattr(ranges, "with_choice", lambda seen, *_: seen)


def one_key_more(model, patch):
    for block in blocks(model):
        own = block.attention.indexer
        own.shape = dataclasses.replace(own.shape, most=own.shape.most + 1)


def adjacent_rope_in_the_indexer(model, patch):
    patch.setattr(indexer, "rotate", lambda *args: rotate(*args, "adjacent"))


MISTAKES = {
    "no chunks": ("llama4-scout", with_config(chunk=None)),
    "no temperature": ("llama4-scout", with_config(temperature=None)),
    "no norms of local heads": ("llama4-scout", no_norms_of_local_heads),
    "rope everywhere": ("llama4-scout", rope_everywhere),
    "no stretching of rope": ("llama4-scout", with_config(rope_scaling=None)),
    "a score on the output": ("llama4-scout", with_experts(weighs_input=False)),
    "halves that turn": ("llama4-scout", rope_of_halves(llama4)),
    "all keys": ("deepseek-v32", all_keys),
    "one key more": ("deepseek-v32", one_key_more),
    "adjacent rope in the indexer": ("deepseek-v32", adjacent_rope_in_the_indexer),
    "no correction of the choice": ("deepseek-v3", filled("router.correction")),
    "no groups": ("deepseek-v3", in_router(kept_groups=4)),
    "weights that are not normalised": ("deepseek-v3", not_normalised),
    "no factor of the weights": ("deepseek-v3", in_router(route_factor=1.0)),
    "no magnitude": ("deepseek-v3", with_config(score_factor=1.0)),
    "rope of halves": ("deepseek-v3", rope_of_halves(latent_attention)),
    "no yarn": ("deepseek-v3", with_config(yarn=None)),
    # A sink of minus infinity takes no weight; zero would take some.
    "no sinks": ("gpt-oss", filled("sinks", -1e9)),
    "no window in gpt-oss": ("gpt-oss", with_config(window=10**6)),
    "no limit": ("gpt-oss", no_limit),
    "a blunt activation": ("gpt-oss", lambda _, patch: patch.setattr(gpt_oss, "SHARPNESS", 1.0)),
    "whole bounds": ("gpt-oss", whole_bounds),
    "no attention factor": ("gpt-oss", no_attention_factor),
    "no bias of the router": ("gpt-oss", filled("router.bias")),
    "no bias of the experts": ("gpt-oss", filled("experts.down.bias")),
    "softmax before the choice": ("gpt-oss", softmax_first),
    "halves in place of turns": ("gpt-oss", halves_in_place_of_turns),
    "no window": ("gemma3-text", with_config(window=10**6)),
    "a window of one more": ("gemma3-text", with_config(window=9)),
    "one theta": ("gemma3-text", with_config(local_theta=1e6)),
    "plain norms": ("gemma3-text", plain_norms),
    "no embedding scale": ("gemma3-text", unscaled_embedding),
    "exact gelu": ("gemma3-text", exact_gelu),
    "no rope scaling": ("gemma3", with_config(rope_factor=1.0)),
    "no norms of heads": ("qwen3", no_head_norms),
    "another theta": ("qwen3", with_config(rope_theta=1e4)),
    "scores by head size": ("gemma3", with_config(score_scalar=20.0)),
}


@pytest.fixture
def traced_anew():
    """A program that was traced with a mistake serves no other test, nor does a right one here."""
    token_logps.clear_cache()
    yield
    token_logps.clear_cache()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake, monkeypatch, traced_anew):
    """Each changes some log-prob by ten times the bound for the right mathematics, or more."""
    name, make = MISTAKES[mistake]
    model = load(name)
    make(model, monkeypatch)
    assert largest_error(model, numbers_of(name)) > 1e-3
