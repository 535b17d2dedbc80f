"""TRL's own DPOTrainer, one step at a time. It runs in TRL's environment, without our code.

    python trl_worker.py JOB.json

It reads `step` lines on stdin and answers each with `{"seconds", "loss", "logp_chosen",
"logp_rejected"}` once the step is done. Two parts of the trainer are replaced: tokenising, because
the token ids are given, and the order of the rows, which is kept. The seconds do not include
collating the rows.

The settings `default` are TRL's, except float32 in place of bfloat16, because both sides have the
same dtype. With `best`, the reference's log-probs are computed before training, and there is no
gradient checkpointing.
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

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TokenIdsTrainer(DPOTrainer):
    """DPOTrainer on rows of token ids, in their order."""

    def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *rest: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *arguments: Any, **more: Any) -> Any:
        loss = super().compute_loss(*arguments, **more)
        self._metrics["train"]["loss_of_micro_batch"].append(loss.item())
        return loss

    def means(self) -> dict[str, float]:
        """Means over the last step. All its micro-batches have the same number of pairs."""
        metrics = self._metrics["train"]
        names = {
            "loss": "loss_of_micro_batch",
            "logp_chosen": "logps/chosen",
            "logp_rejected": "logps/rejected",
        }
        means = {ours: sum(metrics[name]) / len(metrics[name]) for ours, name in names.items()}
        metrics.clear()
        return means


class OnCommand(TrainerCallback):
    """Starts a step on command, and answers how long it took."""

    trainer: TokenIdsTrainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        answer({"seconds": time.perf_counter() - self.start, **self.trainer.means()})


def answer(message: dict[str, float]) -> None:
    print(json.dumps(message), file=CHANNEL, flush=True)


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    best = job["settings"] == "best"
    config = DPOConfig(
        output_dir=job["folder"] + "/trl",
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["batch_pairs"] // job["micro_batch"],
        max_steps=job["steps"],
        max_length=job["max_length"],
        learning_rate=1e-5,
        gradient_checkpointing=not best,
        precompute_ref_log_probs=best,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    peft_config = None
    if job["mode"] == "lora":
        from peft import LoraConfig

        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR)
    callback = OnCommand()
    trainer = TokenIdsTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(job["pairs"]),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"], pad_token="</s>"),
        peft_config=peft_config,
        callbacks=[callback],
    )
    callback.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    # Libraries print on stdout, so the answers have a channel of their own.
    CHANNEL = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(sys.argv[1]) as file:
        main(json.load(file))
