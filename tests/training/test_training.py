"""Training end to end: the files of a run, its metrics and its best policy; what may not matter."""

from __future__ import annotations

import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_runs
import torch
import yaml
from transformers import AutoModelForCausalLM

from tddpo_jax.config.reading import resolve
from tddpo_jax.losses.metric_names import PAIR_METRICS, SATURATED
from tddpo_jax.runs.records import best_record
from tddpo_jax.training import loop, step_log
from tddpo_jax.training.step_log import StepLog
from tddpo_jax.training.step_order import Order
from tddpo_jax.training.validation import evaluate

TIMES = {"pairs_per_second", "mfu"}
OF_PAIRS = (*PAIR_METRICS, SATURATED)
TRAINING_METRICS = {*OF_PAIRS, "grad_norm", "learning_rate", "num_tokens", *TIMES}
BETA, TAU = 0.05, 1.0

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The directory of a finished TD-DPO run."""
    directory = tmp_path_factory.mktemp("runs") / "td_dpo"
    tiny_runs.run_on_one_device(inputs, directory, {"loss.beta": BETA, "loss.tau": TAU})
    return directory


# ---- the files of a run --------------------------------------------------------------------------


def test_a_run_leaves_the_files_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("best", "checkpoints", "claim.lock", "config.yaml", "evaluations", "metrics.jsonl"),
        *("run.json", "summary.json", "tensorboard"),
    }


def test_the_configuration_is_stored_resolved(finished, inputs):
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored["model"]["path"] == str(inputs.model)
    assert stored["loss"]["tau"] == TAU
    assert stored["train"]["weight_decay"] == 0.01  # a default that nobody set
    assert resolve(stored).model_dump(mode="json", exclude={"output", "hosts"}) == stored


def test_run_json_tells_versions_devices_hashes_and_row_counts(finished):
    facts = json.loads((finished / "run.json").read_text())
    assert {"tddpo_jax", "jax", "flax", "transformers", "python"} <= set(facts["versions"])
    assert facts["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert (facts["data"]["train_rows"], facts["data"]["validation_rows"]) == (18, 7)
    assert all(len(facts[part]["sha256"]) == 64 for part in ("model", "data"))
    assert set(facts) >= {"git_commit", "device"}


def test_rows_that_cannot_be_used_are_listed_in_run_json(inputs, tmp_path):
    good = read_rows(inputs.train)
    rows = [good[0], {**good[1], "prompt_ids": []}, {**good[1], "chosen_ids": []}, *good[1:]]
    train = tiny_runs.write_rows(tmp_path / "train.jsonl", rows)
    tiny_runs.run(inputs, tmp_path / "run", {"data.path": str(train), "train.max_steps": 1})
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert data["dropped"] == {"empty prompt": 1, "empty response": 1}
    assert data["dropped_rows"] == {"empty prompt": [1], "empty response": [2]}
    assert data["train_rows"] == 18


def test_a_mixture_trains_and_records_the_rows_of_each_data_set(inputs, tmp_path):
    sets = [{"path": str(inputs.train), "fraction": 0.5}, str(inputs.validation)]
    changes = {"data.path": sets, "data.validation": 0.2, "train.epochs": 1}
    tiny_runs.run(inputs, tmp_path / "run", changes)
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert data["path"] == f"{inputs.train} + {inputs.validation}"
    assert data["sources"] == {
        str(inputs.train): {"train_rows": 7, "validation_rows": 2},
        str(inputs.validation): {"train_rows": 6, "validation_rows": 1},
    }
    # An epoch of steps of 5 pairs sees each of the 13 rows once.
    assert [line["epoch"] for line in tiny_runs.training_lines(tmp_path / "run")] == [
        0,
        1 / 3,
        2 / 3,
    ]


# ---- metrics -------------------------------------------------------------------------------------


def test_every_step_and_every_validation_has_its_line(finished):
    """18 pairs in steps of 5 make 4 steps an epoch; every 3 steps, epoch ends and the end."""
    steps = [line["step"] for line in tiny_runs.training_lines(finished)]
    validations = [line["step"] for line in tiny_runs.validation_lines(finished)]
    assert steps == list(range(8))
    assert validations == [0, 3, 4, 6, 8]
    # Validation after a step comes before the next step, as it happened.
    order = [(line["step"], "loss" in line) for line in tiny_runs.lines(finished)]
    assert order == sorted(order)


def test_lines_have_the_names_of_the_metrics(finished):
    for line in tiny_runs.training_lines(finished):
        timed = TIMES if line["step"] else set()  # the first step compiles
        assert set(line) == {"step", "epoch", *(TRAINING_METRICS - TIMES), *timed}
    for line in tiny_runs.validation_lines(finished):
        assert set(line) == {"step", "epoch", *(f"eval_{name}" for name in OF_PAIRS)}
    for line in tiny_runs.lines(finished):
        assert line["epoch"] == line["step"] / 4
        assert all(math.isfinite(value) for value in line.values())


def test_speeds_leave_out_compilations_and_validations(inputs, tmp_path, monkeypatch):
    """Steps with a new shape take 100 s here, validations 1000 s, and all other steps 2 s."""
    now = [0.0]
    monkeypatch.setattr(step_log, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    started, starts, read = set(), StepLog.starts, StepLog.read

    def slow_starts(self, batch):
        now[0] += 0 if batch.tokens.shape in started else 100
        started.add(batch.tokens.shape)
        starts(self, batch)

    def slow_read(self, *arguments):
        now[0] += 2
        read(self, *arguments)

    def slow_evaluate(*arguments):
        now[0] += 1000
        evaluate(*arguments)

    monkeypatch.setattr(StepLog, "starts", slow_starts)
    monkeypatch.setattr(StepLog, "read", slow_read)
    monkeypatch.setattr(loop, "evaluate", slow_evaluate)
    tiny_runs.run(inputs, tmp_path / "run")
    sizes = [len(Order(18, 4, 8, seed=0).numbers(step)) for step in range(8)]
    for line in tiny_runs.training_lines(tmp_path / "run")[1:]:
        timed = sizes[1 : line["step"] + 1]
        assert line["pairs_per_second"] == pytest.approx(sum(timed) / (2 * len(timed)))


def test_training_metrics_belong_to_the_parameters_before_the_step(finished):
    first = tiny_runs.training_lines(finished)[0]
    assert first["kl"] == pytest.approx(0, abs=1e-8)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert first["rewards/accuracies"] == 0.5
    assert tiny_runs.training_lines(finished)[1]["kl"] > 1e-4


def test_the_metrics_of_a_step_are_means_over_its_pairs(finished, inputs):
    """The first step's, from transformers' log-probs of the untrained model."""
    rows = read_rows(inputs.train)
    theirs = AutoModelForCausalLM.from_pretrained(inputs.model).eval()
    numbers = Order(examples=18, steps_per_epoch=4, total_steps=8, seed=0).numbers(0)
    logps = np.array([transformers_log_probs(theirs, rows[number]) for number in numbers])
    margin = logps[:, 0] - logps[:, 1]
    first = tiny_runs.training_lines(finished)[0]
    assert first["loss"] == pytest.approx(np.logaddexp(0, -margin / TAU).mean(), rel=1e-5)
    assert first["logps/chosen"] == pytest.approx(logps[:, 0].mean(), rel=1e-5)
    assert first["logps/rejected"] == pytest.approx(logps[:, 1].mean(), rel=1e-5)
    assert first["logps/accuracies"] == pytest.approx((margin > 0).mean())


def test_tokens_are_counted_once_for_a_prompt_and_add_up(finished, inputs):
    """A pair takes prompt + chosen + rejected - 2 places: the last token of a response predicts
    nothing. Two epochs see every pair twice."""
    rows = [json.loads(line) for line in inputs.train.read_text().splitlines()]
    tokens = sum(sum(map(len, row.values())) - 2 for row in rows)
    counted = [line["num_tokens"] for line in tiny_runs.training_lines(finished)]
    assert counted[3::4] == [tokens, 2 * tokens]
    assert counted == sorted(counted)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(finished):
    """A tenth of 8 steps is one of warm-up; the others fall by half a cosine of 7 steps."""
    rates = [line["learning_rate"] for line in tiny_runs.training_lines(finished)]
    falling = 1e-3 * (1 + np.cos(np.pi * np.arange(7) / 7)) / 2
    np.testing.assert_allclose(rates, [1e-3, *falling], rtol=1e-6)


def test_log_every_thins_the_training_lines_and_no_validation(inputs, tmp_path):
    tiny_runs.run(inputs, tmp_path / "run", {"train.log_every": 3})
    assert [line["step"] for line in tiny_runs.training_lines(tmp_path / "run")] == [0, 3, 6]
    validations = tiny_runs.validation_lines(tmp_path / "run")
    assert [line["step"] for line in validations] == [0, 3, 4, 6, 8]


def test_validation_metrics_are_means_over_pairs(finished):
    """Recomputed in float64 from the stored log-probs of every pair and of the reference."""
    reference = np.load(finished / "evaluations" / "reference.npy").astype(np.float64)
    for line in tiny_runs.validation_lines(finished):
        file = finished / "evaluations" / f"{line['step']:06d}.npy"
        logps = np.load(file).astype(np.float64)
        assert logps.shape == (7, 2)
        s_w, s_l = (logps - reference).T
        margin, kl = logps[:, 0] - logps[:, 1], 0.5 * (s_w**2 + s_l**2)
        expected = {
            "loss": np.logaddexp(0, -margin / TAU) + BETA * kl,
            "rewards/chosen": s_w,
            "rewards/rejected": s_l,
            "rewards/margins": s_w - s_l,
            "rewards/accuracies": np.where(np.abs(s_w - s_l) < 1e-4, 0.5, s_w > s_l),
            "logps/chosen": logps[:, 0],
            "logps/rejected": logps[:, 1],
            "logps/accuracies": margin > 0,
            "kl": kl,
        }
        for name, values in expected.items():
            found = line[f"eval_{name}"]
            np.testing.assert_allclose(found, values.mean(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_lengths_of_the_responses_are_kept_beside(finished, inputs):
    rows = [json.loads(line) for line in inputs.validation.read_text().splitlines()]
    expected = [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows]
    np.testing.assert_array_equal(np.load(finished / "evaluations" / "lengths.npy"), expected)


def test_tensorboard_shows_the_same_numbers(finished):
    written = [
        (line["step"], name, pytest.approx(value, rel=1e-6))
        for line in tiny_runs.lines(finished)
        for name, value in line.items()
        if name != "step"
    ]
    shown = [value for value in tiny_runs.board(finished) if not value[1].startswith("best/")]
    assert shown == written


def test_td_dpo_is_what_its_metrics_say(inputs, tmp_path):
    """With one pair a mean is that pair: loss = softplus(-(logp_w - logp_l) / tau) + beta kl and
    kl = (s_w^2 + s_l^2) / 2, where s is what a log-prob moved since the first line."""
    train = tiny_runs.write_rows(tmp_path / "one.jsonl", tiny_runs.random_rows(1, seed=4))
    changes = {
        "data.path": str(train),
        "data.validation": 0,
        "loss.beta": [0.01, 2.5],
        "loss.tau": [0.5, 2],
        "train.learning_rate": 0.02,
        "train.max_steps": 5,
    }
    summaries = tiny_runs.run(inputs, tmp_path / "grid", changes)
    assert [summary["state"] for summary in summaries] == ["finished"] * 4
    for beta in (0.01, 2.5):
        for tau in (0.5, 2.0):
            directory = tmp_path / "grid" / f"td_dpo-beta{beta}-tau{tau}-seed0"
            assert not tiny_runs.validation_lines(directory)
            first, *_, last = steps = tiny_runs.training_lines(directory)
            assert last["kl"] > 0.1  # far from the start, where nothing could be told apart
            for line in steps:
                margin = line["logps/chosen"] - line["logps/rejected"]
                s_w = line["logps/chosen"] - first["logps/chosen"]
                s_l = line["logps/rejected"] - first["logps/rejected"]
                expected = np.logaddexp(0, -margin / tau) + beta * line["kl"]
                assert line["loss"] == pytest.approx(expected, rel=1e-5)
                assert line["kl"] == pytest.approx(0.5 * (s_w**2 + s_l**2), rel=1e-4, abs=1e-8)


# ---- the best policy -----------------------------------------------------------------------------


def test_the_best_step_is_the_first_of_the_best_after_step_0():
    def records(*values):
        return [{"step": step, "eval_kl": value} for step, value in enumerate(values)]

    assert best_record(records(0.0, 0.5, 0.2, 0.2, 0.7), "eval_kl")["step"] == 2
    accuracies = [{"step": 0, "a": 1.0}, {"step": 3, "a": 0.6}, {"step": 5, "a": 0.6}]
    assert best_record(accuracies, "a")["step"] == 3
    assert best_record([{"step": 2, "loss": 1.0}], "eval_loss") is None


def test_a_validation_that_is_not_a_number_is_never_the_best():
    for metric in ("eval_loss", "eval_rewards/margins"):
        records = [{"step": 1, metric: math.nan}, {"step": 2, metric: 0.5}]
        assert best_record(records, metric)["step"] == 2
        assert best_record(records[:1], metric) is None


@pytest.fixture(scope="module")
def risen(inputs, tmp_path_factory):
    """A run whose best step by the smallest KL is its first validation after step 0."""
    directory = tmp_path_factory.mktemp("runs") / "risen"
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        tiny_runs.run(inputs, directory, {"train.best_metric": "eval_kl"})
    return directory


def test_the_summary_names_the_best_step(risen):
    validations = tiny_runs.validation_lines(risen)
    summary = json.loads((risen / "summary.json").read_text())
    best = min(validations[1:], key=lambda line: line["eval_kl"])
    assert best["step"] < validations[-1]["step"]
    assert summary["best"] == best
    assert (summary["first"], summary["last"]) == (validations[0], validations[-1])
    assert (summary["state"], summary["steps"], summary["export"]) == ("finished", 8, "best")


def test_best_holds_the_policy_of_the_best_step(risen, inputs):
    """transformers' log-probs of the exported policy are those of the validation of that step."""
    best = json.loads((risen / "summary.json").read_text())["best"]
    stored = np.load(risen / "evaluations" / f"{best['step']:06d}.npy")
    theirs = AutoModelForCausalLM.from_pretrained(risen / "best").eval()
    found = [transformers_log_probs(theirs, row) for row in read_rows(inputs.validation)]
    np.testing.assert_allclose(found, stored, rtol=1e-5, atol=1e-4)


