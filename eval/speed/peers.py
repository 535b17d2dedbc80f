"""Compares our step with a peer's: same weights, pairs, dtype and threads. The two take turns.

A check makes sure that the two start from the same weights and score the same pairs: at the first
step both must report the loss log 2 and the same log-probs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax

from tddpo_jax.errors import UserError
from tddpo_jax.weights import hugging_face

from .case import WARM_UP, Case, load_pairs, shapes_of, timed_pairs
from .peer_job import longest, peer_job, shape_folder
from .peer_process import PeerProcess
from .training import Trainer

# The largest relative difference of mean log-probs at the first step, from rounding.
SAME_LOGPS = 1e-4
SAME_LOSS = 1e-3
# Default pairs of a micro-batch. TRL's own default is 8. Tunix has none: more than 2 of its
# attention matrices over the whole length would not fit a small machine.
MICRO_BATCH = {"trl": 8, "tunix": 2}
# Tunix' Llama reads no rope_theta. It always rotates by this one, so ours must do the same.
TUNIX_THETA = 1_000_000.0


def measure_against(
    case: Case, peer: str, python: str, settings: str, micro_batch: int | None = None
) -> dict[str, Any]:
    """The median step times of ours and the peer's, and their ratio.

    The steps take turns. Both take the same pairs in the same order. Steps of the warm-up do not
    count.

    Args:
        case: what is measured.
        peer: `trl` or `tunix`.
        python: the Python of the peer's environment.
        settings: `default` or `best`; the peer's worker says what they are.
        micro_batch: pairs that the peer computes at once; by default `MICRO_BATCH`.

    Raises:
        UserError: the peer cannot do this, its Python cannot be run, or its trainer failed.
    """
    micro_batch = micro_batch or MICRO_BATCH[peer]
    _check(case, micro_batch)
    if peer == "tunix":
        case = dataclasses.replace(
            case, model=dataclasses.replace(case.model, rope_theta=TUNIX_THETA)
        )
    pairs = load_pairs(case)
    chosen = timed_pairs(case, pairs)
    trainer = Trainer(case, chosen, shapes_of(case, pairs))
    trainer.score_reference()
    with tempfile.TemporaryDirectory() as folder:
        job = peer_job(case, chosen, Path(folder), settings, micro_batch, longest(pairs))
        hugging_face.export(
            trainer.base_model(), shape_folder(case, Path(folder)), Path(job["folder"])
        )
        with PeerProcess(peer, python, job, Path(folder) / "job.json") as worker:
            answers = []
            for step in range(case.steps + WARM_UP):
                trainer.step(step)
                answers.append(worker.step())
    _check_same(trainer.first_metrics, answers[0], peer)
    theirs = [answer["seconds"] for answer in answers]
    our, their = (statistics.median(each[WARM_UP:]) for each in (trainer.seconds, theirs))
    return {
        "peer": peer,
        "peer_settings": settings,
        "peer_micro_batch": micro_batch,
        "mode": case.mode,
        "threads": os.cpu_count(),
        "our_step_seconds": our,
        "peer_step_seconds": their,
        "times_faster": their / our,
        "our_pairs_per_second": case.batch_pairs / our,
        "peer_pairs_per_second": case.batch_pairs / their,
        "our_first_loss": trainer.first_metrics["loss"],
        "peer_first_loss": answers[0]["loss"],
        "our_first_logp_chosen": trainer.first_metrics["logps/chosen"],
        "peer_first_logp_chosen": answers[0]["logp_chosen"],
        "our_last_loss": trainer.last_metrics["loss"],
        "peer_last_loss": answers[-1]["loss"],
        "our_seconds": trainer.seconds,
        "peer_seconds": theirs,
        **trainer.rates(),
    }


def _check(case: Case, micro_batch: int) -> None:
    if case.mode == "qlora":
        raise UserError("--mode: peers are measured with full or lora, not with qlora")
    if case.dtype != "float32":
        raise UserError(f"--dtype: peers are measured in float32, not in {case.dtype}")
    if jax.default_backend() != "cpu":
        raise UserError("--against: peers are measured on a CPU; set JAX_PLATFORMS=cpu")
    if case.model.rope_scaling is not None:
        raise UserError("--model: peers are measured without rope_scaling, which this model has")
    if micro_batch < 1 or case.batch_pairs % micro_batch:
        raise UserError(
            f"--peer-micro-batch: {micro_batch} does not divide --batch-pairs {case.batch_pairs}"
        )


def _check_same(ours: dict[str, float], theirs: dict[str, float], peer: str) -> None:
    """Refuses figures of two trainers that do not do the same work.

    Raises:
        ValueError: a first loss is not log 2, or log-probs differ.
    """
    for name, loss in (("our", ours["loss"]), (f"{peer}'s", theirs["loss"])):
        if not abs(loss - math.log(2)) <= SAME_LOSS:
            raise ValueError(f"{name} first loss is {loss:.5f}, not log 2")
    for branch in ("chosen", "rejected"):
        our, their = ours[f"logps/{branch}"], theirs[f"logp_{branch}"]
        if not math.isclose(our, their, rel_tol=SAME_LOGPS):
            raise ValueError(
                f"at the first step the mean log-prob of {branch} is {our:.3f} here "
                f"and {their:.3f} in {peer}: not the same weights or pairs"
            )
