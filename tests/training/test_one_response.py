"""Training on rows of one response: the same as on pairs whose rejected response nobody reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_runs

from eval.experiment import read_experiment
from eval.report.analysis import analyse
from tddpo_jax.losses.metric_names import RESPONSE_METRICS

pytestmark = pytest.mark.usefixtures("one_device")
OTHERS = {"step", "epoch", "grad_norm", "learning_rate", "num_tokens"}
TIMES = {"examples_per_second", "mfu"}


def single(file):
    """Rows of the chosen responses alone, beside the file of pairs."""
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [{"prompt_ids": p["prompt_ids"], "response_ids": p["chosen_ids"]} for p in pairs]
    return str(tiny_runs.write_rows(file.with_name(f"single_{file.name}"), rows))


@pytest.fixture(scope="module")
def changes(inputs):
    data = {"data.path": single(inputs.train), "data.validation": single(inputs.validation)}
    return {**data, "loss.name": "sft"}


@pytest.fixture(scope="module")
def finished(inputs, changes, tmp_path_factory):
    """The directory of a finished run on rows of one response."""
    directory = tmp_path_factory.mktemp("runs") / "sft"
    tiny_runs.run_on_one_device(inputs, directory, changes)
    return directory


def test_it_is_the_run_on_pairs_with_the_same_chosen_responses(finished, inputs, tmp_path):
    """Every metric of the chosen responses and every weight, to float32 rounding."""
    tiny_runs.run(
        inputs, tmp_path / "pairs", {"loss.name": "sft", "train.best_metric": "eval_loss"}
    )
    names = {"step", "loss", "rewards/chosen", "logps/chosen", "grad_norm"}
    names |= {f"eval_{name}" for name in names}
    pairs, singles = (
        [{n: v for n, v in line.items() if n in names} for line in tiny_runs.lines(directory)]
        for directory in (tmp_path / "pairs", finished)
    )
    assert len(singles) == len(pairs) == 8 + 5
    rates = [
        [line["learning_rate"] for line in tiny_runs.lines(path) if "learning_rate" in line]
        for path in (tmp_path / "pairs", finished)
    ]
    assert len(rates[0]) == 8
    assert rates[1] == pytest.approx(rates[0], rel=1e-6)
    for found, expected in zip(singles, pairs, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=3e-5)
    weights = tiny_runs.weights(finished)
    for name, expected in tiny_runs.weights(tmp_path / "pairs").items():
        assert np.max(np.abs(weights[name] - expected)) <= 1e-5 * np.max(np.abs(expected)), name


def test_no_metric_of_a_second_response_is_logged(finished):
    for line in tiny_runs.training_lines(finished):
        timed = TIMES if line["step"] else set()  # the first step compiles
        assert set(line) == {*OTHERS, *RESPONSE_METRICS, *timed}
    for line in tiny_runs.validation_lines(finished):
        assert set(line) == {"step", "epoch", *(f"eval_{name}" for name in RESPONSE_METRICS)}


def test_validation_metrics_are_means_over_rows(finished):
    """Recomputed in float64; the loss is a mean over tokens."""
    folder = finished / "evaluations"
    reference, lengths = (np.load(folder / f"{n}.npy") for n in ("reference", "lengths"))
    assert reference.shape == lengths.shape == (7, 1)
    for line in tiny_runs.validation_lines(finished):
        logps = np.load(folder / f"{line['step']:06d}.npy").astype(np.float64)
        ratios = logps - reference
        expected = {
            "eval_loss": -logps.sum() / lengths.sum(),
            "eval_rewards/chosen": ratios.mean(),
            "eval_logps/chosen": logps.mean(),
            "eval_kl": 0.5 * (ratios**2).mean(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(line[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_loss_chooses_the_best_policy(finished):
    summary = json.loads((finished / "summary.json").read_text())
    best = min(tiny_runs.validation_lines(finished)[1:], key=lambda line: line["eval_loss"])
    assert (summary["best_metric"], summary["best"]) == ("eval_loss", best)


def test_the_plain_layout_changes_nothing(finished, inputs, changes, tmp_path):
    plain = {**changes, "data.layout": "plain", "train.max_steps": 2}
    tiny_runs.run(inputs, tmp_path / "plain", plain)
    (expected, *_), (found, *_) = map(tiny_runs.training_lines, (finished, tmp_path / "plain"))
    for metric in RESPONSE_METRICS:
        assert found[metric] == pytest.approx(expected[metric], rel=1e-5, abs=3e-5), metric


def test_the_report_says_whether_it_learned_by_its_loss(finished):
    (cell,) = read_experiment(finished).cells
    assert (cell.logps.shape, cell.best_metric) == ((5, 7, 1), "eval_loss")
    score = analyse(finished).found.scores[0]
    assert (score.name, score.higher) == ("eval_loss", False)
    first, *_, last = cell.validations
    assert score.base == pytest.approx(first["eval_loss"], rel=1e-4)
    assert score.of_last(0) == pytest.approx(last["eval_loss"], rel=1e-4)
