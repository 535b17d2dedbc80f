"""The package from Python: the verbs of the command line as functions.

    import tddpo_jax

    runs = tddpo_jax.train(data=rows, loss=["td_dpo", "dpo"], beta=[0.05, 0.1], output="runs/x")
    runs.table()
    runs["dpo-beta0.05-seed0"].generate("Why?")

Every function does what the verb of its name does, with the same settings, files and errors. What a
user gets wrong is a `UserError`, whose message is one line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tddpo_jax.call_arguments import (
    Data,
    DataSets,
    Loss,
    Numbers,
    before_jax,
    settings_of_call,
    source_of_call,
)
from tddpo_jax.config.cells import expand, ignored_in, populations
from tddpo_jax.config.own_function import name_of_function
from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError, one_line
from tddpo_jax.results import Run, Runs
from tddpo_jax.runs.grid_directory import cell_directories
from tddpo_jax.system.paths import ABOVE

# Importing these takes seconds, which `import tddpo_jax` must not.
if TYPE_CHECKING:
    from tddpo_jax.planning.plan import Plan
else:
    Plan = Any

# A text, or token ids; what a model answers is of the same kind.
Prompt = TypeVar("Prompt", str, list[int])
# Takes the name of a cell, and a line of its `metrics.jsonl`.
OnRecord = Callable[[str, dict[str, Any]], None]


def train(
    *,
    model: str | Path | None = None,
    data: DataSets | None = None,
    loss: Loss | Sequence[Loss] | None = None,
    beta: Numbers | None = None,
    tau: Numbers | None = None,
    seed: int | Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    on_record: OnRecord | None = None,
    quiet: bool = False,
) -> Runs:
    """Trains one run, or every cell of a grid, and waits until all cells are finished.

    The same call resumes an unfinished run and leaves a finished one alone. Without a model and
    without data it trains the embedded example.

    Args:
        model: a Hugging Face or PEFT folder, a run directory, a hub id, or `embedded`.
        data: a file, folder or hub id, a data set in memory, or a list of rows. Rows in memory are
            written into the cache, under a hash of what they hold. Several paths or ids are mixed.
        loss: the name of a loss, `file.py:function`, or a function that is defined in a file; or a
            list of these.
        beta: its beta, or a list.
        tau: its tau, or a list.
        seed: the seed, or a list.
        settings: other settings by dotted name, such as `{"train.max_steps": 3}`. The axes of a
            grid may have lists, such as `{"loss.set.scale": [1, 2]}`.
        output: the directory of the run or grid.
        on_record: is called with the name of the cell and every line of its `metrics.jsonl`.
        quiet: whether to print nothing.

    Returns:
        The cells. A cell that diverged says so in its `summary`.

    Raises:
        UserError: a setting, a file or the loss is wrong, or the output holds another run.
    """
    given = settings_of_call(model, data, loss, beta, tau, seed, settings, output)
    before_jax()
    from tddpo_jax.experiments.grid import run_experiment
    from tddpo_jax.system.console import Screen

    run_experiment(given, Screen(quiet=quiet), on_record)
    return Runs(cell_directories(given))


def log_probs(
    model: str | Path,
    data: Data,
    *,
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> list[dict[str, Any]]:
    """The log-probs of every row's responses in nats, and the numbers of tokens.

    Args:
        model: as for `train`.
        data: one data set, as for `train`; no prompt or response is cut.
        split: this, `config` and `columns`: as in the section `data` of the settings.
        config: see `split`.
        columns: see `split`.
        template: name of a chat template; default: the tokenizer's own.
        dtype: dtype of the computation.

    Returns:
        One mapping per row, as the verb `logps` writes them. A row that cannot be used has its
        `index` and the reason, `unusable`.

    Raises:
        UserError: the model or the data is wrong.
    """
    source = source_of_call(data, split, config, columns)
    before_jax()
    from tddpo_jax.commands.logps import log_prob_lines

    return log_prob_lines(str(model), source, template, dtype)


def generate(
    model: str | Path,
    prompt: Prompt,
    *,
    system: str | None = None,
    begin: str | None = None,
    template: str | None = None,
    raw: bool = False,
    ignore_eos: bool = False,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str = "auto",
) -> Prompt:
    """The new text with which a model answers one prompt; for token ids the new ids.

    Args:
        model: as for `train`.
        prompt: the user's message, or the beginning of a text if `raw`; or token ids, which are
            taken as they are and need no tokenizer.
        system: a system message before the prompt.
        begin: beginning of the answer, which the model continues.
        template: name of a chat template; default: the tokenizer's own.
        raw: whether to continue the prompt without a chat template.
        ignore_eos: whether nothing but its length ends the answer.
        max_new_tokens: most new tokens; default: 256, or half the context if that is less.
        temperature: temperature of sampling; 0: the likeliest token.
        top_k: sample from this many of the likeliest tokens; 0: from all.
        top_p: sample from the likeliest tokens of this total probability.
        seed: seed of sampling.
        dtype: dtype of weights and computation.

    Raises:
        UserError: the model, the prompt or the template is wrong.
    """
    before_jax()
    from tddpo_jax.generation.generator import generate_text

    completion = generate_text(
        str(model),
        prompt,
        raw=raw,
        template=template,
        system=system,
        begin=begin,
        ignore_eos=ignore_eos,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        dtype=dtype,
    )
    return completion.text if isinstance(prompt, str) else completion.token_ids


def sample(
    model: str | Path,
    data: Data,
    *,
    samples: int,
    reward: str | Callable[[Any, Any, Mapping[str, Any]], Any],
    output: str | Path,
    pairs: Literal["best", "all"] = "best",
    split: str | None = None,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    template: str | None = None,
    raw: bool = False,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str = "auto",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Samples answers to prompts, scores them, and makes pairs of them.

    All answers with their scores are kept beside the pairs, and the same call resumes.

    Args:
        model: as for `train`.
        data: one data set, as for `log_probs`; rows with a `prompt`, or see `data/row_prompts.py`.
        samples: number of answers to each prompt, at least 2.
        reward: `answer` for the row's reference answer by math-verify, `embedded` for the embedded
            rule, `file.py:function`, or a function that is defined in a file. It takes a prompt, an
            answer and a row, and gives a number.
        output: the file of the pairs, `NAME.jsonl`. All answers go to `NAME.samples.jsonl`.
        pairs: `best`: the best answer against the worst; `all`: each against every worse one.
        split: this, `config` and `columns`: as for `log_probs`.
        config: see `split`.
        columns: see `split`.
        template: this and the arguments up to `dtype`: as for `generate`.
        raw: see `template`.
        max_new_tokens: see `template`.
        temperature: see `template`.
        top_k: see `template`.
        top_p: see `template`.
        seed: see `template`.
        dtype: see `template`.
        quiet: whether to print nothing.

    Returns:
        The pairs, as rows to train on, with their scores.

    Raises:
        UserError: the model, the data, a setting or the reward is wrong.
    """
    source = source_of_call(data, split, config, columns)
    before_jax()
    from tddpo_jax.commands.sample import Asked, sample_pairs
    from tddpo_jax.generation.sampling import Sampling
    from tddpo_jax.system.console import Screen

    asked = Asked(
        model=str(model),
        data=source,
        samples=samples,
        reward=reward if isinstance(reward, str) else name_of_function(reward, "reward"),
        pairs=pairs,
        sampling=Sampling(temperature, top_k, top_p),
        max_new_tokens=max_new_tokens,
        seed=seed,
        template=template,
        raw=raw,
        dtype=dtype,
    )
    return sample_pairs(asked, Path(output), Screen(quiet=quiet))


