"""Quality of sampled answers: figures that are counted by hand, and one run on the real thing."""

import json
import shutil

import pytest
import tiny_runs
from synthetic_grid import experiment_cells, write_grid

from eval.experiment import read_experiment
from eval.quality.__main__ import main
from eval.quality.measure import Asked, Policy, kl_per_token
from eval.quality.ngrams import distinct, repetition
from eval.quality.prompts import Question, given_questions
from eval.quality.quality_file import FILE
from eval.report.read.answer_scores import quality_scores
from eval.tasks import embedded
from tddpo_jax.config.cells import cell_name
from tddpo_jax.config.dotted import with_value
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.data.tokenizer import load_tokenizer
from tddpo_jax.embedded.task import score
from tddpo_jax.generation.generator import Completion
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.system.paths import EMBEDDED


def test_distinct_counts_different_n_grams_of_all_texts():
    """`a b a` and `a b`: words a b a a b, 2 of 5; pairs ab ba ab, 2 of 3."""
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["", "a"], 2) == 0


def test_repetition_is_the_share_of_n_grams_that_came_before():
    """`a b c a b c`: trigrams abc bca cab abc, one of four stands there before."""
    assert repetition("a b c a b c") == pytest.approx(1 / 4)
    assert repetition("a b") == 0


def test_prompts_are_asked_once_each_and_unusable_rows_are_told(tmp_path):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [{"chosen": turns, "rejected": [*turns[:1], {"role": "assistant", "content": "B"}]}]
    rows += [{"prompt": "Q", "answer": 4}, {"prompt": "P"}, {"prompt": ""}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(EMBEDDED)
    questions, unused = given_questions(str(file), tokenizer, None, 100, Vocabulary(512))
    assert [question.row for question in questions] == [rows[0], rows[2]]
    assert questions[1].prompt == "P"
    assert questions[1].ids == tuple(encode_prompt(tokenizer, [{"role": "user", "content": "P"}]))
    assert list(unused.values()) == [[3]]


def test_a_reward_of_ones_own_scores_the_answers(tmp_path, monkeypatch, capsys):
    rows, file, model = tmp_path / "rows.jsonl", tmp_path / "mine.py", tmp_path / "model"
    rows.write_text('{"prompt": "Say it.", "bonus": 2}\n{"prompt": "Say more.", "bonus": 3}\n')
    file.write_text("def reward(prompt, answer, row):\n    return row['bonus']\n")
    shutil.copytree(EMBEDDED, model)
    options = ["--prompts", str(rows), "--max-new-tokens", "4", "--reward", f"{file}:reward"]
    monkeypatch.setattr("sys.argv", ["quality", str(model), "--base", "embedded", *options])
    assert main() == 0
    assert json.loads((model / FILE).read_text())["scores"] == [2.0, 3.0]
    assert "no score" not in capsys.readouterr().out
    words = ["quality", str(model), "--base", "embedded", *options]
    monkeypatch.setattr("sys.argv", ["999" if word == "4" else word for word in words])
    assert main() == 2
    assert "leaves no room for a prompt" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", words)
    # Another reward is another question.
    file.write_text("def reward(prompt, answer, row):\n    return -row['bonus']\n")
    assert main() == 0
    assert json.loads((model / FILE).read_text())["score"] == -2.5


def test_the_embedded_task_has_prompts_and_a_rule():
    """400 prompts, no two the same; silence earns nothing."""
    prompts = embedded.prompts()
    assert len({prompt[0]["content"] for prompt in prompts}) == len(prompts) == 400
    assert score("") == 0
    assert score("The old dog was happy by the river.") > 0


def test_a_model_beside_itself_wins_half_and_has_no_kl(tmp_path, monkeypatch, capsys):
    """The same model with the same keys gives the same answers: every comparison is a tie."""
    model = tmp_path / "model"
    model.mkdir()
    for file in EMBEDDED.iterdir():
        if file.is_file():  # a run leaves a folder of compiled modules
            (model / file.name).write_bytes(file.read_bytes())
    arguments = ["quality", str(model), "--base", "embedded", "--most", "8"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    figures = json.loads((model / "quality.json").read_text())
    assert figures["win_rate"] == 0.5
    assert figures["kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert figures["score"] == figures["base_score"]
    assert len(figures["scores"]) == figures["asked"]["prompts"] == 8
    assert "win_rate" in capsys.readouterr().out


def test_a_policy_that_answers_nothing_has_no_kl():
    nothing = Policy(None, None)
    asked = Asked([Question((1, 2), "Q", {}, 0)], Sampling(), 0)
    silence = [Completion("", [], "length", False)]
    assert kl_per_token(nothing, nothing, asked, silence, make_mesh(MeshConfig())) is None


def test_a_grid_is_measured_once_and_again_where_it_changed(tmp_path, monkeypatch, capsys):
    """A finished cell, one that diverged before any best/, one unfinished, and one base."""
    cells = experiment_cells(loss=["dpo"], beta=[0.1], seed=[0, 1, 2])
    finished, diverged, unfinished = map(cell_name, cells)
    grid = write_grid(
        tmp_path / "grid", cells, lambda _: 0.7, diverged={diverged: 3}, unfinished=[unfinished]
    )
    shutil.copytree(EMBEDDED, grid / finished / "best", dirs_exist_ok=True)

    def run(*more):
        monkeypatch.setattr("sys.argv", ["quality", str(grid), "--most", "4", *more])
        assert main() == 0
        return capsys.readouterr().out

    said = run()
    assert f"{diverged} (its base, because it diverged before it had a best/)" in said
    assert unfinished not in said
    of_finished, of_diverged = (json.loads((grid / n / FILE).read_text()) for n in cells_of(grid))
    assert (of_finished["policy"], of_diverged["policy"], of_diverged["step"]) == (
        "best",
        "base",
        0,
    )
    assert of_finished["step"] in (5, 10, 15, 20)
    assert of_finished["asked"] == of_diverged["asked"]
    assert of_finished["asked"]["sampling"]["temperature"] == 1.0
    assert of_diverged["scores"] == of_finished["scores"]
    assert of_diverged["score"] == of_diverged["base_score"]

    before = tiny_runs.times(grid)
    assert run().count("already measured; skipped") == 2
    assert tiny_runs.times(grid) == before
    # A later best/, and then another seed for all.
    (grid / finished / FILE).write_text(json.dumps(of_finished | {"step": 1}))
    assert run().count("already measured; skipped") == 1
    assert json.loads((grid / finished / FILE).read_text()) == of_finished
    assert "skipped" not in run("--seed", "1")


def test_a_run_on_other_data_answers_its_own_prompts_and_has_no_score(
    tmp_path, monkeypatch, capsys
):
    """The validation data has two rows with one prompt; the report has no score of the rule."""
    rows = tmp_path / "own.jsonl"
    row = {"prompt": "Say it. ", "chosen": "the old dog", "rejected": "a red cat"}
    rows.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'rejected': 'no'})}\n")
    mapping = experiment_cells(loss=["dpo"], beta=[0.1], seed=[0])[0].model_dump(mode="json")
    data = {"path": str(rows), "validation": str(rows)}
    cell = resolve(with_value(mapping, "data", data))
    run = write_grid(tmp_path / "grid", [cell], lambda _: 0.7) / cell_name(cell)
    shutil.copytree(EMBEDDED, run / "best", dirs_exist_ok=True)
    monkeypatch.setattr("sys.argv", ["quality", str(run), "--max-new-tokens", "4"])
    assert main() == 0
    said = capsys.readouterr().out
    assert f"{run.name}: no score, because the run's data is {rows}" in said
    figures = json.loads((run / FILE).read_text())
    assert not {"score", "base_score", "win_rate", "scores"} & figures.keys()
    assert {"tokens", "unfinished", "distinct_1", "repetition", "kl_per_token"} <= figures.keys()
    assert figures["asked"]["prompts"] == 1
    assert main() == 0
    assert "already measured" in capsys.readouterr().out

    scores, notes = quality_scores(read_experiment(run.parent))
    assert (scores, notes) == ([], [])

    monkeypatch.setattr("sys.argv", ["quality", str(run), "--reward", "embedded"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: --reward: needs --prompts, because ")


def test_the_rule_does_not_score_answers_of_a_model_to_other_prompts(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "own.jsonl"
    rows.write_text('{"prompt": "Say it."}\n')
    options = ["--base", "embedded", "--prompts", str(rows), "--max-new-tokens", "4"]
    monkeypatch.setattr("sys.argv", ["quality", "embedded", *options])
    assert main() == 0
    said = capsys.readouterr().out
    assert f"embedded: no score, because the prompts are those of {rows}" in said
    assert "win_rate" not in said


def cells_of(grid):
    """The names of the cells that were measured."""
    return [file.parent.name for file in sorted(grid.glob(f"*/{FILE}"))]


def test_a_grid_of_which_no_cell_has_finished_is_refused(tmp_path, monkeypatch, capsys):
    cells = experiment_cells(loss=["dpo"], beta=[0.1], seed=[0, 1])
    grid = write_grid(tmp_path / "g", cells, lambda _: 0.7, unfinished=list(map(cell_name, cells)))
    monkeypatch.setattr("sys.argv", ["quality", str(grid)])
    assert main() == 2
    assert capsys.readouterr().err == f"error: {grid}: no cell of the grid has finished yet\n"


def test_bad_settings_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["quality", "embedded", "--base", "embedded", "--most", "0"])
    assert main() == 2
    assert capsys.readouterr().err == "error: --most: must be at least 1, got 0\n"
