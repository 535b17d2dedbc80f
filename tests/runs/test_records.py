"""Which metric chooses the best policy, and which settings make another run."""

import pytest

from tddpo_jax.config.reading import resolve
from tddpo_jax.runs.records import best_metric, best_record, check_best_metric
from tddpo_jax.runs.run_directory import identity

PAIRS = [{"step": n, "eval_loss": n, "eval_rewards/accuracies": n / 9} for n in range(4)]
SINGLES = [{"step": n, "eval_loss": n, "eval_kl": 1.0} for n in range(4)]


def test_the_default_is_the_accuracy_of_pairs_and_the_loss_of_single_responses():
    assert best_metric(None, PAIRS) == "eval_rewards/accuracies"
    assert best_metric(None, SINGLES) == "eval_loss"
    assert best_metric("eval_kl", SINGLES) == "eval_kl"
    assert best_record(PAIRS, None)["step"] == 3
    assert best_record(SINGLES, None)["step"] == 1


def test_a_metric_that_such_data_lacks_is_refused():
    check_best_metric(None, 1)
    check_best_metric("eval_kl", 1)
    check_best_metric("eval_rewards/accuracies", 2)
    with pytest.raises(ValueError, match=r"'eval_rewards/accuracies' for data with one resp"):
        check_best_metric("eval_rewards/accuracies", 1)
    with pytest.raises(ValueError, match=r"train\.best_metric: .* 'loss'; choose one of eval_l"):
        check_best_metric("loss", 2)


@pytest.mark.parametrize("stored", ["eval_rewards/accuracies", None])
def test_a_run_that_stored_the_default_by_its_name_is_the_same_run(stored):
    """So did earlier versions; a run that they began resumes."""
    now = resolve({}).model_dump(mode="json")
    earlier = {**now, "train": {**now["train"], "best_metric": stored}}
    assert identity(earlier) == identity(now)
    assert identity({**now, "train": {**now["train"], "best_metric": "eval_kl"}}) != identity(now)


def test_a_run_of_before_a_setting_of_the_data_goes_on():
    """It had the setting at what is its default now, and is another run with any other value."""
    now = resolve({"data": {"path": "pairs.jsonl"}}).model_dump(mode="json")
    old = {name: now["data"][name] for name in now["data"] if name not in ("split", "columns")}
    assert identity({**now, "data": old}) == identity(now)
    for other in ({"split": "train_prefs"}, {"columns": {"prompt": "instruction"}}):
        assert identity({**now, "data": {**now["data"], **other}}) != identity({**now, "data": old})