def export(
    run: str | Path | Run, output: str | Path, *, adapter: bool = False, step: int | None = None
) -> Path:
    """Writes a policy of a run as a folder that transformers or PEFT loads, and returns it.

    Args:
        run: the run, or its directory.
        output: the folder to write; it must not exist yet.
        adapter: True for a PEFT folder, without merging the adapters.
        step: the step of a policy that the run keeps; default: the best one.

    Raises:
        UserError: the run has no such policy or no adapters, or the output exists.
    """
    before_jax()
    from tddpo_jax.commands.export import export_run

    path = run.path if isinstance(run, Run) else Path(run)
    export_run(path, Path(output), adapter=adapter, step=step)
    return Path(output)


def plan(
    *,
    model: str | Path | None = None,
    data: DataSets | None = None,
    loss: Loss | Sequence[Loss] | None = None,
    beta: Numbers | None = None,
    tau: Numbers | None = None,
    seed: int | Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "h100-80",
    memory_gib: float | None = None,
    tflops: float | None = None,
) -> Plan:
    """Predicts whether a run fits on devices of a kind, and how long it takes.

    Args:
        model: this and the arguments up to `settings`: as for `train`.
        device: the kind of device, as `--device` names it.
        memory_gib: GiB of the device's memory; default: its own.
        tflops: 10^12 operations per second of the device, dense in bfloat16; default: its own.

    Returns:
        The plan; `.fits`, `.peak` in bytes and `.time` are its results.

    Raises:
        UserError: a setting or the device is wrong.
    """
    given = settings_of_call(model, data, loss, beta, tau, seed, settings, None)
    configs = [resolve(cell) for cell in expand(given)]
    for line in ignored_in(configs):
        warnings.warn(line, stacklevel=2)
    before_jax()
    from tddpo_jax.planning.plan import make_plan

    members = len(populations(configs)[0])
    return make_plan(configs[0], device, members, memory_gib=memory_gib, tflops=tflops)


def report(directory: str | Path | Runs) -> list[str]:
    """Writes the report on a grid or a run into its directory.

    Args:
        directory: the directory of the grid or run, or what `train` returned.

    Returns:
        The answer's lines, then the files that were written.

    Raises:
        UserError: the directory holds no run, or a file is damaged.
    """
    # The verb computes on the CPU. Here JAX may have begun on an accelerator.
    path = os.pathsep.join(filter(None, (str(ABOVE), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "tddpo_jax", "report", str(_directory(directory))],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 2:
        raise UserError(one_line(done.stderr).removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"the report failed: {done.stderr.strip()}")
    return done.stdout.splitlines()


def _directory(found: str | Path | Runs) -> Path:
    if not isinstance(found, Runs):
        return Path(found)
    first = next(iter(found.values())).path
    return first if len(found) == 1 else first.parent
