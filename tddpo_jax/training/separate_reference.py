"""A reference that is another model than the policy's start: `model.reference`.

Iterative training keeps the first model as the reference of every round. Its log-probs are computed
before the policy is loaded, and kept like others. It may be of another architecture.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from tddpo_jax.adapters.load import load_model
from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import Config
from tddpo_jax.data.examples import Dataset
from tddpo_jax.errors import UserError
from tddpo_jax.losses import trial
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.models.architecture import DecoderConfig, kinds_of_layers
from tddpo_jax.models.attention.kernels import check_shape
from tddpo_jax.placement.computation import Computation
from tddpo_jax.scoring.data_sets import example_log_probs
from tddpo_jax.scoring.reference import reference_log_probs
from tddpo_jax.system.agreement import agree, check_alike, first_before_others
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.system.console import Screen
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import ModelFiles, adapter_hash, resolve
from tddpo_jax.weights.tensor_files import content_hash, fingerprint

FIELD = "model.reference"


class SeparateReference(NamedTuple):
    """The files of a reference, and their hashes; a resumed run must find the same."""

    files: ModelFiles
    content: str  # hash of all files of the base
    adapter: str | None  # hash of the adapter on the base, if there is one
    model: DecoderConfig


def find_reference(
    configs: Sequence[Config], model_config: DecoderConfig, how: Computation, mesh: Mesh
) -> SeparateReference | None:
    """The model of `model.reference`; None if the reference is the policy's start.

    Args:
        configs: the cells.
        model_config: the architecture of the policy.
        how: how both models are computed.
        mesh: the devices.

    Raises:
        UserError: a loss needs the reference in every step, no loss reads it, it cannot be found,
            it does not know all tokens of the policy, or the back-end cannot compute its attention.
    """
    path = configs[0].model.reference
    if path is None:
        return None
    _check_losses(configs)
    files = first_before_others(lambda: resolve(path, FIELD))
    theirs = hugging_face.read_config(files.base)
    if theirs.vocabulary < model_config.vocabulary:
        raise UserError(
            f"{FIELD}: {path} knows {theirs.vocabulary} tokens, fewer than the "
            f"{model_config.vocabulary} of the policy"
        )
    for _, layer in kinds_of_layers(theirs):
        try:
            check_shape(how.attention, layer.attention, mesh.devices.flat[0].device_kind)
        except UserError as error:
            raise UserError(f"{FIELD}: {path}: {error}") from None
    found = SeparateReference(
        files, agree(lambda: content_hash(files.base)), adapter_hash(files), theirs
    )
    check_alike(
        FIELD,
        "it differs from the first host's",
        lambda: (fingerprint(files.base), found.adapter),
    )
    return found


def _check_losses(configs: Sequence[Config]) -> None:
    """Refuses losses that need the reference in every step, or of which none reads it."""
    for cell in configs:
        if cell.loss.exact_kl:
            raise UserError(
                f"{FIELD}: {cell.loss.title} reads the exact KL, for which every step "
                "computes the reference; only the policy's own start can be that"
            )
    if not any(
        trial.reads_reference(LOSSES[cell.loss.name], cell.loss.settings) for cell in configs
    ):
        titles = ", ".join(dict.fromkeys(cell.loss.title for cell in configs))
        raise UserError(f"{FIELD}: has no effect: {titles} reads no reference")


def check_context(reference: SeparateReference, dataset: Dataset) -> None:
    """Raises UserError if the longest branch of the data is beyond the reference's context."""
    context = reference.model.context
    longest = max(
        len(example.prompt) + len(response)
        for example in (*dataset.train, *dataset.validation)
        for response in example.responses
    )
    if longest > context:
        raise UserError(
            f"{FIELD}: its context is {context} tokens, and the data have a prompt and "
            f"response of {longest}; give --data.max-length {context}"
        )


def separate_log_probs(
    reference: SeparateReference,
    dataset: Dataset,
    how: Computation,
    mesh: Mesh,
    screen: Screen,
    *,
    tails: bool,
) -> list[Float[np.ndarray, "examples values"]]:
    """The reference's log-probs of the training and of the validation data, in nats.

    Those that the cache lacks are computed now; the model is loaded once.

    Args:
        reference: the reference.
        dataset: the data.
        how: how it is computed.
        mesh: the devices.
        screen: shows progress.
        tails: whether the log-probs of tails follow.
    """
    model = functools.cache(lambda: load_model(reference.files, mesh, how.dtype))

    def of(part: str, examples: Sequence[Example]) -> np.ndarray:
        def compute() -> np.ndarray:
            with screen.stage(f"separate reference, {part}"):
                return example_log_probs(model(), examples, how, mesh, with_tails=tails)

        return reference_log_probs(
            compute,
            cache_folder(),
            separate=reference.content,
            adapter=reference.adapter,
            data=dataset.content_hash,
            part=part,
            tails=tails,
            dtype=str(how.dtype),
            attention=how.attention,
        )

    return [of("train", dataset.train), of("validation", dataset.validation)]
