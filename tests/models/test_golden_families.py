"""Tiny models of every family beside what transformers makes of them.

`golden/FAMILY/model` has the hub's own layout. `golden/FAMILY/golden.json` holds the numbers of
transformers 5.24 in float32 with eager attention. Its own error against float64 is below 1e-5. A
mistake of a family's mathematics changes a log-prob by 1e-3 to 6."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_models
import torch
from tiny_adapters import adapted
from transformers import AutoModelForCausalLM

from tddpo_jax.__main__ import generate_command
from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.adapters.peft_files import export_adapter
from tddpo_jax.batches.layout import Example, Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.errors import UserError
from tddpo_jax.generation import generator
from tddpo_jax.generation.batching import continue_prompts
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.models import rope
from tddpo_jax.models.architecture import kinds_of_layers, stacks
from tddpo_jax.models.attention import ranges
from tddpo_jax.models.deepseek import indexer, latent_attention
from tddpo_jax.models.deepseek import model as deepseek
from tddpo_jax.models.experts import routing
from tddpo_jax.models.fp8 import FP8
from tddpo_jax.models.gpt_oss import model as gpt_oss
from tddpo_jax.models.llama.model import Block as LlamaBlock
from tddpo_jax.models.llama4 import model as llama4
from tddpo_jax.models.rope import Yarn, rotate
from tddpo_jax.models.tensor_table import hub_tensors, parameter_count, stored_tensors_of
from tddpo_jax.placement.shardings import path_name, place, row_sharding
from tddpo_jax.weights import hugging_face

# A checkpoint may hold a layer that predicts further tokens.
pytestmark = pytest.mark.filterwarnings("ignore:.*predicts further tokens")

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir())
# Maverick's layers are Scout's, and one without experts. What compiles long is tested on Scout.
# Only Maverick has all names of adapters.
COMPILED_LONG = [name for name in FAMILIES if name != "llama4-maverick"]
ADAPTED = [name for name in FAMILIES if name != "llama4-scout"]
RESPONSES = ("chosen", "rejected")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """The folder of the model, and transformers' numbers."""
    folder = GOLDEN / request.param
    return folder / "model", json.loads((folder / "golden.json").read_text())


def load(name):
    return hugging_face.load(GOLDEN / name / "model", tiny_models.one_device(), jnp.float32)


@pytest.fixture(scope="module")
def model(family):
    return load(family[0].parent.name)


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
    """The correction of a router's choice is no parameter in transformers."""
    counted = (each for each in model.config.parameters if each.tensor.path != "router.correction")
    assert parameter_count(counted) == family[1]["parameters"]


def test_two_loads_have_one_structure(family, model):
    """So no program is traced again for the second, and trees of both can be mapped together."""
    assert jax.tree.structure(load(family[0].parent.name)) == jax.tree.structure(model)


@tiny_models.quick_jit
def token_logps(model, batch):
    """The log-prob of every target of one packed row."""
    states = tiny_models.run(model, batch)[0, batch.score_position[0]]
    log_probs = jax.nn.log_softmax(states @ model.head_weight.T)
    return jnp.take_along_axis(log_probs, batch.score_target[0][:, None], axis=1)[:, 0]


def largest_error(model, numbers):
    """Of any token's log-prob, in nats, where both responses of a pair share their prompt."""
    batch = packed(numbers, 1)
    found = np.asarray(token_logps(model, jax.tree.map(jnp.asarray, batch)))
    position, errors = batch.positions[0][batch.score_position[0]], []
    for number, row in enumerate(batch.example[0]):
        pair = numbers["pairs"][row]
        for branch, name in enumerate(RESPONSES):
            # The chosen response is stored reversed, and so are its scores.
            own = batch.score_branch[0] == 2 * number + branch
            order = np.argsort(position[own])
            np.testing.assert_array_equal(batch.score_target[0][own][order], pair[f"{name}_ids"])
            errors.append(np.abs(found[own][order] - pair[f"{name}_logps"]).max())
    return max(errors)


def test_every_token_has_the_log_prob_of_transformers(family, model):
    assert largest_error(model, family[1]) < 1e-4


