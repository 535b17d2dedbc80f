"""Runs of adapters that start from a run of adapters: what they start from and what they export."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_runs

from tddpo_jax.adapters.peft_files import read_peft_config
from tddpo_jax.commands.export import export_run
from tddpo_jax.commands.logps import write_log_probs
from tddpo_jax.config.schema import DataSource

# Each run starts from the policy of the one before it.
FEW = ["q_proj", "down_proj"]
CHAINS = {
    "adapters of few layers and of all": [
        {"train.mode": "lora", "lora.rank": 2},
        {"train.mode": "lora", "lora.rank": 3, "lora.alpha": 7.0, "lora.targets": FEW},
        {"train.mode": "lora", "lora.rank": 1, "lora.dropout": 0.3},
    ],
    "four bits, then beside them": [
        {"train.mode": "qlora", "lora.rank": 2, "lora.targets": FEW},
        {"train.mode": "lora", "lora.rank": 3},
        {"train.mode": "qlora", "lora.rank": 1},
    ],
    "four bits of the base below an adapter": [
        {"train.mode": "lora", "lora.rank": 2},
        {"train.mode": "qlora", "lora.rank": 2},
    ],
}

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module", params=CHAINS)
def chain(request, inputs, tmp_path_factory):
    """The directories of the finished runs of a chain, and their settings."""
    folder, model = tmp_path_factory.mktemp("runs"), str(inputs.model)
    directories = []
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        for number, settings in enumerate(CHAINS[request.param]):
            directories.append(folder / f"run{number}")
            short = {"loss.name": "dpo", "train.max_steps": 4, "train.learning_rate": 0.02}
            changes = {**short, **settings, "model.path": model}
            tiny_runs.run(inputs, directories[-1], changes)
            model = str(directories[-1])
    return directories, CHAINS[request.param]


def log_probs(model, inputs, tmp_path):
    data = DataSource(path=str(inputs.validation))
    write_log_probs(str(model), data, tmp_path / "logps", None, "auto")
    lines = [json.loads(line) for line in (tmp_path / "logps").read_text().splitlines()]
    return np.array([[line["logp_chosen"], line["logp_rejected"]] for line in lines])


def test_what_a_run_exports_is_what_it_validated(chain, inputs, tmp_path):
    """Sums of up to 100 nats, whose float32 spacing is 8e-6; merging rounds every weight once."""
    for directory in chain[0]:
        best = json.loads((directory / "summary.json").read_text())["best"]["step"]
        validated = np.load(directory / "evaluations" / f"{best:06d}.npy")
        reference = np.load(directory / "evaluations" / "reference.npy")
        assert np.abs(validated - reference).max() > 0.1, "nothing was learned"
        found = log_probs(directory, inputs, tmp_path)
        np.testing.assert_allclose(found, validated, rtol=1e-5, atol=1e-4)
        # Merged into a Hugging Face folder it is the same policy.
        merged = tmp_path / directory.name
        export_run(directory, merged, adapter=False)
        found = log_probs(merged, inputs, tmp_path)
        np.testing.assert_allclose(found, validated, rtol=1e-5, atol=1e-4)


def test_a_run_starts_from_the_policy_before_it(chain, inputs, tmp_path):
    """Unless its base is now in four bits, which is another policy."""
    directories, settings = chain
    modes = [each["train.mode"] for each in settings]
    for number, directory in enumerate(directories[1:], 1):
        start = np.load(directory / "evaluations" / "reference.npy")
        before = log_probs(directories[number - 1], inputs, tmp_path)
        apart = np.abs(start - before).max()
        quantised_now = modes[number] == "qlora" and "qlora" not in modes[:number]
        assert apart > 0.1 if quantised_now else apart < 1e-3


def test_ranks_of_a_chain_add_up(chain):
    directories, settings = chain
    ranks = [read_peft_config(directory / "best").rank for directory in directories]
    assert ranks == np.cumsum([each["lora.rank"] for each in settings]).tolist()


def test_a_chain_that_was_in_four_bits_says_so(chain):
    directories, settings = chain
    modes = [each["train.mode"] for each in settings]
    for number, directory in enumerate(directories):
        in_four_bits = (directory / "best" / "quantized_base.json").exists()
        assert in_four_bits == ("qlora" in modes[: number + 1])
