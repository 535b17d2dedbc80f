"""The package from Python: the same runs, files and errors as on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import own_losses
import pytest
import tiny_runs
from places import ROOT

import tddpo_jax
from tddpo_jax.data.given_rows import save_rows

SHORT = {
    "data.row_length": 64,
    "model.remat": "none",
    "train.adam_eps": 1e-2,
    "train.batch_pairs": 5,
    "train.learning_rate": 1e-3,
    "train.max_steps": 2,
}


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def experiment(inputs, tmp_path_factory):
    """Runs of two losses on rows in memory, and what `on_record` was told."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        runs = tddpo_jax.train(
            model=inputs.model,
            data=rows_of(inputs.train),
            loss=[own_losses.my_dpo, "dpo"],
            beta=0.1,
            settings={
                **SHORT,
                "data.validation": str(inputs.validation),
                "loss.set.margin_scale": [1, 2],
            },
            output=tmp_path_factory.mktemp("api") / "grid",
            on_record=lambda cell, record: told.append((cell, record)),
            quiet=True,
        )
    return runs, told


def test_runs_are_known_by_the_names_of_their_cells(experiment):
    runs, _ = experiment
    mine = [f"my_dpo-beta0.1-margin_scale{scale}-seed0" for scale in (1.0, 2.0)]
    assert list(runs) == [*mine, "dpo-beta0.1-seed0"]
    run = runs["dpo-beta0.1-seed0"]
    assert run.summary["state"] == "finished"
    assert run.records == tiny_runs.lines(run.path)
    assert run.settings["loss"]["beta"] == 0.1
    with pytest.raises(KeyError, match=r"no cell 'ipo'; there are my_dpo-beta0\.1-margin_scale1"):
        runs["ipo"]


def test_every_record_is_told_with_its_cell(experiment):
    runs, told = experiment
    for name, run in runs.items():
        assert [record for cell, record in told if cell == name] == run.records


def test_the_table_has_a_row_for_each_cell(experiment):
    runs, _ = experiment
    table = runs.table()
    assert list(table.index) == list(runs)
    assert list(table["loss"]) == ["my_dpo", "my_dpo", "dpo"]
    assert list(table["margin_scale"][:2]) == [1.0, 2.0]
    assert set(table["state"]) == {"finished"}
    best = runs["dpo-beta0.1-seed0"].summary["best"]
    assert table.loc["dpo-beta0.1-seed0", "eval_loss"] == best["eval_loss"]


def test_log_probs_are_of_one_data_set_and_its_split(inputs):
    with pytest.raises(tddpo_jax.UserError, match=r"^data\.split: "):
        tddpo_jax.log_probs(inputs.model, inputs.validation, split="test")


@pytest.mark.usefixtures("one_device")
def test_a_run_is_a_model(experiment, inputs, tmp_path):
    runs, _ = experiment
    run = runs["dpo-beta0.1-seed0"]
    answer = run.generate("tok", max_new_tokens=4)
    assert answer == tddpo_jax.generate(run.path, "tok", max_new_tokens=4)
    ids = tddpo_jax.generate(run.path, [5, 6, 7], max_new_tokens=4, ignore_eos=True)
    assert len(ids) == 4
    assert all(isinstance(each, int) for each in ids)
    folder = tddpo_jax.export(run, tmp_path / "policy")
    assert (folder / "model.safetensors").exists()
    of_rows = tddpo_jax.log_probs(run.path, rows_of(inputs.validation))
    assert of_rows == tddpo_jax.log_probs(folder, inputs.validation)
    assert of_rows[0].keys() >= {"index", "logp_chosen", "logp_rejected"}


def test_a_report_is_written_beside_the_runs(experiment):
    runs, _ = experiment
    lines = tddpo_jax.report(runs)
    folder = runs["dpo-beta0.1-seed0"].path.parent
    assert str(folder / "report.html") in lines
    with pytest.raises(tddpo_jax.UserError, match="is not a grid or run directory"):
        tddpo_jax.report(folder / "no_such_grid")


def test_rows_in_memory_have_one_file_for_what_they_hold():
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "ä", "chosen": None}]
    file = save_rows(rows)
    assert rows_of(file) == rows
    assert save_rows(rows) == file != save_rows(rows[:1])
    whole = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert save_rows(datasets.Dataset.from_list(whole)) == save_rows(whole)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "data: there are no rows"),
        (["text"], "data: row 0 must be a mapping, got str"),
        ([{"a": 1}, {"a": {1}}], "data: row 1 is not JSON: "),
    ],
)
def test_rows_that_are_refused(rows, message):
    with pytest.raises(tddpo_jax.UserError, match=f"^{message}"):
        save_rows(rows)


def outer():
    def nested(pairs, *, beta):
        return -beta * pairs.logp_chosen

    return nested


NOWHERE = {}
exec("def of_no_file(pairs, *, beta):\n    return -beta * pairs.logp_chosen\n", NOWHERE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": outer()}, "loss: .*nested is not a function at the top of a file; write it"),
        ({"loss": lambda pairs, *, beta: 0}, "loss: <lambda> is not a function at the top"),
        ({"loss": NOWHERE["of_no_file"]}, "loss: of_no_file is not a function at the top"),
        ({"loss": "ppo"}, r"loss\.name: .* got 'ppo'"),
        ({"loss": own_losses.has_steps}, r"loss\.name: has_steps: its gradient is zero"),
        ({"settings": {"train.epoch": 1}}, r"train\.epoch: no such setting"),
        ({"beta": 0.1, "settings": {"loss.beta": 1}}, r"loss\.beta: is given twice"),
        ({"data": ["a.jsonl", Path("a.jsonl")]}, r"data\.path: names a data set twice"),
    ],
)
@pytest.mark.usefixtures("one_device")
def test_mistakes_are_user_errors(arguments, message, tmp_path):
    with pytest.raises(tddpo_jax.UserError, match=f"^{message}"):
        tddpo_jax.train(**arguments, output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_file_that_trains_while_it_is_read_is_refused(tmp_path):
    """It would train once more for every time that its loss is read."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import tddpo_jax\n"
        "def mine(pairs, *, beta):\n    return -beta * pairs.logp_chosen\n"
        "tddpo_jax.train(loss=mine)\n"
    )
    with pytest.raises(tddpo_jax.UserError, match=r"put that under if __name__ == '__main__'$"):
        tddpo_jax.train(loss=f"{file}:mine", output=tmp_path / "run")


def test_importing_the_package_is_cheap_and_its_names_are_there():
    code = (
        "import sys, tddpo_jax; print('jax' in sys.modules, 'pydantic' in sys.modules); "
        "print(all(getattr(tddpo_jax, name) for name in tddpo_jax.__all__), "
        "'jax' in sys.modules, tddpo_jax.losses.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False False", "True False tddpo_jax.losses"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = tddpo_jax.tarin