def gradient_norms(model, batch):
    """Norms of the gradients of the sum of logp_chosen - logp_rejected, by transformers' names."""

    def value(model):
        logps = branch_logps(tiny_models.run(model, batch), model.head_weight, batch)
        return jnp.sum(jnp.where(batch.lengths > 0, logps, 0) * jnp.array([[[1.0, -1.0]]]))

    leaves = jax.tree_util.tree_leaves_with_path(jax.grad(value)(model))
    by_path = {path_name(path): leaf for path, leaf in leaves}
    return {
        name: norm_of(each, by_path[each.path] if place is None else by_path[each.path][place])
        for each in model.config.parameters
        if each.tensor.kind != "buffer"
        for name, place in zip(each.module_names(), each.hub_names().values(), strict=True)
    }


def norm_of(parameter, gradient):
    """A tensor of all experts has one norm for each."""
    parts = gradient.shape[0] if parameter.tensor.axes[0] == "experts" else 1
    return jnp.linalg.norm(gradient.reshape(parts, -1), axis=1)


def assert_norms(found, numbers):
    """A Llama 4's numbers have the names of the model with a vision part."""
    norms = {
        name.removeprefix("language_model."): wanted
        for name, wanted in numbers["gradient_norms"].items()
    }
    assert found.keys() == norms.keys()
    for name, wanted in norms.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("family", COMPILED_LONG, indirect=True)
def test_every_gradient_has_the_norm_of_transformers(family, model):
    batch = jax.tree.map(jnp.asarray, packed(family[1], 1))
    assert_norms(tiny_models.quick_jit(gradient_norms)(model, batch), family[1])


def test_eight_devices_have_the_same_gradients(family):
    """The vocabularies are odd, so no mesh can have a tensor axis.

    On several devices of a CPU, experts are refused.
    """
    folder, numbers = family
    config = hugging_face.read_config(folder)
    if any(layer.experts is not None for _, layer in kinds_of_layers(config)):
        mesh = tiny_models.mesh_of(4, 2, 1)
        with pytest.raises(UserError, match="routed experts, which run on one device of a CPU"):
            hugging_face.load(folder, mesh, jnp.float32)
        return
    mesh = tiny_models.mesh_of(2, 4, 1)
    model = hugging_face.load(folder, mesh, jnp.float32)
    batch = jax.tree.map(lambda x: place(x, row_sharding(mesh)), packed(numbers, 8))
    assert_norms(tiny_models.quick_jit(gradient_norms)(model, batch), numbers)


@pytest.mark.parametrize("family", COMPILED_LONG, indirect=True)
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


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
def test_a_folder_without_a_tokenizer_answers_by_ids(family, capsys, monkeypatch):
    monkeypatch.setattr(generator, "make_mesh", lambda _: tiny_models.one_device())
    folder, numbers = family
    one = numbers["continuations"][0]

    def status(*options):
        words = ["--model", str(folder), *options]
        return run_command(generate_command, words, resumes=False)

    words = ["--ignore-eos", "--max-new-tokens", "40", "--dtype", "float32", "--prompt-ids"]
    assert status(*words, *map(str, one["prompt_ids"])) == 0
    assert capsys.readouterr().out.split() == [str(each) for each in one["continuation_ids"]]
    assert [status(*words, "-1"), status(*words, "331"), status("--prompt", "a")] == [2, 2, 2]
    last = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in last] == [
        "error: prompt ids: must be from 0 to 2147483647, got -1",
        "error: prompt 0 holds the id 331, but the model's ids are 0 to 330",
        f"error: tokenizer {folder}: there is none",
    ]


def test_an_export_is_the_folder_bit_for_bit(family, tmp_path):
    """Every tensor comes back, also those of a part that is not trained. What was packed comes back
    unpacked, and transformers reads it as it reads the folder."""
    folder, _ = family
    model = hugging_face.load(folder, tiny_models.one_device())
    hugging_face.export(model, folder, tmp_path / "output")
    written, stored = (tiny_models.tensors_of(each) for each in (tmp_path / "output", folder))
    parameters = model.config.parameters
    packed = [each for each in parameters if each.tensor.packing is not None]
    if packed:
        read, wanted = (
            AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).state_dict()
            for each in (tmp_path / "output", folder)
        )
        assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())
        assert read.keys() == wanted.keys()
        for name, of in stored_tensors_of(packed).items():
            packing = hub_tensors(packed)[of.whole][0].tensor.packing
            assert written.pop(name).dtype == (jnp.float32 if packing is FP8 else jnp.bfloat16)
            for ending in packing.endings:
                del stored[name + ending]
    for name in [name for name in stored if name.startswith(model.config.dropped)]:
        del stored[name]
    assert written.keys() == stored.keys()
    for name, tensor in stored.items():
        assert written[name].tobytes() == tensor.tobytes(), name
    named = stored_tensors_of(parameters).keys() - stored_tensors_of(packed).keys()
    assert named <= stored.keys()


