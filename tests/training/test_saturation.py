"""How many margins are saturated is logged for the losses that have a gradient weight."""

import numpy as np
import pytest
import tiny_runs

from tddpo_jax.config.reading import resolve
from tddpo_jax.losses.metric_names import SATURATED
from tddpo_jax.training.result_warnings import saturation

CHANGES = {"loss.name": ["td_dpo", "ipo"], "train.max_steps": 1, "train.eval_every": None}


@pytest.mark.usefixtures("one_device")
def test_it_is_the_share_of_pairs_and_not_there_without_a_weight(inputs, tmp_path):
    """td_dpo's margin is logp_chosen - logp_rejected over tau; |z| = log 19 is the bound."""
    tiny_runs.run(inputs, tmp_path, CHANGES)
    ours, other = tmp_path / "td_dpo-beta0.05-tau1.0-seed0", tmp_path / "ipo-beta0.05-seed0"
    for line in tiny_runs.validation_lines(ours):
        logps = np.load(ours / "evaluations" / f"{line['step']:06d}.npy")
        z = logps[:, 0] - logps[:, 1]
        expected = np.mean(np.abs(z) > np.log(19))
        assert line[f"eval_{SATURATED}"] == pytest.approx(expected)
    assert 0 < tiny_runs.training_lines(ours)[0][SATURATED] <= 1
    assert not [line for line in tiny_runs.lines(other) if SATURATED in "".join(line)]


def test_one_sentence_says_so_where_it_is_extreme():
    td_dpo, dpo = resolve({}), resolve({"loss": {"name": "dpo"}})
    (line,) = saturation(td_dpo, 0.83)
    assert line.startswith("before the first step, 83% of the pairs have a gradient weight below")
    assert line.endswith("a higher loss.tau spreads the weights")
    assert saturation(dpo, 0.5)[0].endswith("a lower loss.beta spreads the weights")
    assert saturation(td_dpo, 0.49) == saturation(td_dpo, None) == []
