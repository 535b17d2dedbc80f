"""A run with adapters on experts in four bits."""

import json

import numpy as np
import pytest
import tiny_gpt_oss
import tiny_models
import tiny_runs

from tddpo_jax.adapters.load import load_unmerged
from tddpo_jax.losses.metric_names import EXPERT_LOAD
from tddpo_jax.weights.locate import resolve

TARGETS = ("q_proj", "experts.gate_up", "experts.down")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    model = tiny_gpt_oss.write(folder / "model")
    files = [
        tiny_runs.write_rows(folder / f"{seed}.jsonl", tiny_runs.random_rows(6, seed))
        for seed in (1, 2)
    ]
    return tiny_runs.Inputs(model, *files)


@pytest.fixture(scope="module")
def run(inputs, tmp_path_factory):
    """Two steps of QLoRA on experts, with a rate at which every step shows."""
    output = tmp_path_factory.mktemp("runs") / "run"
    changes = {
        "train.mode": "qlora",
        "train.max_steps": 2,
        "train.learning_rate": 1e-2,
        "lora.targets": list(TARGETS),
        "lora.rank": 2,
    }
    tiny_runs.run_on_one_device(inputs, output, changes)
    return output


def test_the_policy_begins_as_the_reference_and_then_learns(run):
    """Step 0 is exact although experts are in four bits: both are computed by one program."""
    first, *_, last = tiny_runs.validation_lines(run)
    assert first["eval_kl"] == 0
    assert first["eval_logps/chosen"] != last["eval_logps/chosen"]
    steps = tiny_runs.training_lines(run)
    assert steps[0]["kl"] == 0
    sizes = tiny_gpt_oss.SIZES
    most = sizes["num_local_experts"] / sizes["num_experts_per_tok"]  # if all choose the same
    assert all(1 < line[EXPERT_LOAD] <= most for line in steps)


def test_the_adapters_of_experts_are_read_back(run):
    """Expected: those of the last state, beside experts as they are packed."""
    model = load_unmerged(resolve(str(run / "best")), tiny_models.one_device(), np.float32)
    state = tiny_runs.last_state(run)
    for name in ("gate_up", "down"):
        adapter = getattr(model.layers.experts, name).adapter
        for factor in "ab":
            wanted = state[f"trainable.layers.experts.{name}.adapter.{factor}"]
            np.testing.assert_array_equal(getattr(adapter, factor)[...], wanted)
            assert np.any(wanted)
    attributes = json.loads((run / "best" / "adapter_config.json").read_text())
    assert attributes["target_parameters"] == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    assert attributes["target_modules"] == ["q_proj"]