# ---- adapters ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ADAPTED, indirect=True)
def test_peft_computes_with_our_adapter_what_we_compute(family, model, tmp_path):
    """On the text part alone: a vision part has linear layers of the same names."""
    folder, _ = family
    ours = adapted(model, 1, rank=2, alpha=4.0)
    export_adapter(ours, tmp_path, str(folder))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    tokens = np.random.default_rng(0).integers(3, 300, (2, 21)).astype(np.int32)
    with torch.no_grad():
        wanted = theirs(input_ids=torch.from_numpy(tokens)).logits.numpy()
    found = tiny_models.hidden_states(ours, tokens) @ ours.head_weight.T
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    adapted_modules = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert not any("vision" in name for name in adapted_modules)


# ---- mistakes ------------------------------------------------------------------------------------


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


def without(path):
    """A parameter of every layer is zero."""

    def change(model, patch):
        for each in model.config.parameters:
            if each.tensor.path == path:
                weight = functools.reduce(getattr, each.path.split("."), model)
                weight[...] = jnp.zeros_like(weight[...])

    return change


def no_sinks(model, patch):
    """A sink of minus infinity takes no weight; zero would take some."""
    for each in model.config.parameters:
        if each.tensor.path == "sinks":
            weight = functools.reduce(getattr, each.path.split("."), model)
            weight[...] = jnp.full_like(weight[...], -1e9)


def with_yarn(model, patch):
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


def halves_that_turn(model, patch):
    patch.setattr(llama4, "rotate", lambda x, angle, pairs: rope.rotate(x, angle))


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


def rope_of_halves(model, patch):
    patch.setattr(latent_attention, "rotate", lambda x, angle, factor, _: rotate(x, angle, factor))


def all_keys(model, patch):
    patch.setattr(ranges, "with_choice", lambda seen, *_: seen)


def one_key_more(model, patch):
    for stack in ("layers_0_0", "layers_1_0"):
        own = getattr(model, stack).attention.indexer
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
    "halves that turn": ("llama4-scout", halves_that_turn),
    "all keys": ("deepseek-v32", all_keys),
    "one key more": ("deepseek-v32", one_key_more),
    "adjacent rope in the indexer": ("deepseek-v32", adjacent_rope_in_the_indexer),
    "no correction of the choice": ("deepseek-v3", without("router.correction")),
    "no groups": ("deepseek-v3", in_router(kept_groups=4)),
    "weights that are not normalised": ("deepseek-v3", not_normalised),
    "no factor of the weights": ("deepseek-v3", in_router(route_factor=1.0)),
    "no magnitude": ("deepseek-v3", with_config(score_factor=1.0)),
    "rope of halves": ("deepseek-v3", rope_of_halves),
    "no yarn": ("deepseek-v3", with_config(yarn=None)),
    "no sinks": ("gpt-oss", no_sinks),
    "no window in gpt-oss": ("gpt-oss", with_config(window=10**6)),
    "no limit": ("gpt-oss", no_limit),
    "a blunt activation": ("gpt-oss", lambda _, patch: patch.setattr(gpt_oss, "SHARPNESS", 1.0)),
    "whole bounds": ("gpt-oss", with_yarn),
    "no attention factor": ("gpt-oss", no_attention_factor),
    "no bias of the router": ("gpt-oss", without("router.bias")),
    "no bias of the experts": ("gpt-oss", without("experts.down.bias")),
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


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake, monkeypatch):
    """Each changes some log-prob by ten times the bound of the test above, or more."""
    name, make = MISTAKES[mistake]
    model, numbers = load(name), json.loads((GOLDEN / name / "golden.json").read_text())
    make(model, monkeypatch)
    token_logps.clear_cache()
    assert largest_error(model, numbers) > 1e-3
