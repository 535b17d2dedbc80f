"""The verb `export`, which writes the best policy of a run, or that of a step, as a folder."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from tddpo_jax.adapters.load import load_model
from tddpo_jax.adapters.peft_files import has_quantized_base
from tddpo_jax.commands.kept_policies import kept_policies, write_kept_policy
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.runs.model_card import model_card
from tddpo_jax.runs.run_directory import check_output
from tddpo_jax.system.atomic import PARTIAL, replace_folder
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.companions import Companions
from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.locate import resolve


def export_run(run: Path, output: Path, *, adapter: bool, step: int | None = None) -> None:
    """Writes a policy of a run as a Hugging Face folder or as a PEFT folder.

    Args:
        run: the run's directory.
        output: the folder to write.
        adapter: True for a PEFT folder; False for a Hugging Face folder with merged adapters.
        step: the step of the policy; None for the best one.

    Raises:
        UserError: the run has no such policy or no adapters, or the output exists.
    """
    check_output(output.parent)
    if output.exists():
        raise UserError(f"output: {output} exists")
    if not run.is_dir():
        raise UserError(f"run: {run}: there is no such directory")
    with _policy(run, step, output.parent) as policy:
        _export(policy, run, output, adapter, step)


@contextlib.contextmanager
def _policy(run: Path, step: int | None, beside: Path) -> Iterator[Path]:
    """The run, which means its `best/`, or a temporary folder with the policy of a step."""
    if step is None:
        yield run
        return
    kept = kept_policies(run)
    kept.check(step)
    if step == kept.best:
        yield run
        return
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, suffix=PARTIAL) as folder:
        write_kept_policy(kept, step, Path(folder) / "policy")
        yield Path(folder) / "policy"


def _export(policy: Path, run: Path, output: Path, adapter: bool, step: int | None) -> None:
    files = resolve(str(policy))
    if adapter and files.adapter is None:
        raise UserError(f"adapter: {run} has no adapters")
    if adapter and has_quantized_base(files.adapter):
        warnings.warn(
            "the adapter was trained beside a four-bit base, which a PEFT folder cannot describe; "
            "on the base as stored it is another policy; export without --adapter to merge it",
            stacklevel=2,
        )
    if adapter or files.adapter is None:
        with replace_folder(output) as folder:
            shutil.copytree(files.adapter or files.base, folder, dirs_exist_ok=True)
        return
    mesh = make_mesh(MeshConfig())
    model = load_model(files, mesh, checkpoint_dtype(files.base))
    is_run = (run / "run.json").is_file()  # and not its best/
    card = model_card(run, adapter=False, step=step) if is_run else None
    companions = Companions(files.base, files.tokenizer, card=card)
    hugging_face.export(model, files.base, output, companions=companions)
