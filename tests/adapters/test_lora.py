"""Adapters beside a frozen base, and the base in four bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import nnx
from qwix import QArray

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.lora import add_adapters, check_fresh, fresh_adapters, merged
from tddpo_jax.adapters.nf4 import NF4_BLOCK, quantize
from tddpo_jax.config.schema import LoraConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.linear import Adapter, LoraParam
from tddpo_jax.models.llama.tensors import LINEAR_NAMES
from tddpo_jax.placement.shardings import path_name, tree_shardings

TOKENS = np.random.default_rng(1).integers(0, tiny_models.CONFIG.vocabulary, (3, 37), np.int32)
CONFIG = LoraConfig(rank=3, alpha=7.0)
# The inputs of every linear layer are blocks of 64, on four times two devices too.
QUANTIZED = {
    "vocabulary": 62,
    "width": 256,
    "layers": 2,
    "heads": 4,
    "head_size": 32,
    "feed_forward": 128,
}


def with_adapters(model, config=CONFIG, seed=0):
    add_adapters(model, config, seed, tiny_models.one_device())
    return model


def trained(model, seed=3):
    """The model with adapters whose second factor is no longer zero."""
    rng = np.random.default_rng(seed)
    for name in LINEAR_NAMES:
        adapter = getattr(model.layers, name).adapter
        adapter.b[...] = jnp.asarray(0.3 * rng.normal(size=adapter.b.shape), jnp.float32)
    return model


# ---- adapters ------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing():
    """B is zero, so it adds zero: bit for bit the model without it."""
    expected = tiny_models.hidden_states(tiny_models.llama(), TOKENS)
    np.testing.assert_array_equal(
        tiny_models.hidden_states(with_adapters(tiny_models.llama()), TOKENS), expected
    )


def test_a_fresh_adapter_starts_as_in_peft():
    """A uniform within 1/sqrt(inputs), whose standard deviation is the bound over sqrt(3)."""
    model = with_adapters(tiny_models.llama(), LoraConfig(rank=61, alpha=4.0))
    for name in LINEAR_NAMES:
        linear = getattr(model.layers, name)
        layers, outputs, inputs = linear.weight.shape
        a, b = linear.adapter.a[...], linear.adapter.b[...]
        assert (a.shape, b.shape) == ((layers, 61, inputs), (layers, outputs, 61))
        assert a.dtype == b.dtype == jnp.float32
        assert np.abs(a).max() <= inputs**-0.5
        np.testing.assert_allclose(np.std(a, axis=(1, 2)), (3 * inputs) ** -0.5, rtol=0.05)
        assert linear.adapter.scale == 4.0 / 61


def test_the_seed_decides_where_adapters_start():
    """The same seed the same factors, another seed others; no two layers start alike."""

    def start(seed):
        return fresh_adapters(tiny_models.llama(), CONFIG, seed, tiny_models.one_device())

    first, again, other = start(0), start(0), start(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    factors = [np.asarray(x) for x in jax.tree.leaves(first) if np.any(x)]
    others = [np.asarray(x) for x in jax.tree.leaves(other) if np.any(x)]
    assert all(np.abs(x - y).min() > 0 for x, y in zip(factors, others, strict=True))
    layers = {layer.tobytes() for factor in factors for layer in factor}
    assert len(layers) == tiny_models.CONFIG.layers * len(LINEAR_NAMES)


def test_only_the_targets_get_adapters():
    model = with_adapters(tiny_models.llama(), LoraConfig(rank=2, targets=("q_proj", "down_proj")))
    assert model.layers.q_proj.adapter is not None
    assert model.layers.down_proj.adapter is not None
    assert model.layers.v_proj.adapter is None
    assert len(jax.tree.leaves(nnx.state(model, LoraParam))) == 4


def test_gradients_are_those_of_the_added_product():
    """With W' = W + (alpha / rank) B A, the chain rule gives dB = (alpha / rank) dW' A^T and
    dA = (alpha / rank) B^T dW', where dW' is the gradient of the merged model. Nothing else has a
    gradient."""
    model = trained(with_adapters(tiny_models.llama()))
    graphdef, adapters, base = nnx.split(model, LoraParam, ...)
    weight = np.random.default_rng(3).normal(size=(*TOKENS.shape, tiny_models.CONFIG.width))

    def value(model):
        return jnp.sum(
            tiny_models.plain_states(model, jnp.asarray(TOKENS)) * weight.astype(np.float32)
        )

    def value_of_adapters(adapters, base):
        return value(nnx.merge(graphdef, adapters, base))

    gradients = tiny_models.quick_jit(jax.grad(value_of_adapters))(adapters, base)
    full = tiny_models.quick_jit(jax.grad(value))(merged(model, jnp.float32))
    found = {path_name(p): g for p, g in jax.tree_util.tree_leaves_with_path(gradients)}
    assert len(found) == 2 * len(LINEAR_NAMES)
    for name in LINEAR_NAMES:
        adapter = getattr(model.layers, name).adapter
        change = (7.0 / 3) * getattr(full.layers, name).weight[...]
        expected = {
            "a": jnp.einsum("LOR,LOI->LRI", adapter.b[...], change),
            "b": jnp.einsum("LOI,LRI->LOR", change, adapter.a[...]),
        }
        for factor, wanted in expected.items():
            got = found[f"layers.{name}.adapter.{factor}"]
            np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


def test_merged_is_the_same_model():
    """Expected: the adapters' own additions, 1e-5 relative; what was merged stays as it was."""
    model = trained(with_adapters(tiny_models.llama()))
    expected = tiny_models.hidden_states(model, TOKENS)
    alone = tiny_models.hidden_states(tiny_models.llama(), TOKENS)
    assert np.abs(expected - alone).max() > 0.1
    single = merged(model, jnp.float32)
    assert not jax.tree.leaves(nnx.state(single, LoraParam))
    actual = tiny_models.hidden_states(single, TOKENS)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(tiny_models.hidden_states(model, TOKENS), expected)


