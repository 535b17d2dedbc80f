"""Prints what the user reads before a run and after it."""

from __future__ import annotations

from tddpo_jax.data.examples import VERBATIM
from tddpo_jax.data.remarks import description
from tddpo_jax.models.tensor_table import parameter_count
from tddpo_jax.placement.shardings import bytes_of_device
from tddpo_jax.runs.run_directory import RunDirectory, read_part
from tddpo_jax.system.console import Screen
from tddpo_jax.system.devices import GIB
from tddpo_jax.training.prepare import Experiment
from tddpo_jax.training.step_order import make_order


def describe_plan(experiment: Experiment, cells: int, screen: Screen) -> None:
    """Prints the model, the rows used and dropped, the steps and batches, the mesh, the memory.

    Args:
        experiment: the loaded model and data.
        cells: the number of cells to train.
        screen: prints the lines.
    """
    shared = experiment.shared
    config, data, model = shared.config, shared.dataset, shared.model_config
    parameters = parameter_count(model.parameters)
    screen.say(
        f"model    {config.model.path}: {parameters:,} parameters, {model.layers} layers "
        f"of width {model.width}; {config.train.mode} training, {shared.how.dtype} computation"
    )
    if config.model.reference is not None:
        screen.say(f"reference {config.model.reference}")
    what = "pairs" if data.responses == 2 else "examples of one response"
    for number, line in enumerate(description(config.data.names, data)):
        screen.say(f"{'' if number else 'data':<9}{line}")
    order = make_order(config, len(data.train))
    rows = " or ".join(f"{shape.rows} x {shape.length}" for shape in shared.shapes)
    screen.say(
        f"steps    {order.total_steps} of {order.per_step} {what}, "
        f"{order.steps_per_epoch} per epoch; micro-batches of {rows} tokens"
    )
    mesh = " x ".join(f"{name} {size}" for name, size in shared.mesh.shape.items())
    screen.say(f"devices  mesh {mesh}; {_state_bytes(experiment) / GIB:.3g} GiB of state on each")
    if cells > 1:
        screen.say(f"cells    {cells} to train")
    every = config.train.eval_every
    if every is not None and every > order.total_steps:
        screen.say(
            f"warning: train.eval_every is {every}, but the run ends at step {order.total_steps}; "
            "validation runs only at the end of every epoch and of the run"
        )


def _state_bytes(experiment: Experiment) -> int:
    """Bytes per device of the weights, Adam's two moments and the gradient sums."""
    policy = experiment.policy
    return 4 * bytes_of_device(policy.loaded) + bytes_of_device(policy.frozen)


def describe_result(directory: RunDirectory, screen: Screen) -> None:
    """Prints how the run ended, its best validation, the policy's folder and the next command."""
    summary = directory.summary
    if summary is None:
        return
    screen.say(f"{directory.path}: {summary['state']} after {summary['steps']} steps")
    if summary["divergence"]:
        screen.say(f"  {summary['divergence']['reason']}")
    first, best = summary["first"], summary["best"]
    if best:
        names = dict.fromkeys((summary["best_metric"], "eval_loss", "eval_kl"))
        changes = (f"{name} {first[name]:.4g} -> {best[name]:.4g}" for name in names)
        screen.say(f"  best step {best['step']} by {summary['best_metric']}: {', '.join(changes)}")
    describe_warnings(directory, screen)
    if summary["export"]:
        path, facts = directory.path, read_part(directory.path, "run.json")
        is_verbatim = facts is not None and facts["data"].get("template") == VERBATIM
        prompt = "--prompt-ids ID ID" if is_verbatim else "--prompt TEXT"
        screen.say(
            f"  policy in {path / summary['export']}; try: python -m tddpo_jax generate "
            f"--model {path} {prompt}"
        )


def describe_warnings(directory: RunDirectory, screen: Screen) -> None:
    """Prints the warnings of a finished run's summary; earlier versions wrote none."""
    for line in (directory.summary or {}).get("warnings", []):
        screen.say(f"warning: {directory.path.name}: {line}")
