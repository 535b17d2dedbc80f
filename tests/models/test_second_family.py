"""A second family that only these tests know: everything about a model follows from its table."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import second_family
import tiny_models
from flax import nnx
from qwix import QArray
from second_family import CONFIG, LOCAL, NAMES, SIZES, STORED_AS, WHOLE
from tiny_adapters import adapted

from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.adapters.lora import add_adapters, target_paths
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.adapters.peft_files import export_adapter, load_adapter
from tddpo_jax.batches.layout import Shape, score_count
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import LoraConfig, TrainConfig
from tddpo_jax.generation.batching import cached_numbers, continue_prompts
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.models import families
from tddpo_jax.models.decoder import Decoder, linear_layers
from tddpo_jax.models.flops import matmul_parameters, useful_flops
from tddpo_jax.models.tensor_table import hub_tensors, linear_parameters, parameter_count
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.mesh import check_mesh
from tddpo_jax.placement.shardings import path_name, place, row_sharding, tree_shardings
from tddpo_jax.planning.abstract import abstract_weights, placed
from tddpo_jax.planning.memory import arithmetic
from tddpo_jax.scoring.forward import hidden_states, view_of
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.weights import hugging_face

# The kinds of the five layers, in the order of the checkpoint.
KINDS = (LOCAL, WHOLE, LOCAL, WHOLE, LOCAL)
STACKS = (
    *(("layers_0_0", 0), ("layers_0_1", 0), ("layers_0_0", 1), ("layers_0_1", 1)),
    ("layers_1_0", 0),
)
MESH = (1, 4, 2)
LENGTHS = [(9, 30, 14), (1, 5, 40), (25, 3, 3), (12, 12, 12)]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "zebra", second_family.FAMILY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return second_family.save(tmp_path_factory.mktemp("zebra") / "model")


@pytest.fixture
def model(folder):
    return tiny_models.load(folder)


def batch_of_pairs(rows):
    (batch,) = pack(tiny_models.random_examples(LENGTHS), [Shape(rows, 130, 120, 3)])
    return batch


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_is_the_model():
    """Expected: the shapes of a model that is made."""
    abstract = jax.eval_shape(lambda key: Decoder(CONFIG, key), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(abstract, nnx.Param))
    made = {path_name(path): leaf.shape for path, leaf in leaves}
    assert made == {each.path: each.stacked_shape for each in CONFIG.parameters}
    assert parameter_count(CONFIG.parameters) == tiny_models.count_parameters(abstract)


def test_an_unknown_family_names_those_that_are_known(folder, monkeypatch):
    monkeypatch.delitem(families.FAMILIES, "zebra")
    with pytest.raises(ValueError, match=r"model_type = 'zebra' .* \(only llama, .+\)"):
        hugging_face.read_config(folder)


def test_the_checkpoint_comes_back_bit_for_bit(folder, model, tmp_path):
    """Layer n of the file is where the decoder computes it; values are turned on both ways."""
    tensors = tiny_models.tensors_of(folder)
    for number, (stack, at) in enumerate(STACKS):
        block = getattr(model, stack)
        found = {name: getattr(block, name).weight[...][at] for name in NAMES}
        for name in NAMES:
            stored = tensors[f"zebra.{number}.{STORED_AS.get(name, name)}.weight"]
            wanted = stored.T if name == "tell" else stored
            np.testing.assert_array_equal(found[name], wanted)
    hugging_face.export(model, folder, tmp_path / "output")
    written = tiny_models.tensors_of(tmp_path / "output")
    assert written.keys() == tensors.keys() == hub_tensors(CONFIG.parameters).keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)


# ---- the pass over the layers --------------------------------------------------------------------


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_segments_are_a_loop_over_the_layers(model, remat):
    """Expected: every block by itself, in the order of the checkpoint, with a dense mask."""
    batch = jax.tree.map(jnp.asarray, batch_of_pairs(2))
    view = view_of(batch)

    @jax.jit
    def loop(model):
        angles, x = CONFIG.angles(view.position), model.embed[...][batch.tokens]
        for shape, (stack, at) in zip(KINDS, STACKS, strict=True):
            block = jax.tree.map(lambda leaf, at=at: leaf[at], getattr(model, stack))

            def attend(q, k, v, shape=shape):
                settings = {"window": shape.window, "scale": shape.scale}
                return tiny_models.dense_attention(q, k, v, view, **settings), None

            x, _ = block(x, angles, attend)
        return model.norm(x)

    found = jax.jit(functools.partial(tiny_models.run, remat=remat))(model, batch)
    np.testing.assert_allclose(found, loop(model), atol=1e-4)


def test_dropout_draws_anew_in_every_layer(model):
    """All five layers change the result, and the same key draws the same."""
    add_adapters(model, LoraConfig(rank=2, dropout=0.5), 0, tiny_models.one_device())
    for linear in linear_layers(model).values():
        linear.adapter.b[...] = jnp.ones_like(linear.adapter.b[...])
    batch = jax.tree.map(jnp.asarray, batch_of_pairs(2))
    run = jax.jit(lambda key: tiny_models.run(model, batch, dropout_key=key))
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


# ---- on a mesh -----------------------------------------------------------------------------------


def test_the_mesh_must_divide_every_layer():
    check_mesh(tiny_models.mesh_of(*MESH), CONFIG)
    with pytest.raises(ValueError, match=r"mesh\.tensor: 4 does not divide .* key/value heads, 2"):
        check_mesh(tiny_models.mesh_of(1, 2, 4), CONFIG)


def test_eight_devices_compute_what_one_does(folder):
    """Log-probs and the gradients of their sum; expected: one device, 1e-4 relative."""

    def on_mesh(mesh):
        model = hugging_face.load(folder, mesh)
        how = Computation(jnp.float32, "xla", "full", row_sharding(mesh), "tiles")
        rows = jax.tree.map(lambda x: place(x, row_sharding(mesh)), batch_of_pairs(4))

        def value(model, batch):
            logps = branch_logps(hidden_states(model, batch, how), model.head_weight, batch)
            return jnp.sum(logps * batch.weight[..., None]), logps

        both = tiny_models.quick_jit(jax.value_and_grad(value, has_aux=True))
        (_, logps), gradients = both(model, rows)
        return np.asarray(logps), jax.tree.map(np.asarray, gradients)

    (logps, gradients), (wanted_logps, wanted) = map(
        on_mesh, (tiny_models.mesh_of(*MESH), tiny_models.one_device())
    )
    np.testing.assert_allclose(logps, wanted_logps, rtol=1e-4)
    for got, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(got - expected) <= 1e-4 * np.linalg.norm(expected)


def test_training_places_its_state_like_the_parameters(folder):
    """Both moments of a matrix are shared by devices; a path that no table knows is an error."""
    mesh = tiny_models.mesh_of(*MESH)
    trained = nnx.state(hugging_face.load(folder, mesh), nnx.Param)
    state = jax.eval_shape(make_optimizer(TrainConfig(), CONFIG).init, trained)
    places = jax.tree_util.tree_leaves_with_path(tree_shardings(state, CONFIG, mesh))
    shared = [path_name(path) for path, each in places if each.spec != jax.sharding.PartitionSpec()]
    matrices = [each.path for each in CONFIG.parameters if len(each.shape) == 2]
    assert len(shared) == 2 * len(matrices)
    with pytest.raises(KeyError, match="stripes"):
        tree_shardings({"mu": {"layers_0_0": {"stripes": jnp.zeros(3)}}}, CONFIG, mesh)
    with pytest.raises(KeyError, match="stripes"):
        make_optimizer(TrainConfig(), CONFIG).init({"stripes": jnp.zeros(3)})


# ---- adapters and four bits ----------------------------------------------------------------------


def test_adapters_go_to_the_layers_by_their_own_names():
    everywhere = target_paths(LoraConfig(), CONFIG)
    assert everywhere == [f"layers_{stack}.{n}" for stack in ("0_0", "0_1", "1_0") for n in NAMES]
    mixing = target_paths(LoraConfig(targets=("mix",)), CONFIG)
    assert mixing == ["layers_0_0.mix", "layers_0_1.mix", "layers_1_0.mix"]
    message = r"lora\.targets: q_proj names nothing that .* here, only ask, know, tell, mix"
    with pytest.raises(ValueError, match=message):
        target_paths(LoraConfig(targets=("mix", "q_proj")), CONFIG)


def test_adapters_pass_through_pefts_files(model, folder, tmp_path):
    """Tensors carry the names and numbers of the checkpoint's layers."""
    first = adapted(model, 1, rank=3, targets=("mix", "tell"))
    export_adapter(first, tmp_path / "adapter", str(folder))
    tensors = tiny_models.tensors_of(tmp_path / "adapter")
    name = "base_model.model.zebra.3.blend.lora_A.weight"
    np.testing.assert_array_equal(tensors[name], first.layers_0_1.mix.adapter.a[...][1])
    assert len(tensors) == 5 * 2 * 2
    attributes = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert attributes["target_modules"] == ["blend", "tell"]
    second = tiny_models.load(folder)
    load_adapter(second, tmp_path / "adapter", tiny_models.one_device())
    ours, theirs = (nnx.state(each, nnx.Param) for each in (first, second))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_four_bits(model):
    """Every linear layer and nothing else, as the plan has it."""
    quantize(model)
    weights = [linear.weight.get_value() for linear in linear_layers(model).values()]
    assert all(isinstance(weight, QArray) for weight in weights)
    add_adapters(model, LoraConfig(), 0, tiny_models.one_device())
    mesh = tiny_models.mesh_of(*MESH)
    config = resolve({"train": {"mode": "qlora"}})
    parts = abstract_weights(config, CONFIG, jnp.float32)[1:]
    planned = {
        path_name(path): (leaf.shape, leaf.dtype)
        for part in parts
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed(part, CONFIG, mesh))
    }
    leaves = jax.tree_util.tree_leaves_with_path(model)
    assert planned == {path_name(path): (leaf.shape, leaf.dtype) for path, leaf in leaves}


