"""Experts in four bits: MXFP4 stays as it is stored, and everything else becomes NF4."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_deepseek
import tiny_gpt_oss
import tiny_models
from places import GOLDEN
from qwix import QArray

from tddpo_jax.adapters import load
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.errors import UserError
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.linear import dense
from tddpo_jax.models.mxfp4 import four_bits, unpacked
from tddpo_jax.placement.shardings import path_name
from tddpo_jax.weights import hugging_face, packed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gpt_oss.write(tmp_path_factory.mktemp("packed") / "model")


def leaves_of(model):
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, QArray))
    return {path_name(path): leaf for path, leaf in leaves}


def test_four_bits_and_scales_are_the_numbers():
    """With every exponent of finite products. For 2^-127, bfloat16 has no exponent."""
    blocks = np.random.default_rng(0).integers(0, 256, (1, 3, 252, 16), np.uint8)
    scales = np.broadcast_to(np.arange(252, dtype=np.uint8), (1, 3, 252))
    values, exact = four_bits(blocks, scales)
    product = values.astype(np.float32) * np.repeat(exact.astype(np.float32), 32, axis=1)
    np.testing.assert_array_equal(product, unpacked(blocks, scales).astype(np.float32))


def test_packed_experts_keep_their_values_and_the_rest_is_quantised(folder):
    """No router, sink, norm or bias is. On a mesh each device holds its own part."""
    mesh = tiny_models.mesh_of(1, 2, 2)
    found = leaves_of(load.load_base(folder, mesh, jnp.float32, quantized=True))
    whole = leaves_of(tiny_models.load(folder))
    small = {name for name, leaf in found.items() if isinstance(leaf, QArray)}
    assert {name.partition(".")[2] for name in small} == {
        *(f"{name}_proj.weight" for name in "qkvo"),
        *(f"experts.{name}.weight" for name in ("gate_up", "down")),
    }
    for name, leaf in found.items():
        if name not in small:
            np.testing.assert_array_equal(leaf, whole[name])
        elif "experts" in name:
            assert leaf.qvalue.dtype == ml_dtypes.float4_e2m1fn
            np.testing.assert_array_equal(dense(leaf), whole[name])
            parts = leaf.qvalue.sharding.shard_shape(leaf.shape)
            assert np.prod(parts) * 4 == np.prod(leaf.shape)
        else:
            np.testing.assert_allclose(dense(leaf), whole[name], atol=0.1)


def test_tensors_are_quantised_as_they_are_read(folder, tmp_path, monkeypatch):
    """Of a folder that is not packed. Expected: the codes of the whole model, quantised at once,
    and no array of a stack that is not in four bits."""
    unpacked_model = tiny_models.load(folder)
    hugging_face.export(unpacked_model, folder, tmp_path / "plain")
    whole = tiny_models.load(tmp_path / "plain")
    quantize(whole)
    made, zeros = [], hugging_face._zeros
    monkeypatch.setattr(
        hugging_face, "_zeros", lambda count, layer: made.append(layer) or zeros(count, layer)
    )
    mesh = tiny_models.one_device()
    found = load.load_base(tmp_path / "plain", mesh, jnp.float32, quantized=True)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    assert jax.tree.structure(found) == jax.tree.structure(whole)
    largest = max((layer for layer in made), key=lambda layer: layer.nbytes)
    assert largest.dtype == jnp.uint4


def test_devices_that_cannot_share_the_blocks_are_refused(folder, tmp_path):
    """The experts' second product has 128 inputs: four blocks of 32 as packed, two of 64 in NF4."""
    mesh = tiny_models.mesh_of(1, 1, 4)
    held = leaves_of(load.load_base(folder, mesh, jnp.float32, quantized=True))
    down = held["layers.experts.down.weight"]
    shapes = [part.sharding.shard_shape(part.shape) for part in (down.qvalue, down.scale)]
    assert shapes == [(1, 4, 64, 32), (1, 4, 64, 1)]
    message = (
        r"mesh\.tensor: 4 does not divide the 2 blocks of inputs of experts\.down in four bits"
    )
    plain = tmp_path / "plain"
    hugging_face.export(tiny_models.load(folder), folder, plain)
    with pytest.raises(ValueError, match=message):
        load.load_base(plain, mesh, jnp.float32, quantized=True)


def test_layers_of_which_some_alone_are_packed_are_refused(tmp_path):
    """Their experts would have two kinds of four bits in one stack."""
    folder = tiny_gpt_oss.write(tmp_path / "packed", layers=4)
    hugging_face.export(tiny_models.load(folder), folder, tmp_path / "plain")
    name = "model.layers.2.mlp.experts.down_proj"
    whole = tiny_models.tensors_of(tmp_path / "plain")[name]
    tiny_models.change_tensors(
        folder, **{name: whole, f"{name}_blocks": None, f"{name}_scales": None}
    )
    message = (
        r"layers\.\d\.mlp\.experts\.down_proj is \w+ and \w+, but other layers are \w+ and \w+"
    )
    with pytest.raises(UserError, match=message):
        load.load_base(folder, tiny_models.one_device(), jnp.float32, quantized=True)


def test_eight_bits_in_pieces_become_nf4(tmp_path, monkeypatch):
    """Of the numbers that they mean, in the embedding's dtype. Expected: the codes of the loaded
    model. Two devices hold copies of each part, and each piece is read once."""
    folder = tiny_deepseek.write(tmp_path / "model")
    whole = tiny_models.load(folder, jnp.bfloat16)
    quantize(whole)
    read, stored_tensor = [], packed.stored_tensor
    monkeypatch.setattr(
        packed, "stored_tensor", lambda *given: read.append(given[1]) or stored_tensor(*given)
    )
    mesh = tiny_models.mesh_of(2, 2, 1)
    found = leaves_of(load.load_base(folder, mesh, jnp.float32, quantized=True))
    assert len(read) == len(set(read)) > 50
    for name, wanted in leaves_of(whole).items():
        assert isinstance(wanted, QArray) == isinstance(found[name], QArray)
        jax.tree.map(np.testing.assert_array_equal, found[name], wanted)
    assert isinstance(found["layers_1_0.experts.gate_up.weight"], QArray)


def test_inputs_that_are_no_blocks_are_refused_as_they_are_read():
    folder = GOLDEN / "deepseek-v3" / "model"
    message = r"qlora: q_b_proj has 96 inputs, not a multiple of 64"
    with pytest.warns(UserWarning, match="further tokens"), pytest.raises(UserError, match=message):
        load.load_base(folder, tiny_models.one_device(), jnp.float32, quantized=True)


def test_experts_whose_inputs_are_no_blocks_are_named(folder):
    """As they are where tensors are read: `down` alone would be a layer of no experts."""
    config = dataclasses.replace(hugging_face.read_config(folder), feed_forward=96)
    message = r"qlora: experts\.down has 96 inputs, not a multiple of 64"
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda key: quantize(Decoder(config, key)), jax.random.key(0))
