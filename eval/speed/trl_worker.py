"""TRL's own DPOTrainer, one step at a time; runs in TRL's environment, imports nothing of ours.

    python trl_worker.py JOB.json

Reads `step` lines on stdin and answers each with `{"seconds": s}` once the step is done. The only
parts of the trainer that are replaced are tokenising, for the token ids are given, and the order
of the rows, which is kept.
"""

import json
import os
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class TokenIdsTrainer(DPOTrainer):
    """DPOTrainer on rows that are token ids already, in their order."""

    def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *rest: Any) -> Any:
        return SequentialSampler(self.train_dataset)


class OnCommand(TrainerCallback):
    """Starts a step when told to, and tells how long it took."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        answer({"seconds": time.perf_counter() - self.start})


def answer(message: dict[str, float]) -> None:
    print(json.dumps(message), file=CHANNEL, flush=True)


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    best = job["settings"] == "best"
    config = DPOConfig(
        output_dir=job["folder"] + "/trl",
        per_device_train_batch_size=min(8, job["batch_pairs"]),
        gradient_accumulation_steps=max(1, job["batch_pairs"] // 8),
        max_steps=job["steps"],
        max_length=job["max_length"],
        learning_rate=1e-5,
        gradient_checkpointing=not best,
        precompute_ref_log_probs=best,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    peft_config = None
    if job["mode"] == "lora":
        from peft import LoraConfig

        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    trainer = TokenIdsTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(job["pairs"]),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"], pad_token="</s>"),
        peft_config=peft_config,
        callbacks=[OnCommand()],
    )
    trainer.train()


if __name__ == "__main__":
    # Libraries print what they like on stdout; the answers have a channel of their own.
    CHANNEL = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(sys.argv[1]) as file:
        main(json.load(file))