# ---- decoding ------------------------------------------------------------------------------------


def test_decoding_is_computing_from_scratch(model):
    """Greedy, with prompts on both sides of the window and answers that leave it behind, with an
    adapter and without. Expected: the most likely token of the whole sequence, again and again."""
    models = [model, adapted(model, 2, rank=2, targets=("ask", "tell"))]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, SIZES["vocabulary"], length).astype(np.int32) for length in (3, 40)]
    found = continue_prompts(
        adapter_set(models),
        prompts * 2,
        [Sampling(max_new_tokens=20)] * 4,
        [(0,)] * 4,
        [0, 0, 1, 1],
        stop_ids=(-1,),
        bos=None,
        mesh=tiny_models.one_device(),
        dtype=jnp.float32,
    )
    for number, answer in enumerate(found):
        policy, prompt = models[number // 2], prompts[number % 2]
        whole = np.concatenate([prompt, answer.token_ids]).astype(np.int32)
        states = tiny_models.hidden_states(policy, whole[None])[0]
        predicted = np.argmax(states @ policy.head_weight.T, axis=-1)
        np.testing.assert_array_equal(predicted[len(prompt) - 1 : -1], answer.token_ids)
    assert len({token for answer in found for token in answer.token_ids}) > 10


def test_a_cache_holds_the_keys_and_values_of_every_layer():
    """Three layers of 2 x (32 + 16) numbers, two of 4 x (16 + 48)."""
    assert cached_numbers(CONFIG) == 3 * 2 * (32 + 16) + 2 * 4 * (16 + 48)


# ---- counting ------------------------------------------------------------------------------------


def test_useful_operations_are_those_of_every_token():
    """Expected: counted token by token, the keys within a window one by one."""
    assert matmul_parameters(CONFIG) == sum(map(second_family.weights_of_layer, KINDS))
    for pair in tiny_models.random_examples(LENGTHS):
        prompt, responses = len(pair.prompt), [len(ids) - 1 for ids in pair.responses]
        positions = [*range(prompt), *(prompt + n for each in responses for n in range(each))]
        total = 2 * SIZES["vocabulary"] * SIZES["width"] * score_count(pair) * 3
        for shape in KINDS:
            for position in positions:
                keys = [
                    key for key in range(position + 1) if position - key < (shape.window or 1000)
                ]
                total += 2 * second_family.weights_of_layer(shape) * 3
                total += 2 * len(keys) * shape.heads * (shape.size + shape.value_size) * 3
        assert useful_flops(CONFIG, pair, frozen_base=False) == total


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_plan_counts_every_layer(mode):
    """In float32, on two devices that share all but norms and adapters. Full fine-tuning: weights,
    sums and two moments. Adapters: the weights, and four times rank 16 x (inputs + outputs)."""
    config = resolve({"train": {"mode": mode}, "model": {"dtype": "float32"}, "mesh": {"fsdp": 2}})
    memory = arithmetic(config, CONFIG, Shape(2, 128, 64, 2))
    vectors = parameter_count([each for each in CONFIG.parameters if len(each.shape) == 1])
    weights = 4 * ((parameter_count(CONFIG.parameters) - vectors) // 2 + vectors)
    sides = sum(len(w.layers) * sum(w.shape) for w in linear_parameters(CONFIG.parameters))
    expected = 4 * weights if mode == "full" else weights + 4 * 4 * 16 * sides
    assert memory.resident - expected == 4  # Adam's count
    assert memory.activations > 0
    assert memory.gathered > 0
