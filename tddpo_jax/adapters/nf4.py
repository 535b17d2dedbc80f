"""Linear layers in four bits (NF4).

References:
    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023); NF4 in appendix E.
"""

from __future__ import annotations

import functools

import jax
import qwix
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from tddpo_jax.errors import UserError
from tddpo_jax.models.decoder import Decoder, linear_layers

NF4_BLOCK = 64


def quantize(model: Decoder) -> None:
    """Stores the linear layers of the blocks as NF4, in place: 4 bits, one scale per 64 inputs.

    Layers that are already in NF4 stay as they are. The weights must have the checkpoint's own
    dtype. Weights that were rounded to another dtype would get other codes (see
    `adapters.peft_files.base_dtype`).

    Raises:
        UserError: a layer's inputs are not a multiple of the block size.
    """
    for path, linear in linear_layers(model).items():
        if isinstance(linear.weight.get_value(), qwix.QArray):
            continue
        inputs = linear.weight.shape[-1]
        if inputs % NF4_BLOCK:
            name = path.rpartition(".")[2]
            raise UserError(
                f"train.mode qlora: {name} has {inputs} inputs, not a multiple of {NF4_BLOCK}"
            )
        linear.weight = nnx.Param(_nf4(linear.weight.get_value()))


def _nf4(weight: Array) -> qwix.QArray:
    """The weight in four bits; values and scales have the weight's sharding.

    Without this, the compiler would hold them whole on every device.
    """
    quantized = functools.partial(
        qwix.quantize, qtype="nf4", channelwise_axes=(0, 1), tiled_axes={2: NF4_BLOCK}
    )
    place = getattr(weight, "sharding", None)
    if not isinstance(place, NamedSharding):
        return jax.jit(quantized)(weight)
    # If the devices that share the inputs cannot share the blocks evenly, each holds all blocks.
    sharing_inputs = weight.shape[2] // place.shard_shape(weight.shape)[2]
    whole = NamedSharding(place.mesh, PartitionSpec(*place.spec[:2]))
    places = jax.tree.map(
        lambda part: whole if part.shape[2] % sharing_inputs else place,
        jax.eval_shape(quantized, weight),
    )
    return jax.jit(quantized, out_shardings=places)(weight)
