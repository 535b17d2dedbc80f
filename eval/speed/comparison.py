"""Compares two of our own ways, whose steps take turns: shared prompts, populations."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from tddpo_jax.batches.layout import Example
from tddpo_jax.errors import UserError

from .case import WARM_UP, Case, load_pairs, shapes_of, timed_pairs
from .training import Trainer


def measure_prefix(case: Case) -> dict[str, Any]:
    """Compares a step with shared prompts with a step whose prompts appear twice, both packed.

    `gain_over_ratio` is the gain in time over the ratio of tokens: 1 if time falls as tokens do.
    """
    pairs = load_pairs(case)
    shared = Trainer(case, timed_pairs(case, pairs), shapes_of(case, pairs))
    branches = dataclasses.replace(case, batch_pairs=2 * case.batch_pairs)
    apart = Trainer(branches, _apart(shared.pairs), shapes_of(branches, _apart(pairs)))
    seconds = _in_turns(case, shared, apart)
    tokens, unshared = (
        statistics.median(count["tokens"] for count in trainer.counts[WARM_UP:])
        for trainer in (shared, apart)
    )
    gain, ratio = seconds[1] / seconds[0], unshared / tokens
    return {
        "mode": case.mode,
        "shared_step_seconds": seconds[0],
        "unshared_step_seconds": seconds[1],
        "shared_tokens": tokens,
        "unshared_tokens": unshared,
        "shared_padding": shared.rates()["padding_share"],
        "unshared_padding": apart.rates()["padding_share"],
        "gain": gain,
        "token_ratio": ratio,
        "gain_over_ratio": gain / ratio,
        "shared_seconds": shared.seconds,
        "unshared_seconds": apart.seconds,
    }


def _apart(pairs: list[Example]) -> list[Example]:
    """Gives each response its own prompt: two examples in place of a pair."""
    return [
        Example(pair.row, pair.prompt, (response,)) for pair in pairs for response in pair.responses
    ]


def measure_population(case: Case, members: int) -> dict[str, Any]:
    """Compares a step of `members` policies in one program with as many steps of one policy.

    Raises:
        UserError: the mode trains no adapters, or there are fewer than two members.
    """
    if case.mode == "full":
        raise UserError("--population: needs --mode lora or qlora")
    if members < 2:
        raise UserError(f"--population: must be at least 2, got {members}")
    pairs = load_pairs(case)
    chosen, shapes = timed_pairs(case, pairs), shapes_of(case, pairs)
    together, single = (Trainer(case, chosen, shapes, count) for count in (members, 1))
    seconds = _in_turns(case, together, single)
    return {
        "mode": case.mode,
        "members": members,
        "batch_pairs": case.batch_pairs,
        "population_step_seconds": seconds[0],
        "single_step_seconds": seconds[1],
        "times_faster": members * seconds[1] / seconds[0],
        "population_useful_share": together.rates()["useful_share"],
        "single_useful_share": single.rates()["useful_share"],
        "peak_bytes": together.rates()["peak_bytes"],
        "population_seconds": together.seconds,
        "single_seconds": single.seconds,
    }


def _in_turns(case: Case, *trainers: Trainer) -> list[float]:
    """The median seconds of a step of each trainer, without the warm-up."""
    for step in range(case.steps + WARM_UP):
        for trainer in trainers:
            trainer.step(step)
    return [statistics.median(trainer.seconds[WARM_UP:]) for trainer in trainers]