def test_merging_makes_one_layer_at_a_time():
    """Of seven layers of experts. Expected: room for less than two of them in float32."""
    weight, a, b = (
        jax.ShapeDtypeStruct((7, 4, *shape), jnp.float32)
        for shape in ((2, 32, 64), (3, 64), (2, 32, 3))
    )
    program = jax.jit(lora._whole, static_argnames="dtype")
    used = program.lower(weight, (a, b, 2.0), dtype=jnp.bfloat16).compile().memory_analysis()
    assert used.temp_size_in_bytes < 2 * (4 * 2 * 32 * 64) * 4


def test_merged_has_the_dtype_that_was_asked_for():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_models.llama())
    for dtype in (jnp.bfloat16, jnp.float32):
        single = merged(trained(with_adapters(half)), dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("zeros", [0, 2])
def test_a_start_without_exactly_one_zero_factor_is_refused(zeros):
    """Two zero factors have zero gradients for ever; none is no fresh start."""
    model = with_adapters(tiny_models.llama())
    check_fresh(model)
    adapter = model.layers.k_proj.adapter
    factor = adapter.a if zeros == 2 else adapter.b
    factor[...] = jnp.full(factor.shape, 0.0 if zeros == 2 else 1.0)
    problem = f"k_proj must start with exactly one zero factor, but has {zeros}"
    with pytest.raises(ValueError, match=problem):
        check_fresh(model)


# ---- dropout -------------------------------------------------------------------------------------


def test_dropout_drops_inputs_and_scales_the_rest():
    """With identity factors the addition is the input itself: zeroed with probability 0.4, else
    divided by 0.6. Of 7 x 11 x 13 inputs 0.4 are dropped, give or take 3 standard deviations."""
    adapter = Adapter(13, 13, 13, 1.0, 0.4, jax.random.key(0))
    adapter.a[...] = adapter.b[...] = jnp.eye(13)
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (7, 11, 13)), jnp.float32)
    np.testing.assert_allclose(adapter(x, None), x, rtol=1e-6)
    out = adapter(x, jax.random.key(1))
    dropped = out == 0
    np.testing.assert_allclose(out[~dropped], x[~dropped] / 0.6, rtol=1e-6)
    assert abs(np.mean(dropped) - 0.4) < 3 * np.sqrt(0.4 * 0.6 / x.size)


