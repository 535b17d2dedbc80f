"""Linear layers and experts in four bits (NF4).

References:
    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023); NF4 in appendix E.
"""

from __future__ import annotations

import jax
import qwix
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from tddpo_jax.errors import UserError
from tddpo_jax.models.decoder import Decoder, adaptable_layers
from tddpo_jax.models.tensor_table import adaptable_parameters

NF4_BLOCK = 64


def quantize(model: Decoder) -> None:
    """Stores the linear layers and experts of the blocks as NF4, in place.

    Those that are already in four bits stay as they are. The weights must have the checkpoint's own
    dtype. Weights that were rounded to another dtype would get other codes (see
    `adapters.load.load_base`).

    Raises:
        UserError: as for `nf4`.
    """
    layers = adaptable_layers(model)
    for each in adaptable_parameters(model.config.parameters):
        layer = layers[each.module]
        weight = layer.weight.get_value()
        if not isinstance(weight, qwix.QArray):
            layer.weight = nnx.Param(nf4(weight, each.name))


def nf4(weight: Array, name: str) -> qwix.QArray:
    """The weight in four bits, with one scale per 64 inputs.

    Each device quantises its own part, so values and scales have the weight's sharding.

    Args:
        weight: a weight, with its inputs on the last axis; a stack of weights has further axes.
        name: of the layer, for messages.

    Raises:
        UserError: the layer's inputs are not a multiple of the block size.
    """
    inputs = weight.shape[-1]
    if inputs % NF4_BLOCK:
        raise UserError(
            f"train.mode qlora: {name} has {inputs} inputs, not a multiple of {NF4_BLOCK}"
        )
    place = getattr(weight, "sharding", None)
    if not isinstance(place, NamedSharding):
        return jax.jit(_quantized)(weight)
    last = weight.ndim - 1
    # If the devices that share the inputs cannot share the blocks evenly, each holds all blocks.
    sharing_inputs = inputs // place.shard_shape(weight.shape)[last]
    if inputs // NF4_BLOCK % sharing_inputs:
        whole = NamedSharding(place.mesh, PartitionSpec(*place.spec[:last]))
        return jax.jit(_quantized, out_shardings=qwix.QArray(place, whole, qtype="nf4"))(weight)
    on_each = jax.shard_map(
        _quantized, mesh=place.mesh, in_specs=place.spec, out_specs=place.spec, check_vma=False
    )
    return jax.jit(on_each)(weight)


def _quantized(weight: Array) -> qwix.QArray:
    last = weight.ndim - 1
    return qwix.quantize(
        weight, qtype="nf4", channelwise_axes=range(last), tiled_axes={last: NF4_BLOCK}
    )
