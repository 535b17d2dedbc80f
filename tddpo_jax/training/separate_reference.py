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
from tddpo_jax.errors import UserError
from tddpo_jax.losses import trial
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.computation import Computation
from tddpo_jax.scoring.data_sets import example_log_probs
from tddpo_jax.scoring.reference import reference_log_probs
from tddpo_jax.system.agreement import agree, check_alike, first_before_others
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.system.console import Screen
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import ModelFiles, adapter_hash, resolve
from tddpo_jax.weights.tensor_files import content_hash


class SeparateReference(NamedTuple):
    """The files of a reference, and their hashes; a resumed run must find the same."""

    files: ModelFiles
    content: str  # hash of all files of the base
    adapter: str | None  # hash of the adapter on the base, if there is one


def find_reference(
    configs: Sequence[Config], model_config: DecoderConfig
) -> SeparateReference | None:
    """The model of `model.reference`; None if the reference is the policy's start.

    Args:
        configs: the cells.
        model_config: the architecture of the policy.

    Raises:
        UserError: a loss needs the reference in every step, no loss reads it, it cannot be found,
            or it does not know all tokens of the policy.
    """
    path = configs[0].model.reference
    if path is None:
        return None
    for cell in configs:
        if cell.loss.exact_kl:
            raise UserError(
                f"model.reference: {cell.loss.title} reads the exact KL, for which every step "
                "computes the reference; only the policy's own start can be that"
            )
    if not any(
        trial.reads_reference(LOSSES[cell.loss.name], cell.loss.settings) for cell in configs
    ):
        titles = ", ".join(dict.fromkeys(cell.loss.title for cell in configs))
        raise UserError(f"model.reference: {titles} has no reference")
    try:
        files = first_before_others(lambda: resolve(path))
        known = hugging_face.read_config(files.base).vocabulary
    except UserError as error:
        raise UserError(str(error).replace("model.path", "model.reference", 1)) from None
    if known < model_config.vocabulary:
        raise UserError(
            f"model.reference: {path} knows {known} tokens, fewer than the "
            f"{model_config.vocabulary} of the policy"
        )
    found = SeparateReference(files, agree(lambda: content_hash(files.base)), adapter_hash(files))
    check_alike("model.reference", "it differs from the first host's", lambda: found[1:])
    return found


class ReferencePass:
    """The pass of a separate reference over the parts of the data; it loads the model once."""

    def __init__(self, reference: SeparateReference, how: Computation, mesh: Mesh) -> None:
        self.reference, self.how, self.mesh = reference, how, mesh

    @functools.cached_property
    def _model(self) -> Decoder:
        return load_model(self.reference.files, self.mesh, self.how.dtype)

    def log_probs(
        self, examples: Sequence[Example], data: str, part: str, screen: Screen, *, tails: bool
    ) -> Float[np.ndarray, "examples values"]:
        """The log-probs of one part of the data, in nats: from the cache, or computed now.

        Args:
            examples: the examples.
            data: the hash of the data.
            part: the name of the part.
            screen: shows progress.
            tails: whether those of tails follow.
        """

        def compute() -> np.ndarray:
            with screen.stage(f"reference of its own, {part}"):
                return example_log_probs(
                    self._model, examples, self.how, self.mesh, with_tails=tails
                )

        return reference_log_probs(
            compute,
            cache_folder(),
            separate=self.reference.content,
            adapter=self.reference.adapter,
            data=data,
            part=part,
            tails=tails,
            dtype=str(self.how.dtype),
            attention=self.how.attention,
        )
