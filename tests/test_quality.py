"""Quality of sampled answers: figures that are counted by hand, and one run on the real thing."""

import json

import pytest

from eval.quality import distinct, main, read_prompts, repetition
from tddpo_jax.model_files import EMBEDDED


def test_distinct_counts_different_n_grams_of_all_texts():
    """`a b a` and `a b`: words a b a a b, 2 of 5; pairs ab ba ab, 2 of 3."""
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["", "a"], 2) == 0


def test_repetition_is_the_share_of_n_grams_that_came_before():
    """`a b c a b c`: trigrams abc bca cab abc, one of four stands there before."""
    assert repetition("a b c a b c") == pytest.approx(1 / 4)
    assert repetition("a b") == 0


def test_prompts_are_read_once_each(tmp_path):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [{"chosen": turns, "rejected": turns}, {"chosen": turns}, {"prompt": "P"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(str(file), 10) == [turns[:1], [{"role": "user", "content": "P"}]]
    assert len(read_prompts(None, 7)) == 7


def test_a_model_beside_itself_wins_half_and_has_no_kl(tmp_path, monkeypatch, capsys):
    """The same model with the same keys gives the same answers: every comparison is a tie."""
    model = tmp_path / "model"
    model.mkdir()
    for file in EMBEDDED.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    arguments = ["quality", str(model), "--base", "embedded", "--most", "8"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    figures = json.loads((model / "quality.json").read_text())
    assert figures["win_rate"] == 0.5
    assert figures["kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert figures["score"] == figures["base_score"]
    assert len(figures["scores"]) == figures["prompts"] == 8
    assert "win_rate" in capsys.readouterr().out


def test_bad_settings_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["quality", "embedded", "--base", "embedded", "--most", "0"])
    assert main() == 2
    assert capsys.readouterr().err == "error: --most: must be at least 1, got 0\n"
