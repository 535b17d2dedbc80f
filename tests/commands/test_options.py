"""The options of the command line: what each word means, and what `--help` says of it."""

from __future__ import annotations

import re

import pytest
import yaml
from places import ROOT
from tiny_commands import run

from tddpo_jax.commands.options import Parser, add_settings, settings_of
from tddpo_jax.config.dotted import get
from tddpo_jax.config.reading import setting_fields
from tddpo_jax.data.named_templates import NAMED
from tddpo_jax.losses.catalogue import LOSSES, readers


def parsed(*arguments):
    parser = Parser()
    add_settings(parser)
    return settings_of(parser.parse_args([str(argument) for argument in arguments]))


def test_help_lists_every_setting_with_its_default(capsys):
    assert run("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in setting_fields():
        assert re.search(rf"--{re.escape(name).replace('_', '-')}\b", text), name
        if field.default_factory is None:
            known = {None: "", False: "(default no)"}
            assert known.get(field.default, f"(default {field.default})") in text, name
    assert "None" not in text
    whole = re.sub(r"(\w-) ", r"\1", text)  # a line may end within a word that has a hyphen
    for loss in LOSSES.values():
        for name, setting in loss.settings.items():
            choices = f"; one of {', '.join(setting.choices)}" if setting.choices else ""
            help_text = f"{setting.help}; read by {readers(name)}{choices} "
            help_text += f"(default {setting.default})"
            assert whole.count(help_text) == 1, name
    for short in ("--loss", "--beta", "--tau", "--model", "--data", "--seed", "--output"):
        assert f"{short} " in text or f"{short}," in text


def test_options_are_short_or_dotted():
    short = parsed("--model", "m", "--data", "d", "--loss", "dpo", "--beta", "0.1", "--tau", "2")
    dotted = parsed(
        *("--model.path", "m", "--data.path", "d", "--loss.name", "dpo"),
        *("--loss.beta", "0.1", "--loss.tau", "2"),
    )
    assert short == dotted
    assert get(short, "loss.beta") == "0.1"


def test_several_values_are_an_axis_and_one_is_not():
    settings = parsed("--model", "m", "--beta", "0.1", "0.2", "--seed", "3", "--tau", "1")
    assert get(settings, "loss.beta") == ["0.1", "0.2"]
    assert (get(settings, "seed"), get(settings, "loss.tau")) == ("3", "1")


def test_data_sets_named_at_once_or_one_by_one_are_a_mixture():
    at_once = parsed("--data", "a", "b", "--model", "m")
    assert at_once == parsed("--data", "a", "--model", "m", "--data.path", "b")
    assert get(at_once, "data.path") == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seed 1 --seed 2", "--seed is given more than once; give its values together"),
        ("--output a --output=b", "--output is given more than once; only one value can count"),
        ("--loss dpo --loss.name sft", "--loss.name is given more than once; give its values tog"),
        ("--train.wandb --train.wandb", "--train.wandb is given more than once; only one value"),
    ],
)
def test_an_option_given_twice_is_refused_by_name(words, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*words.split())
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_parser_may_be_used_twice():
    parser = Parser()
    parser.add_argument("--seed")
    assert [parser.parse_args(["--seed", word]).seed for word in "12"] == ["1", "2"]


def test_an_option_may_be_spelt_as_yaml_spells_it():
    for option in ("--train.learning-rate", "--train.learning_rate"):
        assert get(parsed("--model", "m_x", option, "1"), "train.learning_rate") == "1"
    assert get(parsed("--model=m_x"), "model.path") == "m_x"


def test_the_help_of_a_template_names_them_all():
    text = dict(setting_fields())["data.template"].description
    assert text.startswith("a chat template: " + ", ".join(list(NAMED)[:-1]))
    assert f" or {list(NAMED)[-1]};" in text


def test_a_switch_needs_no_value():
    assert get(parsed("--model", "m", "--train.population"), "train.population") is True
    assert get(parsed("--model", "m", "--train.population", "no"), "train.population") == "no"


def test_options_change_what_the_file_says(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("loss: {beta: 0.5, tau: 2.0}\ntrain: {epochs: 7}\n")
    settings = parsed("--config", file, "--beta", "0.1", "--train.max-steps", "4")
    assert settings == {
        "loss": {"beta": "0.1", "tau": 2.0},
        "train": {"epochs": 7, "max_steps": "4"},
    }


def test_without_config_model_and_data_the_embedded_default_is_meant():
    embedded = yaml.safe_load((ROOT / "configs" / "embedded.yaml").read_text())
    assert parsed() == embedded
    assert parsed("--data", "d.jsonl") == {"data": {"path": "d.jsonl"}}


def test_numbers_of_one_s_own_loss_are_named():
    several = parsed("--loss.set", "scale=1", "2", "gate=3", "--loss.set", "slope=-4e-1")
    assert several["loss"]["set"] == {"scale": ["1", "2"], "gate": "3", "slope": "-4e-1"}


@pytest.mark.parametrize("words", [("scale",), ("=1",), ("scale=1", "scale=2"), ("a-b=1",)])
def test_numbers_without_a_name_are_refused(words):
    with pytest.raises(ValueError, match=r"^loss\.set: "):
        parsed("--loss.set", *words)
