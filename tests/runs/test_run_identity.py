"""Which settings make a run another run."""

import json

import pytest
from synthetic_grid import facts

from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.models.llama.tensors import LINEAR_NAMES
from tddpo_jax.runs.grid_directory import check_cells
from tddpo_jax.runs.run_directory import RunDirectory, identity


def settings_with(targets):
    config = resolve({"train": {"mode": "lora"}, "lora": {"targets": targets}})
    return config.model_dump(mode="json")


def test_naming_all_linear_layers_is_the_default():
    """Runs of earlier versions wrote all seven names out, and go on; fewer are another run."""
    default = identity(settings_with(None))
    assert identity(settings_with(LINEAR_NAMES)) == default
    assert identity(settings_with(LINEAR_NAMES[1:])) != default


def test_the_weight_of_the_routers_loss_counts_where_routers_are_trained():
    """Runs of earlier versions had neither setting."""

    def of(**train):
        return identity(resolve({"train": train}).model_dump(mode="json"))

    settings = resolve({}).model_dump(mode="json")
    early = {**settings, "train": dict(settings["train"])}
    del early["train"]["router"], early["train"]["router_aux"]
    assert identity(early) == of() == of(router_aux=0.5)
    adapters = of(mode="lora", router="trained")
    assert of(mode="lora", router="trained", router_aux=0.5) == adapters
    trained = of(router="trained")
    assert trained != of()
    assert of(router="trained", router_aux=0.5) != trained
    assert of(router="trained", router_aux=0.001) == trained


@pytest.mark.parametrize(("batch_pairs", "refused"), [(64, True), (60, False)])
def test_an_unfinished_run_with_steps_of_other_sizes_is_refused(batch_pairs, refused, tmp_path):
    """Earlier versions gave the last step of an epoch the remainder; 60 divides 900 pairs."""
    run = RunDirectory(tmp_path / "run", resolve({"train": {"batch_pairs": batch_pairs}}))
    for _ in range(2):
        run.create(facts(10))
    file = tmp_path / "run" / "run.json"
    old = {name: value for name, value in facts(10).items() if name != "step_sizes"}
    file.write_text(json.dumps(old))
    # A command checks all cells before it writes a file.
    for check in (lambda: check_cells([run], facts(10)), lambda: run.create(facts(10))):
        if not refused:
            check()
            continue
        with pytest.raises(UserError, match=r"^output: .*run was begun by an earlier version, who"):
            check()
        assert json.loads(file.read_text()) == old
    run.finish({"state": "finished", "steps": 45})
    check_cells([run], facts(10))
