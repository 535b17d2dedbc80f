"""A mixture trains beside the losses it is made of, in their program."""

import json

import numpy as np
import pytest
import tiny_runs

from eval.report.__main__ import main
from tddpo_jax.errors import UserError

CHANGES = {
    "loss.name": ["dpo", "dpo+sft"],
    "loss.mix": {"sft": [0.1, 0.5]},
    "train.max_steps": 2,
    "train.eval_every": None,
}
NAMES = ["dpo-beta0.05-seed0", *(f"dpo+sft-beta0.05-sft{weight}-seed0" for weight in (0.1, 0.5))]


@pytest.fixture(scope="module")
def grid(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "grid"
    with tiny_runs.compilations() as counts:
        tiny_runs.run_on_one_device(inputs, folder, CHANGES)
    assert counts["add_gradients"] == 1
    return folder


def test_the_loss_is_the_weighted_sum_and_rewards_are_dpo_s(grid):
    """Before the first update DPO is log 2, and SFT the mean over the chosen tokens of -logp."""
    dpo, *mixed = (tiny_runs.validation_lines(grid / name)[0] for name in NAMES)
    folder = grid / NAMES[0] / "evaluations"
    logps, lengths = (np.load(folder / f"{name}.npy")[:, 0] for name in ("000000", "lengths"))
    for weight, line in zip((0.1, 0.5), mixed, strict=True):
        expected = np.log(2) - weight * logps.sum() / lengths.sum()
        assert line["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert line["eval_rewards/margins"] == dpo["eval_rewards/margins"]
    after = [tiny_runs.training_lines(grid / name)[1]["logps/chosen"] for name in NAMES]
    assert len(set(after)) == 3


def test_the_same_command_leaves_it_alone_and_another_weight_is_another_run(grid, inputs):
    before = tiny_runs.times(grid)
    tiny_runs.run(inputs, grid, CHANGES)
    assert tiny_runs.times(grid) == before
    fixed = {**CHANGES, "loss.mix": {"dpo": 2, "sft": [0.1, 0.5]}}
    with pytest.raises(UserError, match=r"loss\.mix\.dpo is 1\.0, asked for 2\.0$"):
        tiny_runs.run(inputs, grid, fixed)


def test_the_report_names_it(grid):
    assert main([str(grid)]) == 0
    card = json.loads((grid / "experiment.json").read_text())
    methods = [card["proposed_method"], *card["comparative_methods"]]
    assert "dpo+sft: The weighted sum of dpo and sft." in methods
    (grid / NAMES[2] / "config.yaml").unlink()
    assert main([str(grid)]) == 0  # a cell that has not begun is known by its name
