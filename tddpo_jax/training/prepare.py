"""Prepares an experiment for its cells: model, data, programs, the reference's log-probs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tddpo_jax.adapters.peft_files import has_quantized_base
from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import Config
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.scoring.data_sets import log_probs
from tddpo_jax.scoring.reference import reference_log_probs
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.system.console import Screen
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.policy import Policy, load_policy
from tddpo_jax.training.separate_reference import separate_log_probs
from tddpo_jax.training.shared import Shared, load_shared
from tddpo_jax.training.step import FORWARD, Programs, StepSetting
from tddpo_jax.training.trained_part import router_loss


class Reference(NamedTuple):
    """The reference's log-probs of the training and the validation data, in nats.

    A row has those of the responses, and then those of their tails if a loss reads them.
    """

    train: Float[np.ndarray, "train values"]
    validation: Float[np.ndarray, "validation values"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that the cells of an experiment need for training."""

    shared: Shared
    policy: Policy
    programs: Programs
    reference: Reference


def prepare(
    configs: Sequence[Config], screen: Screen, losses: Sequence[Mapping[str, Any]] = ()
) -> Experiment:
    """Loads the model and the data, and computes the reference's log-probs or finds them.

    Args:
        configs: the cells; they differ in `config.cells.grid_axes` alone.
        screen: shows progress and warnings.
        losses: settings of the losses that the programs serve first, beside those of the cells.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    shared = load_shared(configs, screen)
    objective = objective_of([*losses, *(cell.loss.settings for cell in configs)])
    separate = _separate_reference(shared, objective.decoupled, screen)
    policy = load_policy(shared, with_reference=objective.exact_kl)
    optimizer = make_optimizer(shared.config.train, shared.model_config)
    setting = StepSetting(
        policy.graphdef,
        shared.model_config,
        objective,
        optimizer,
        shared.how,
        shared.dataset.responses,
        router_loss(shared.config, shared.model_config),
    )
    programs = Programs(setting, policy.trainable)
    reference = separate or Reference(
        _reference(shared, policy, programs, shared.dataset.train, "train", screen),
        _reference(shared, policy, programs, shared.dataset.validation, "validation", screen),
    )
    return Experiment(shared, policy, programs, reference)


def _separate_reference(shared: Shared, tails: bool, screen: Screen) -> Reference | None:
    """The log-probs of `model.reference`; they come first, so that memory holds one model."""
    if shared.reference is None:
        return None
    how, mesh = shared.how, shared.mesh
    return Reference(
        *separate_log_probs(shared.reference, shared.dataset, how, mesh, screen, tails=tails)
    )


def _reference(
    shared: Shared,
    policy: Policy,
    programs: Programs,
    examples: list[Example],
    part: str,
    screen: Screen,
) -> Float[np.ndarray, "examples values"]:
    """The reference's log-probs of one part of the data: from the cache, or computed now."""

    def compute() -> np.ndarray:
        forward = programs.of(1).log_probs_of_one
        programs.say_if_new(forward, FORWARD, screen)
        run = functools.partial(forward, policy.loaded, policy.frozen)
        with screen.stage(f"reference, {part}") as update:
            logps, _ = log_probs(run, examples, shared.shapes, shared.mesh, update)
        return logps[0]

    mode, adapter = shared.config.train.mode, shared.files.adapter
    quantized = mode == "qlora" or has_quantized_base(adapter)
    return reference_log_probs(
        compute,
        cache_folder(),
        model=shared.hashes.content,
        # `mode` decides whether an adapter is merged into the weights or stays beside them. The
        # last digits of the results differ.
        adapter=shared.hashes.adapter and [shared.hashes.adapter, mode],
        data=shared.dataset.content_hash,
        part=part,
        dtype=str(shared.how.dtype),
        quantized=quantized,
        # The next two change the last digits. The validation at step 0 should equal the reference
        # exactly.
        micro_batches=[dataclasses.asdict(shape) for shape in shared.shapes],
        attention=shared.how.attention,
        **({"tails": True} if programs.setting.objective.decoupled else {}),
    )