def test_transformers_gives_the_exported_policys_logits(risen):
    tokens = np.random.default_rng(5).integers(0, tiny_runs.SHAPE["vocab_size"], (2, 19))
    theirs = AutoModelForCausalLM.from_pretrained(risen / "best").eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits
    ours = tiny_models.load(risen / "best", jnp.float32)
    logits = tiny_models.hidden_states(ours, tokens) @ ours.head_weight.T
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_without_validation_the_last_policy_is_exported(inputs, tmp_path):
    changes = {"data.validation": 0, "train.max_steps": 2}
    (summary,) = tiny_runs.run(inputs, tmp_path / "run", changes)
    assert (summary["best"], summary["export"]) == (None, "best")
    trained = tiny_runs.last_state(tmp_path / "run")["trainable.norm.weight"]
    exported = tiny_runs.weights(tmp_path / "run")["model.norm.weight"]
    np.testing.assert_array_equal(exported, trained)


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def transformers_log_probs(model, row):
    """Sums over the response tokens of both branches, in nats."""
    sums = []
    for column in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([row["prompt_ids"] + row[column]])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].float().log_softmax(-1)
        taken = logps.gather(1, ids[0, 1:, None])[:, 0]
        sums.append(float(taken[len(row["prompt_ids"]) - 1 :].sum()))
    return sums


