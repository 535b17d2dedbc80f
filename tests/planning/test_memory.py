"""What a plan counts: shapes on shardings, the bytes of arrays and programs, and lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from jax.sharding import NamedSharding
from llama_plans import LLAMA, config_of

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.batches.layout import Shape
from tddpo_jax.config.reading import resolve
from tddpo_jax.models.architecture import kinds_of_layers
from tddpo_jax.placement.shardings import bytes_of_device, path_name, tree_shardings
from tddpo_jax.planning import compiler, lengths, memory, plan
from tddpo_jax.planning.abstract import abstract_step, abstract_weights, placed
from tddpo_jax.system.devices import DEVICES, GIB
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import model_folder

GPT_OSS = model_folder("openai/gpt-oss-20b")

# Inputs are blocks of 64; those of the feed-forward are three, which two devices cannot share.
SHAPE = {"vocabulary": 64, "width": 128, "heads": 8, "key_value_heads": 4, "head_size": 16}
SHAPE["feed_forward"] = 192


def shape(devices, length=9216):
    return Shape(devices, length, 6000, 20)


# ---- shapes on shardings -------------------------------------------------------------------------


def test_the_shape_that_ships_is_llama_2s():
    """6,738,415,616 parameters; rank 16 on seven layers of 32 adds 39,976,960."""
    model = read_config(LLAMA)
    assert plan.parameter_counts(config_of("llama2_7b"), model) == (6_738_415_616,) * 2
    expected = (6_738_415_616, 39_976_960)
    assert plan.parameter_counts(config_of("llama2_7b_qlora"), model) == expected


def test_frozen_routers_count_among_the_parameters_and_not_among_the_trained():
    """gpt-oss-20b: 24 layers whose routers have 32 rows of 2,880 weights and a bias."""
    counts = plan.parameter_counts(config_of("llama2_7b"), read_config(GPT_OSS))
    assert counts == (20_914_757_184, 20_914_757_184 - 24 * 32 * 2881)


@pytest.mark.parametrize("mode", ["full", "qlora"])
def test_shapes_lie_where_the_arrays_lie(mode):
    """Expected: a real model, quantised and sharded, leaf by leaf."""
    mesh = tiny_models.mesh_of(1, 4, 2)
    model = tiny_models.llama(**SHAPE)
    model = jax.device_put(model, tree_shardings(model, model.config, mesh))
    config = resolve({"train": {"mode": mode}})
    _, trained, frozen = abstract_weights(config, model.config, jnp.float32)
    if mode == "qlora":
        quantize(model)
        lora.add_adapters(model, config.lora, 0, mesh)
    ours = {
        path_name(path): leaf
        for part in (placed(trained, model.config, mesh), placed(frozen, model.config, mesh))
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    }
    arrays = jax.tree_util.tree_leaves_with_path(model)
    assert len(arrays) == len(ours)
    for path, array in arrays:
        leaf = ours[path_name(path)]
        assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype), path_name(path)
        held = array.addressable_shards[0].data.shape
        assert leaf.sharding.shard_shape(leaf.shape) == held, path_name(path)


def test_four_bits_are_half_a_byte():
    mesh = tiny_models.mesh_of(1, 8, 1)
    place = NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    leaf = jax.ShapeDtypeStruct((16, 3), jnp.uint4, sharding=place)
    assert bytes_of_device([leaf, leaf]) == 2 * 2 * 3 / 2


def test_the_compiler_is_given_what_is_counted():
    """XLA's arguments of a step, on eight devices, against the bytes of the shapes."""
    mesh = tiny_models.mesh_of(1, 8, 1)
    config = resolve({"mesh": {"fsdp": 8}})
    model = tiny_models.llama(**SHAPE).config
    step = abstract_step(config, model, mesh, Shape(8, 128, 64, 2), "xla", jnp.dtype("float32"))
    compiled = compiler.compile_step(step)
    update = compiled.update.memory_analysis().argument_size_in_bytes
    scalars = 4 * 4  # the learning rate, one count of Adam and two totals
    assert update == pytest.approx(bytes_of_device([step.state, step.sums]), abs=scalars)
    gradients = compiled.gradients.memory_analysis()
    assert compiled.report.resident > gradients.argument_size_in_bytes
    assert compiled.report.gradients > 0
    assert compiled.report.peak >= compiled.report.resident + compiled.report.gradients


# ---- arithmetic ----------------------------------------------------------------------------------

