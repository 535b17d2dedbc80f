"""Finds the files of the model that `--model` names.

A name is `embedded`, a Hugging Face folder, a PEFT folder, the directory of a finished run (which
means its `best/`), or a hub id `owner/name`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import huggingface_hub

from tddpo_jax.errors import UserError
from tddpo_jax.system.atomic import standing
from tddpo_jax.system.hub import MODEL_ID
from tddpo_jax.system.json_files import read_object
from tddpo_jax.system.paths import EMBEDDED, SHAPES
from tddpo_jax.weights.tensor_files import content_hash, files_hash, fingerprint

ADAPTER_CONFIG = "adapter_config.json"
# A file that we write beside an adapter. It holds the fingerprint of the adapter's base.
BASE_FILE = "base.json"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


class ModelFiles(NamedTuple):
    """The folders of a model."""

    base: Path  # Hugging Face folder with the weights
    adapter: Path | None  # PEFT folder of an adapter on top of the base, if there is one

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer: the adapter's folder if it has one, else the base."""
        if self.adapter is not None and (self.adapter / "tokenizer.json").is_file():
            return self.adapter
        return self.base


def resolve(path: str, field: str = "model.path") -> ModelFiles:
    """Finds the files of a model, and fetches them from the hub if necessary.

    Args:
        path: a user's `model.path`.
        field: the setting that holds the path; every error names it.

    Returns:
        The model's folders.

    Raises:
        UserError: the path names nothing, a run or a grid without a model, or an adapter whose
            base now has different weights.
    """
    folder = _best(_folder(path, field), field)
    if not (folder / ADAPTER_CONFIG).is_file():
        return ModelFiles(_with_config(folder, path, field), None)
    base = _base_folder(folder, field)
    if (base / ADAPTER_CONFIG).is_file():
        raise UserError(f"{field}: the base of the adapter {folder} is an adapter too: {base}")
    _check_base(folder, _with_config(base, path, field), field)
    return ModelFiles(base, folder)


def adapter_hash(files: ModelFiles) -> str | None:
    """sha256 (hex) of the adapter on the base; None if there is none."""
    if files.adapter is None:
        return None
    return files_hash(sorted(files.adapter.glob("adapter_*")))


def base_name(path: str, files: ModelFiles) -> str:
    """The name under which a new adapter of this model finds its base again.

    Args:
        path: a user's `model.path`.
        files: the files that `resolve` found for it.

    Returns:
        A hub id or an absolute path.
    """
    name = path if files.adapter is None else _named_base(files.adapter)
    folders = [Path(name).expanduser(), *([files.adapter / name] if files.adapter else [])]
    is_local = name == "embedded" or any(folder.is_dir() for folder in folders)
    return str(files.base.absolute()) if is_local else name


def weights_of(path: str) -> str:
    """The hash of a model's config and weights, and of its adapter's if it has one.

    What is made with a model is kept with this hash. So no other model continues it, for example
    a run that was trained again in the same directory.

    Raises:
        UserError: as in `resolve`.
    """
    files = resolve(path)
    base, adapter = content_hash(files.base), adapter_hash(files)
    return base if adapter is None else f"{base}+{adapter}"


def _folder(path: str, field: str) -> Path:
    if path == "embedded":
        return EMBEDDED
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{field}: {path} is a file; expected a folder")
    if not MODEL_ID.fullmatch(path):
        raise UserError(f"{field}: {path!r} is neither a folder nor a hub id (owner/name)")
    return _fetched(path, field)


def _fetched(hub_id: str, field: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{field}: {hub_id} is not a local folder, and fetching it from the hub failed: "
            f"{reason}"
        ) from error


def _best(folder: Path, field: str) -> Path:
    """The `best/` of a run's directory; any other folder is returned as it is."""
    if (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
        return folder
    if (folder / "grid.json").is_file():
        raise UserError(f"{field}: {folder} is a grid; name the directory of one of its runs")
    is_run = (folder / "config.yaml").is_file() or (folder / "run.json").is_file()
    if not is_run:
        return folder
    best = standing(folder / "best")
    if not best.is_dir():
        raise UserError(f"{field}: the run {folder} has no best/ yet")
    return best


def _base_folder(adapter: Path, field: str) -> Path:
    """The folder of the base that an adapter names.

    A relative path starts at the adapter's folder or at the working directory.
    """
    name = _named_base(adapter)
    if name != "embedded" and (adapter / name).is_dir():
        return _best(adapter / name, field)
    try:
        return _best(_folder(name, field), field)
    except UserError as error:
        reason = str(error).removeprefix(f"{field}: ")
        raise UserError(f"{adapter / ADAPTER_CONFIG}: base_model_name_or_path: {reason}") from error


def _named_base(adapter: Path) -> str:
    file = adapter / ADAPTER_CONFIG
    name = read_object(file).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{file}: base_model_name_or_path is missing")
    return name


def _check_base(adapter: Path, base: Path, field: str) -> None:
    """Refuses a base whose weights have changed since our adapter was trained on it.

    Adapters of other tools name their base only, so they pass.
    """
    file = adapter / BASE_FILE
    if file.is_file() and read_object(file).get("fingerprint") != fingerprint(base):
        raise UserError(f"{field}: {adapter} was trained on other weights than {base} now holds")


def _with_config(folder: Path, path: str, field: str) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"{field}: {path}: {folder} holds no config.json")
    return folder


def model_folder(path: str) -> Path:
    """A folder with the model's `config.json`, which is all that a plan needs.

    The file ships with the project, is local, or is fetched from the hub without the weights.

    Raises:
        UserError: the path names no model, or the hub does not provide the file.
    """
    # Every shape that ships lists the hub ids that have it, so their plans need no network.
    for hub_ids in SHAPES.glob("*/hub_ids.txt"):
        if path in hub_ids.read_text().split():
            return hub_ids.parent
    if is_local(path):
        return resolve(path).base
    try:
        return Path(huggingface_hub.hf_hub_download(path, "config.json")).parent
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model.path: {path}: fetching config.json failed: {reason}") from None


def is_local(path: str) -> bool:
    """Whether a `model.path` names something on this machine, and not a hub id."""
    return path == "embedded" or Path(path).expanduser().exists()