# ---- what may not matter -------------------------------------------------------------------------

SAME = {
    "rows of the chosen length, and of half of it": {"data.row_length": None},
    "three rows a micro-batch, recomputed": {"data.rows": 3, "model.remat": "full"},
    "plain rows": {"data.layout": "plain"},
    "weights shared by eight devices": {"mesh.fsdp": 8},
    "a mesh of three axes": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
}


# With these no loss becomes flat. See the test.
NEVER_FLAT = {"loss.beta": 1e-3, "loss.tau": 25}


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    """The directory of a run whose losses never become flat."""
    directory = tmp_path_factory.mktemp("runs") / "never_flat"
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        tiny_runs.run(inputs, directory, NEVER_FLAT)
    return directory


@pytest.mark.parametrize("name", SAME)
def test_the_layout_changes_no_metric_and_no_weight(name, expected, inputs, tmp_path, monkeypatch):
    """Everything is compared after two epochs of AdamW, in float32.

    A log-prob of up to 100 nats is a sum, and float32 numbers of that size are 8e-6 apart. This is
    the error of every reward, in nats, and hence the bound of what rewards enter.

    The gradient is a sum over responses of a coefficient times the log-prob's own gradient. An
    error of 1e-5 nats moves a coefficient by at most 1e-5 (1 / 4 tau + beta), which has to be small
    beside the coefficient. Here it is half of 1 / tau at first, so the relative error is 1e-6, and
    that of sums in another order comes on top.

    With tau 1 and beta 0.05 it would not be so: the coefficients of a pair that has won die out,
    the gradient's norm falls from 75 to 0.3, and such a rest of large gradients is mostly rounding.
    On three axes and with AVX-512, float32 gradients at equal weights differed by 1e-4 of it, and
    the norm by 8e-5 after four steps. In float64 the norms of all eight steps agreed to 7e-14, so
    the layout makes no difference. Nor did Adam make the error larger: weights were 3e-8 apart.

    A step rounds each weight by up to half a spacing, 6e-8 of the largest weight, in both runs:
    after eight steps they differ by at most 1e-6 of it.
    """
    # A reference of its own: one that another test left would be of another mesh, and rounded so.
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "cache"))
    if any(setting.startswith("mesh") for setting in SAME[name]):
        tiny_runs.use_devices(monkeypatch, 8)
    tiny_runs.run(inputs, tmp_path / "run", {**NEVER_FLAT, **SAME[name]})
    lines = tiny_runs.untimed(tiny_runs.lines(expected))
    found = tiny_runs.untimed(tiny_runs.lines(tmp_path / "run"))
    for line, same in zip(found, lines, strict=True):
        assert line == pytest.approx(same, rel=1e-5, abs=3e-5)
        if "grad_norm" in same:
            assert line["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-5)
    for name, weight in tiny_runs.weights(expected).items():
        other = tiny_runs.weights(tmp_path / "run")[name]
        assert np.max(np.abs(other - weight)) <= 1e-6 * np.max(np.abs(weight)), name
