"""The model card: what it says, and that it says no more than the run's files."""

from __future__ import annotations

import ast
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from tddpo_jax.config.reading import resolve
from tddpo_jax.runs.model_card import model_card

FACTS = {
    "versions": {"jax": "1.2.3"},
    "model": {"path": "owner/base", "sha256": "abc"},
    "data": {"path": "/home/someone/pairs.jsonl", "train_rows": 18, "template": "zephyr"},
}
RECORDS = [
    {"step": 0, "eval_loss": 0.7, "eval_rewards/accuracies": 0.5},
    {"step": 4, "eval_loss": 0.61234, "eval_rewards/accuracies": 0.75},
    {"step": 4, "loss": 0.6},
]


@pytest.fixture
def run(tmp_path):
    """The files of a run that a card is made of."""
    settings = resolve({"loss": {"name": "dpo", "beta": 0.25}, "train": {"mode": "qlora"}})
    text = yaml.safe_dump(settings.model_dump(mode="json"))
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "run.json").write_text(json.dumps(FACTS))
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "metrics.jsonl").write_text(lines)
    return tmp_path


def test_the_card_names_base_loss_data_and_metrics(run):
    card = ModelCard(model_card(run, adapter=True))
    assert card.data.to_dict()["base_model"] == "owner/base"
    assert card.data.library_name == "peft"
    assert "| data | pairs.jsonl, 18 rows |" in card.text
    assert (
        "| loss | dpo, beta 0.25, ld_alpha 1.0, label_smoothing 0.0, dpo_margin log_ratio |"
        in card.text
    )
    assert "at step 4" in card.text
    assert "| eval_loss | 0.6123 |" in card.text
    assert "AutoPeftModelForCausalLM" in card.text
    assert "BitsAndBytesConfig" in card.text
    assert "jax 1.2.3" in card.text


def test_a_base_with_experts_has_four_bits_that_no_other_program_makes(run):
    facts = {**FACTS, "model": {**FACTS["model"], "has_experts": True}}
    (run / "run.json").write_text(json.dumps(facts))
    card = model_card(run, adapter=True)
    assert "beside a base in four bits, which PEFT does not know of. Use the merged export." in card
    assert "BitsAndBytesConfig" not in card
    assert "NF4" not in card


def test_every_data_set_of_a_mixture_is_named(run):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["path"] = [{"path": "/home/someone/a.jsonl"}, {"path": "owner/b"}]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    card = ModelCard(model_card(run, adapter=True))
    assert "| data | a.jsonl + owner/b, 18 rows |" in card.text
    assert card.data.datasets == ["owner/b"]


def test_a_path_is_nobodys_business(run):
    card = model_card(run, adapter=False)
    assert "someone" not in card
    assert ModelCard(card).data.datasets is None
    assert ModelCard(card).data.library_name == "transformers"
    assert "BitsAndBytesConfig" not in card


def test_a_loss_of_one_s_own_is_named_by_its_function(run):
    """Its file need not be there."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["loss"] |= {"name": "/home/someone/mine.py:my_dpo", "set": {"margin_scale": 2.0}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    card = model_card(run, adapter=True)
    assert "| loss | my_dpo, beta 0.25, margin_scale 2.0 |" in card
    assert "someone" not in card


@pytest.mark.parametrize(
    ("loss", "reference", "told"),
    [
        ({}, None, "Rewards are relative to the base. The policy"),
        ({}, "owner/first", "Rewards are relative to the reference. The policy"),
        ({"name": "dpo+sft"}, None, "Rewards are relative to the base. The policy"),
        ({"name": "mine.py:my_dpo"}, None, "Rewards are relative to the base. The policy"),
        ({"dpo_margin": "policy"}, None, "\n\nThe policy"),
        ({"name": "simpo"}, None, "\n\nThe policy"),
    ],
)
def test_the_card_says_what_rewards_are_relative_to(run, loss, reference, told):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["loss"] |= loss
    settings["model"] |= {"reference": reference}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    card = model_card(run, adapter=True)
    assert f"{told} of this step was chosen" in card
    assert ("| reference | owner/first |" in card) == (reference is not None)


@pytest.mark.parametrize("adapter", [True, False])
def test_the_code_of_a_card_is_python(run, adapter):
    (code,) = re.findall(r"```python\n(.*?)```", model_card(run, adapter=adapter), re.DOTALL)
    ast.parse(code)
    assert "apply_chat_template" in code


def test_without_conversations_or_validation_the_card_does_not_pretend(run):
    facts = {**FACTS, "data": {**FACTS["data"], "template": "verbatim"}}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "metrics.jsonl").write_text("")
    card = model_card(run, adapter=False)
    assert "apply_chat_template" not in card
    assert "no validation data" in card
