"""Writes the model card of a run's policy: how it was made, how it was measured, how to load it.

References:
    Mitchell et al., "Model Cards for Model Reporting", arXiv 1810.03993; the hub's format is
    https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from tddpo_jax.config.mixed_loss import load_mixture
from tddpo_jax.config.own_function import function_name
from tddpo_jax.config.own_loss import GROUPS, is_own
from tddpo_jax.config.reading import read_yaml
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.loss import Loss
from tddpo_jax.losses.weighted_sum import is_mixture
from tddpo_jax.runs.records import best_record, read_records
from tddpo_jax.system.hub import MODEL_ID
from tddpo_jax.system.json_files import read_object

LOADING = {
    "transformers": """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(FOLDER)
""",
    "peft": """\
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)
""",
}
CHATTING = """\
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
messages = [{"role": "user", "content": "Hello!"}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=128)[0]))
"""
FOUR_BITS = (
    "The adapter was trained beside a base in four bits (NF4), which PEFT does not know of. Load "
    'the base with `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")`.'
)
# No setting of transformers gives experts the same four bits.
FOUR_BITS_OF_EXPERTS = (
    "The adapter was trained beside a base in four bits, which PEFT does not know of. Use the "
    "merged export."
)


def model_card(run: Path, *, adapter: bool, step: int | None = None) -> str:
    """The text of `README.md` beside a policy; it says nothing that the run's files do not.

    Args:
        run: the run's directory, with `config.yaml`, `run.json` and `metrics.jsonl`.
        adapter: whether the policy is a PEFT folder.
        step: the step of the policy; None for the best one.
    """
    settings = read_yaml(run / "config.yaml")
    facts = read_object(run / "run.json")
    library = "peft" if adapter else "transformers"
    base, ids = facts["model"]["path"], [*filter(_is_hub_id, _data_sets(settings, facts))]
    loss = function_name(settings["loss"]["name"])
    header = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        datasets=ids or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["tddpo_jax", "preference-optimization", loss],
    )
    records = read_records(run / "metrics.jsonl")
    relative = _relative(settings)
    if step is None:
        best = best_record(records, settings["train"]["best_metric"])
        validation = _validation(best, relative)
    else:
        validation = _validation_at(step, records, relative)
    parts = [
        f"# {run.name}",
        f"{_name(base)}, trained with the loss `{loss}` by tddpo_jax.",
        _table("| | |", _making(settings, facts)),
        *validation,
        "## How to load it",
        "`FOLDER` is this folder or its id on the hub.",
        *(_four_bits(facts) if adapter and settings["train"]["mode"] == "qlora" else []),
        f"```python\n{LOADING[library]}{_chatting(facts)}```",
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _four_bits(facts: dict[str, Any]) -> list[str]:
    """The sentences on the base of an adapter."""
    return [FOUR_BITS_OF_EXPERTS if facts["model"].get("has_experts") else FOUR_BITS]


def _data_sets(settings: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    given = settings["data"]["path"]
    return [facts["data"]["path"]] if isinstance(given, str) else [each["path"] for each in given]


def _is_hub_id(name: str) -> bool:
    return MODEL_ID.fullmatch(name) is not None and not Path(name).exists()


def _name(path: str) -> str:
    """A hub id, or the last part of a path: the rest of a path is nobody else's business."""
    return path if _is_hub_id(path) else Path(path).name


def _table(head: str, rows: dict[str, Any]) -> str:
    return "\n".join(
        [head, "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def _making(settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    train, data, loss = settings["train"], facts["data"], settings["loss"]
    # The text of a loss of one's own is not run for a card.
    read = ("beta",) if is_own(loss["name"]) else _row(loss["name"]).settings
    own = {name: loss[name] for name in read if name in loss}
    for group in GROUPS:
        own |= loss.get(group, {})
    words = [function_name(loss["name"]), *(f"{name} {value}" for name, value in own.items())]
    names = " + ".join(map(_name, _data_sets(settings, facts)))
    lora, reference = settings["lora"], settings["model"].get("reference")
    adapters = f", rank {lora['rank']}, alpha {lora['alpha']:g}"
    return {
        "base model": _name(facts["model"]["path"]),
        "weights of the base, sha256": facts["model"]["sha256"],
        **({"reference": _name(reference)} if reference else {}),
        "data": f"{names}, {data['train_rows']} rows",
        "chat template": data["template"],
        "loss": ", ".join(words),
        "trained": train["mode"] + (adapters if train["mode"] != "full" else ""),
        "learning rate": f"{train['learning_rate']:g}, {train['schedule']}",
        "examples per step": train["batch_pairs"],
        "seed": settings["seed"],
    }


def _row(name: str) -> Loss:
    return LOSSES[load_mixture(name) if is_mixture(name) else name]


def _relative(settings: dict[str, Any]) -> list[str]:
    """The sentence that says what the rewards are relative to; none if that is nothing."""
    loss, reference = settings["loss"], settings["model"].get("reference")
    # Those of a loss of one's own are log-ratios.
    if not is_own(loss["name"]) and not _are_relative(loss):
        return []
    return [f"Rewards are relative to the {'reference' if reference else 'base'}."]


def _are_relative(loss: dict[str, Any]) -> bool:
    # This module imports JAX, and a card of another loss does not need it.
    from tddpo_jax.losses.trial import rewards_read_reference

    row = _row(loss["name"])
    defaults = {name: setting.default for name, setting in row.settings.items()}
    return rewards_read_reference(row, {**defaults, **loss})


def _validation(best: dict[str, Any] | None, relative: Sequence[str]) -> list[str]:
    if best is None:
        return ["The run had no validation data. This is the policy after its last step."]
    chosen = "The policy of this step was chosen by the same data."
    return [*_metrics(best), " ".join([*relative, chosen])]


def _validation_at(
    step: int, records: Sequence[dict[str, Any]], relative: Sequence[str]
) -> list[str]:
    for record in records:
        if record["step"] == step and "eval_loss" in record:
            return [*_metrics(record), *relative]
    return [f"This is the policy after {step} steps, when the run did not validate."]


def _metrics(record: dict[str, Any]) -> list[str]:
    metrics = {name: f"{value:.4g}" for name, value in record.items() if name.startswith("eval_")}
    heading = f"## On the validation data, at step {record['step']}"
    return [heading, _table("| metric | value |", metrics)]


def _chatting(facts: dict[str, Any]) -> str:
    # Data of texts or token ids has no template, so nobody knows how to ask the policy.
    return "" if facts["data"]["template"] == "verbatim" else f"\n{CHATTING}"
