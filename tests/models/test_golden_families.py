"""Tiny models of every family beside what transformers makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_models
import torch
from golden_families import FAMILIES, folder_of, largest_error, load, numbers_of, packed
from tiny_adapters import adapted
from transformers import AutoModelForCausalLM

from tddpo_jax.__main__ import generate_command
from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.adapters.peft_files import export_adapter
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.generation import generator
from tddpo_jax.generation.batching import continue_prompts
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.models.architecture import kinds_of_layers
from tddpo_jax.models.fp8 import FP8
from tddpo_jax.models.tensor_table import hub_tensors, parameter_count, stored_tensors_of
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.shardings import path_name, place, row_sharding
from tddpo_jax.scoring.forward import hidden_states
from tddpo_jax.weights import hugging_face

# A checkpoint may hold a layer that predicts further tokens.
pytestmark = pytest.mark.filterwarnings("ignore:.*predicts further tokens")

# Maverick's layers are Scout's, and one without experts. So where one device is enough and a test
# compiles long, Scout stands for both. Only Maverick has all names of adapters.
NOT_MAVERICK = [name for name in FAMILIES if name != "llama4-maverick"]
ADAPTED = [name for name in FAMILIES if name != "llama4-scout"]
PACKED = ["deepseek-v3", "deepseek-v32", "gpt-oss"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """The name of a family."""
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return load(family)


def test_the_table_holds_the_model(family, model):
    """The correction of a router's choice is no parameter in transformers."""
    counted = (each for each in model.config.parameters if each.tensor.path != "router.correction")
    assert parameter_count(counted) == numbers_of(family)["parameters"]


def test_two_loads_have_one_structure(family, model):
    """So no program is traced again for the second, and trees of both can be mapped together."""
    assert jax.tree.structure(load(family)) == jax.tree.structure(model)


def test_every_token_has_the_log_prob_of_transformers(family, model):
    assert largest_error(model, numbers_of(family)) < 1e-4


def gradient_norms(model, batch, states=tiny_models.run):
    """Norms of the gradients of the sum of logp_chosen - logp_rejected, by transformers' names."""

    def value(model):
        logps = branch_logps(states(model, batch), model.head_weight, batch)
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


@pytest.mark.parametrize("family", NOT_MAVERICK, indirect=True)
def test_every_gradient_has_the_norm_of_transformers(family, model):
    numbers = numbers_of(family)
    batch = jax.tree.map(jnp.asarray, packed(numbers, 1))
    assert_norms(tiny_models.quick_jit(gradient_norms)(model, batch), numbers)


def test_eight_devices_have_the_same_gradients(family):
    """The vocabularies are odd, so no mesh has a tensor axis. Two devices can share six experts."""
    folder, numbers = folder_of(family), numbers_of(family)
    config = hugging_face.read_config(folder)
    routed = any(layer.experts is not None for _, layer in kinds_of_layers(config))
    mesh = tiny_models.mesh_of(*((4, 2, 1) if routed else (2, 4, 1)))
    model = hugging_face.load(folder, mesh, jnp.float32)
    batch = jax.tree.map(lambda x: place(x, row_sharding(mesh)), packed(numbers, 8))
    how = Computation(jnp.float32, "xla", "none", row_sharding(mesh), "tiles")
    norms = functools.partial(gradient_norms, states=functools.partial(hidden_states, how=how))
    assert_norms(tiny_models.quick_jit(norms)(model, batch), numbers)


@pytest.mark.parametrize("family", NOT_MAVERICK, indirect=True)
def test_greedy_answers_are_those_of_transformers(family, model):
    """40 tokens with a cache, past any end of turn; no choice of transformers was close."""
    wanted = numbers_of(family)["continuations"]
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
    folder = folder_of(family)
    one = numbers_of(family)["continuations"][0]

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


# ---- exports -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export(family, tmp_path_factory):
    """The folder of an export of the model."""
    output = tmp_path_factory.mktemp("export") / "output"
    model = hugging_face.load(folder_of(family), tiny_models.one_device())
    hugging_face.export(model, folder_of(family), output)
    return output


def packings(model):
    """The packings of the tensors that a folder may hold packed, by the tensors' names."""
    parameters = [each for each in model.config.parameters if each.tensor.packing is not None]
    whole, stored = hub_tensors(parameters), stored_tensors_of(parameters)
    return {name: whole[of.whole][0].tensor.packing for name, of in stored.items()}


def parts(packing_of):
    return {name + ending for name, packing in packing_of.items() for ending in packing.endings}


def test_an_export_is_the_folder_bit_for_bit(family, model, export):
    """Every tensor comes back, also those of a part that is not trained. The next test looks at
    tensors that were packed."""
    written, stored = map(tiny_models.tensors_of, (export, folder_of(family)))
    packing_of = packings(model)
    dropped = {name for name in stored if name.startswith(model.config.dropped)}
    whole = stored.keys() - parts(packing_of) - dropped
    assert written.keys() - packing_of.keys() == whole
    for name in whole:
        assert written[name].tobytes() == stored[name].tobytes(), name
    assert stored_tensors_of(model.config.parameters).keys() - packing_of.keys() <= whole


@pytest.mark.parametrize("family", PACKED, indirect=True)
def test_what_was_packed_comes_back_unpacked(family, model, export):
    """transformers reads the export as it reads the folder."""
    written, stored = map(tiny_models.tensors_of, (export, folder_of(family)))
    packing_of = packings(model)
    assert parts(packing_of) <= stored.keys()
    for name, packing in packing_of.items():
        assert written[name].dtype == (jnp.float32 if packing is FP8 else jnp.bfloat16)
    read, wanted = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).state_dict()
        for each in (export, folder_of(family))
    )
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())


# ---- adapters ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ADAPTED, indirect=True)
def test_peft_computes_with_our_adapter_what_we_compute(family, model, tmp_path):
    """On the text part alone: a vision part has linear layers of the same names."""
    folder = folder_of(family)
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