# GiB that XLA gave beside the arguments, compiled for the devices (`test_compile_gpu`, `plan`).
COMPILED = {
    ("llama2_7b", 8, "dots", 9216): (12.56, 28.84),
    ("llama2_7b", 8, "none", 9216): (12.56, 106.19),
    ("llama2_7b", 8, "full", 9216): (12.56, 5.65),
    ("llama2_7b", 4, "dots", 9216): (25.11, 28.90),
    ("llama2_7b", 2, "dots", 3072): (50.22, 10.57),
    ("llama2_7b", 1, "full", 9216): (100.41, 6.29),
    ("llama2_7b", 1, "none", 3072): (100.41, 38.00),
    ("llama2_7b_lora", 1, "dots", 9216): (13.15, 28.36),
    ("llama2_7b_lora", 1, "none", 3072): (13.15, 35.32),
    ("llama2_7b_lora", 8, "none", 3072): (2.165, 35.31),
    ("llama2_7b_lora", 8, "dots", 9216): (2.165, 28.39),
    ("llama2_7b_qlora", 1, "dots", 9216): (4.29, 28.41),
    ("llama2_7b_qlora", 1, "none", 3072): (4.29, 35.21),
    ("llama2_7b_qlora", 2, "dots", 9216): (2.44, 28.45),
}


@pytest.mark.parametrize(("name", "fsdp", "remat", "length"), COMPILED)
def test_arithmetic_is_near_the_compiler(name, fsdp, remat, length):
    """What is always there to 0.1 %, the rest to 6 %."""
    resident, beside = COMPILED[name, fsdp, remat, length]
    mesh = {"data": 1, "fsdp": fsdp}
    config = config_of(name, mesh=mesh, model={"remat": remat})
    found = memory.arithmetic(config, read_config(LLAMA), shape(fsdp, length))
    assert found.resident / GIB == pytest.approx(resident, rel=1e-3)
    assert (found.peak - found.resident) / GIB == pytest.approx(beside, rel=0.06)


@pytest.mark.parametrize(("length", "beside"), [(4096, 8.25), (8192, 12.43)])
def test_arithmetic_is_near_the_compiler_where_experts_are_at_work(length, beside):
    """gpt-oss-20b with adapters on experts, in float32 on eight devices. Expected: what XLA gave
    beside the arguments, compiled for CPUs (`plan`), to 6 %."""
    config = config_of("gpt_oss_20b_lora", model={"dtype": "float32"})
    found = memory.arithmetic(config, read_config(GPT_OSS), shape(8, length))
    assert (found.peak - found.resident) / GIB == pytest.approx(beside, rel=0.06)


def test_a_copy_of_a_layer_has_all_experts_of_its_device():
    """gpt-oss-20b in full training on one device copies a layer in two bytes for each weight. With
    32 experts more, it has theirs too: three matrices of 2,880 by 2,880, and a row of the router.
    Of eight devices each has an eighth of the experts."""
    config, model = config_of("llama2_7b", mesh={"fsdp": 1}), read_config(GPT_OSS)
    more = dataclasses.replace(model, experts=64)
    few, many = (memory.arithmetic(config, each, shape(1)) for each in (model, more))
    added = 32 * 3 * 2880 * 2880
    assert many.gathered - few.gathered == 2 * (added + 32 * 2880)
    (_, layer), *_ = kinds_of_layers(model)
    assert memory.weights_at_work(layer, 1) - memory.weights_at_work(layer, 8) == added * 7 // 8


@pytest.mark.parametrize(
    ("name", "hub_id", "rows"),
    [
        ("llama2_7b", "meta-llama/Llama-2-7b-hf", 8),
        ("llama4_maverick_lora", "meta-llama/Llama-4-Maverick-17B-128E-Instruct", 16),
    ],
)
def test_the_longest_row_is_the_longest(name, hub_id, rows):
    """It fits, and 1,024 tokens more do not. Experts need more memory up to some length only."""
    config = config_of(name)
    model, device = read_config(model_folder(hub_id)), DEVICES["h100-80"]
    room = memory.usable(device)
    longest = memory.longest_row(config, model, shape(rows), room)
    assert longest > memory.ROW_STEP
    assert memory.arithmetic(config, model, shape(rows, longest)).peak <= room
    beyond = shape(rows, longest + memory.ROW_STEP)
    assert memory.arithmetic(config, model, beyond).peak > room


def test_stated_lengths_have_the_stated_means():
    """dpo-mix-7k's 6,750 pairs; cutting at half of 2,048 tokens takes a few from the prompts."""
    pairs = lengths.stated_pairs(config_of("llama2_7b"), read_config(LLAMA))
    found = np.array([[len(ids) for ids in (pair.prompt, *pair.responses)] for pair in pairs])
    assert found.shape == (6750, 3)
    np.testing.assert_allclose(found.mean(axis=0), lengths.STATED_MEANS, rtol=0.05)
    assert (found[:, 0] + found[:, 1:].max(axis=1)).max() <= 2048
