"""Tunix' own DPOTrainer, one step at a time. It runs in its environment, without our code.

    python tunix_worker.py JOB.json

It reads `step` lines on stdin and answers each with `{"seconds", "loss", "logp_chosen",
"logp_rejected"}` once the step is done. The seconds do not include padding and compiling. They
include the reference's forward pass, because Tunix makes it inside every step and cannot keep it.

Tunix has no default for lengths. Its rows are fixed, and prompt and response are padded separately.
The settings `default` pad to the longest prompt and the longest response of the data, so nothing is
cut and one shape compiles. With `best`, each micro-batch is padded to its own longest ones, rounded
up to a multiple of 256, which compiles several shapes. The model's defaults, without
rematerialisation, are already its fastest. The user chooses the optimiser: it is AdamW, as ours.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.sft.dpo import dpo_trainer

LINEAR = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
MULTIPLE = 256
LEARNING_RATE = 1e-5


class WaitingTrainer(dpo_trainer.DPOTrainer):
    """DPOTrainer that finishes every micro-batch before the next, and keeps its metrics."""

    def _post_process_train_step(self, aux: Any) -> None:
        super()._post_process_train_step(aux)
        self.seen.append(jax.block_until_ready(aux))


@functools.wraps(dpo_trainer.dpo_loss_fn)  # Tunix reads its signature
def loss_beside_metrics(*arguments: Any, **more: Any) -> Any:
    loss, metrics = dpo_trainer.dpo_loss_fn(*arguments, **more)
    return loss, {**metrics, "loss": loss}


def padded(rows: list[list[int]], length: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and their mask, `[rows, length]`."""
    ids, mask = np.zeros((2, len(rows), length), np.int32)
    for row, tokens in enumerate(rows):
        place = slice(length - len(tokens), length) if left else slice(len(tokens))
        ids[row, place], mask[row, place] = tokens, 1
    return ids, mask


def micro_batches(job: dict[str, Any]) -> list[dpo_trainer.TrainingInput]:
    pairs, size = job["pairs"], job["micro_batch"]
    return [padded_pairs(job, pairs[first : first + size]) for first in range(0, len(pairs), size)]


def padded_pairs(job: dict[str, Any], pairs: list[dict]) -> dpo_trainer.TrainingInput:
    prompts, chosen, rejected = (
        [pair[name] for pair in pairs] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    prompt_length, response_length = job["longest"]
    if job["settings"] == "best":
        longest = (max(map(len, rows)) for rows in (prompts, chosen + rejected))
        prompt_length, response_length = (-(-length // MULTIPLE) * MULTIPLE for length in longest)
    prompt_ids, prompt_mask = padded(prompts, prompt_length, left=True)
    chosen_ids, chosen_mask = padded(chosen, response_length, left=False)
    rejected_ids, rejected_mask = padded(rejected, response_length, left=False)
    return dpo_trainer.TrainingInput(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        chosen_ids=chosen_ids,
        chosen_mask=chosen_mask,
        rejected_ids=rejected_ids,
        rejected_mask=rejected_mask,
    )


def one_of_each_shape(batches: list[Any], per_step: int) -> list[Any]:
    """Micro-batches that make every shape compile; their number fills whole steps."""
    shapes = {(b.prompt_ids.shape, b.chosen_ids.shape): b for b in batches}
    found = list(shapes.values())
    return found + [found[0]] * (-len(found) % per_step)


def on_command(
    trainer: WaitingTrainer, first: list[Any], batches: list[Any], per_step: int
) -> Iterator:
    """Yields `first`, and then a step's micro-batches on each command."""
    yield from first
    for start in range(0, len(batches), per_step):
        if not sys.stdin.readline():
            return
        trainer.seen, begin = [], time.perf_counter()
        yield from batches[start : start + per_step]
        seconds = time.perf_counter() - begin
        names = {
            "loss": "loss",
            "logp_chosen": "log_probs/chosen",
            "logp_rejected": "log_probs/rejected",
        }
        means = {
            ours: float(np.mean([m[name] for m in trainer.seen])) for ours, name in names.items()
        }
        print(json.dumps({"seconds": seconds, **means}), file=CHANNEL, flush=True)


def load(job: dict[str, Any]) -> Llama3:
    shape = job["model"]
    config = ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocabulary"],
        embed_dim=shape["width"],
        hidden_dim=shape["feed_forward"],
        num_heads=shape["heads"],
        head_dim=shape["head_size"],
        num_kv_heads=shape["key_value_heads"],
        rope_theta=shape["rope_theta"],
        norm_eps=shape["norm_epsilon"],
        weight_tying=shape["tied"],
    )
    return create_model_from_safe_tensors(job["folder"], config, dtype=jnp.float32)


def main(job: dict[str, Any]) -> None:
    reference = load(job)
    if job["mode"] == "lora":
        provider = qwix.LoraProvider(module_path=LINEAR, rank=16, alpha=32.0)
        inputs = reference.get_model_input()
        model = qwix.apply_lora_to_model(reference, provider, **inputs, rngs=nnx.Rngs(0))
    else:
        model = load(job)
    batches, per_step = micro_batches(job), job["batch_pairs"] // job["micro_batch"]
    first = one_of_each_shape(batches, per_step)
    compiling = len(first) // per_step
    trainer = WaitingTrainer(
        model,
        reference,
        # The steps that compile must leave the weights as they are.
        optax.adamw(lambda step: jnp.where(step < compiling, 0.0, LEARNING_RATE)),
        dpo_trainer.DPOTrainingConfig(
            eval_every_n_steps=10**9,
            gradient_accumulation_steps=per_step if per_step > 1 else None,
        ),
    )
    trainer.with_loss_fn(loss_beside_metrics, has_aux=True)
    trainer.seen = []
    trainer.train(on_command(trainer, first, batches, per_step))


if __name__ == "__main__":
    # Libraries print on stdout, so the answers have a channel of their own.
    CHANNEL = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(sys.argv[1]) as file:
        main(json.load(file))