def test_dropout_changes_training_alone():
    """Without a key, as in evaluation, dropout does nothing; with one it does, and layers, linear
    layers and keys all draw for themselves."""
    plain = trained(with_adapters(tiny_models.llama()))
    dropping = trained(
        with_adapters(tiny_models.llama(), LoraConfig(rank=3, alpha=7.0, dropout=0.4))
    )
    expected = tiny_models.hidden_states(plain, TOKENS)
    np.testing.assert_array_equal(tiny_models.hidden_states(dropping, TOKENS), expected)

    @tiny_models.quick_jit
    def train(model, key):
        view = tiny_models.reading_order(*TOKENS.shape)
        return model(jnp.asarray(TOKENS), view, dtype=jnp.float32, dropout_key=key)[0]

    one, again, other = (train(dropping, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - expected).max() > 0.01
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_allclose(train(plain, jax.random.key(0)), expected, atol=1e-5)


# ---- four bits -----------------------------------------------------------------------------------

# The sixteen numbers of Dettmers et al. (2023), appendix E.
CODEBOOK = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


@pytest.fixture(scope="module")
def quantized():
    """A quantised model and the same with its weights made whole."""
    model = tiny_models.llama(**QUANTIZED)
    quantize(model)
    return model, merged(model, jnp.float32)


def test_weights_are_nf4_in_blocks_of_64(quantized):
    """Expected: each block of 64 inputs divided by its largest magnitude, and each quotient moved
    to the nearest number of the published codebook."""
    assert NF4_BLOCK == 64
    _, whole = quantized
    for name in LINEAR_NAMES:
        weight = np.asarray(getattr(tiny_models.llama(**QUANTIZED).layers, name).weight[...])
        blocks = weight.reshape(*weight.shape[:2], -1, 64)
        scale = np.abs(blocks).max(axis=-1, keepdims=True)
        nearest = np.abs((blocks / scale)[..., None] - CODEBOOK).argmin(axis=-1)
        expected = (CODEBOOK[nearest] * scale).reshape(weight.shape)
        actual = getattr(whole.layers, name).weight[...]
        # A quotient halfway between two numbers may go either way.
        assert np.mean(np.abs(actual - expected) > 1e-6) < 1e-4, name


def test_four_bits_and_a_scale_are_stored(quantized):
    """An eighth of float32, and one float32 for 64 weights."""
    model, _ = quantized
    for name in LINEAR_NAMES:
        weight = getattr(model.layers, name).weight.get_value()
        assert isinstance(weight, QArray)
        assert jnp.iinfo(weight.qvalue.dtype).bits == 4
        assert weight.scale.size * 64 == weight.qvalue.size


def test_a_quantised_model_computes_what_its_dequantised_weights_say(quantized):
    """Expected: the dequantised weights as an ordinary model, through the same scan."""
    model, whole = quantized
    assert not any(isinstance(x, QArray) for x in jax.tree.leaves(whole))
    expected = tiny_models.hidden_states(whole, TOKENS)
    np.testing.assert_allclose(tiny_models.hidden_states(model, TOKENS), expected, atol=1e-5)
    unquantised = tiny_models.hidden_states(tiny_models.llama(**QUANTIZED), TOKENS)
    assert np.abs(unquantised - expected).max() > 0.1


def test_fresh_adapters_on_a_quantised_base_change_nothing(quantized):
    """The reference of QLoRA is the quantised base, so that step 0 starts from log-ratio 0."""
    model = tiny_models.llama(**QUANTIZED)
    quantize(model)
    with_adapters(model)
    expected = tiny_models.hidden_states(quantized[0], TOKENS)
    np.testing.assert_array_equal(tiny_models.hidden_states(model, TOKENS), expected)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_backward_keeps_no_weight_made_whole(quantized, remat):
    """What backward holds of a quantised base is its four bits; float, it would be the base."""
    model = with_adapters(nnx.merge(*nnx.split(quantized[0])))
    graphdef, adapters, base = nnx.split(model, LoraParam, ...)

    def kept(adapters, base):
        def states(adapters):
            model = nnx.merge(graphdef, adapters, base)
            return tiny_models.plain_states(model, jnp.asarray(TOKENS), remat=remat)

        return jax.vjp(states, adapters)[1]

    kept_arrays = jax.tree.leaves(jax.eval_shape(kept, adapters, base))
    stacks = {getattr(quantized[1].layers, name).weight.shape for name in LINEAR_NAMES}
    floats = {x.shape for x in kept_arrays if jnp.issubdtype(x.dtype, jnp.floating)}
    assert not stacks & floats
    if remat == "none":  # and it does hold what it need not compute again
        assert (2, *TOKENS.shape, QUANTIZED["feed_forward"]) in floats


def test_a_quantised_model_has_shapes_without_arrays():
    """What a plan of the memory needs."""
    config = tiny_models.llama(**QUANTIZED).config

    def make(key):
        model = Decoder(config, key)
        quantize(model)
        return model

    abstract = jax.eval_shape(make, jax.random.key(0))
    weight = abstract.layers.q_proj.weight.get_value()
    assert isinstance(weight, QArray)
    assert weight.qvalue.shape == (2, 128, 256)
    assert weight.scale.shape == (2, 128, 4)


def quantized_on(mesh, **changes):
    model = tiny_models.llama(**{**QUANTIZED, **changes})
    model = jax.device_put(model, tree_shardings(model, model.config, mesh))
    quantize(model)
    return model


def test_blocks_that_do_not_divide_among_devices_are_whole_on_each():
    """A feed-forward of 192 makes 3 blocks, which two devices cannot share: of a row's 192 values
    each holds 96, of its 3 scales all; the 256 outputs are shared by four for both."""
    model = quantized_on(tiny_models.mesh_of(1, 4, 2), feed_forward=192)
    weight = model.layers.down_proj.weight.get_value()
    shapes = [part.addressable_shards[0].data.shape for part in (weight.qvalue, weight.scale)]
    assert shapes == [(2, 64, 96), (2, 64, 3)]


def test_a_quantised_model_keeps_its_places_and_its_numbers_on_a_mesh(quantized):
    """fsdp 4 x tensor 2: every device holds an eighth of the values and of the scales, adapters
    train beside them, and log-probs and gradients are those of one device."""
    weight = np.random.default_rng(3).normal(size=(*TOKENS.shape, 256)).astype(np.float32)

    def gradients(model):
        graphdef, adapters, base = nnx.split(trained(model), LoraParam, ...)

        def value(adapters, base):
            hidden = tiny_models.plain_states(
                nnx.merge(graphdef, adapters, base), jnp.asarray(TOKENS)
            )
            return jnp.sum(hidden * weight), hidden

        return jax.device_get(tiny_models.quick_jit(jax.grad(value, has_aux=True))(adapters, base))

    def made_on(mesh):
        model = quantized_on(mesh)
        add_adapters(model, CONFIG, 0, mesh)
        return model

    model = made_on(tiny_models.mesh_of(1, 4, 2))
    for name in LINEAR_NAMES:
        array = getattr(model.layers, name).weight.get_value()
        for part in (array.qvalue, array.scale):
            assert part.addressable_shards[0].data.size * 8 == part.size, name
    expected, expected_hidden = gradients(made_on(tiny_models.one_device()))
    actual, hidden = gradients(model)
    np.testing.assert_allclose(hidden, expected_hidden, atol=1e-4)
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
    held, whole = (each.layers.down_proj.weight for each in (model, merged(model, jnp.bfloat16)))
    assert whole[...].sharding == held.get_value().qvalue.sharding


def test_inputs_that_are_no_blocks_are_refused():
    with pytest.raises(ValueError, match=r"qlora: q_proj has 24 inputs, not a multiple of 64"):
        quantize(tiny_models.llama())
