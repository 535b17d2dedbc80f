"""The files that a user's model path names."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from tddpo_jax.system.paths import EMBEDDED
from tddpo_jax.weights.locate import ModelFiles, base_name, resolve


def hugging_face(folder, tokenizer: bool = False):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
    return folder


def adapter(folder, base, tokenizer: bool = False):
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": base} if base is not None else {}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
    return folder


def run(folder):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that holds `owner/name` and nothing else."""
    asked = []

    def snapshot_download(hub_id, allow_patterns):
        asked.append((hub_id, tuple(allow_patterns)))
        if hub_id != "owner/name":
            raise LocalEntryNotFoundError("cannot be reached\nsee the documentation")
        return str(tmp_path / "hub")

    hugging_face(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_embedded_is_the_packages_own():
    assert resolve("embedded") == ModelFiles(EMBEDDED, None)


def test_a_hugging_face_folder_is_itself(tmp_path):
    folder = hugging_face(tmp_path / "model", tokenizer=True)
    assert resolve(str(folder)) == ModelFiles(folder, None)
    assert resolve(str(folder)).tokenizer == folder


def test_a_hub_id_is_fetched_with_the_files_that_are_read(hub, tmp_path):
    assert resolve("owner/name") == ModelFiles(tmp_path / "hub", None)
    assert hub == [("owner/name", ("*.json", "*.safetensors", "*.model", "*.jinja"))]


def test_a_local_folder_hides_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hugging_face(tmp_path / "owner" / "name")
    assert str(resolve("owner/name").base) == "owner/name"
    assert hub == []


def test_the_base_of_an_adapter_is_found_from_the_adapter_then_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, beside = hugging_face(tmp_path / "base"), hugging_face(tmp_path / "a" / "base")
    inside = adapter(tmp_path / "a" / "one", "../base")
    outside = adapter(tmp_path / "two", "base")
    absolute = adapter(tmp_path / "three", str(beside))
    assert resolve(str(inside)).base.resolve() == beside.resolve()
    assert resolve(str(outside)).base.resolve() == here.resolve()
    assert resolve(str(absolute)) == ModelFiles(beside, absolute)


def test_the_base_of_an_adapter_may_be_embedded_or_on_the_hub(hub, tmp_path):
    assert resolve(str(adapter(tmp_path / "one", "embedded"))).base == EMBEDDED
    assert resolve(str(adapter(tmp_path / "two", "owner/name"))).base == tmp_path / "hub"


def test_an_adapter_names_its_base_so_that_it_is_found_again(hub, tmp_path, monkeypatch):
    """By its hub id, also through another adapter, or else by the whole path."""
    monkeypatch.chdir(tmp_path)
    here = hugging_face(tmp_path / "base")
    through_hub = adapter(tmp_path / "one", "owner/name")
    beside = adapter(tmp_path / "a" / "two", "../../base")
    named = {path: base_name(path, resolve(path)) for path in ("owner/name", "embedded", "base")}
    assert named == {"owner/name": "owner/name", "embedded": str(EMBEDDED), "base": str(here)}
    assert base_name(str(through_hub), resolve(str(through_hub))) == "owner/name"
    assert Path(base_name(str(beside), resolve(str(beside)))).resolve() == here


def test_an_adapters_own_tokenizer_is_used(tmp_path):
    base = hugging_face(tmp_path / "base", tokenizer=True)
    with_one = adapter(tmp_path / "one", str(base), tokenizer=True)
    without = adapter(tmp_path / "two", str(base))
    assert resolve(str(with_one)).tokenizer == with_one
    assert resolve(str(without)).tokenizer == base


def test_a_run_means_its_best(tmp_path):
    full = run(tmp_path / "full")
    hugging_face(full / "best")
    assert resolve(str(full)) == ModelFiles(full / "best", None)
    lora = run(tmp_path / "lora")
    adapter(lora / "best", str(full / "best"))
    assert resolve(str(lora)) == ModelFiles(full / "best", lora / "best")
    # A run on top of a run names its directory.
    again = adapter(tmp_path / "again", str(full))
    assert resolve(str(again)) == ModelFiles(full / "best", again)


def test_what_stands_for_nothing_is_named(hub, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    grid = run(tmp_path / "grid")
    (grid / "grid.json").write_text("{}")
    unfinished = run(tmp_path / "unfinished")
    nameless = adapter(tmp_path / "nameless", None)
    baseless = adapter(tmp_path / "baseless", "no such folder")
    twice = adapter(tmp_path / "twice", str(adapter(tmp_path / "once", "owner/name")))
    problems = {
        "no/such/folder": r"model\.path: 'no/such/folder' is neither a folder nor a hub id",
        "name": r"model\.path: 'name' is neither a folder nor a hub id",
        "owner/other": r"model\.path: owner/other is not a local folder, .*: cannot be reached$",
        str(tmp_path / "file"): r"model\.path: .*file is a file",
        str(tmp_path / "empty"): r"model\.path: .*empty holds no config\.json",
        str(grid): r"model\.path: .*grid is a grid",
        str(unfinished): r"model\.path: the run .*unfinished has no best/ yet",
        str(nameless): r"adapter_config\.json: base_model_name_or_path is missing",
        str(
            baseless
        ): r"adapter_config\.json: base_model_name_or_path: 'no such folder' is neither",
        str(twice): r"model\.path: the base of the adapter .*twice is an adapter too: ",
    }
    for path, message in problems.items():
        with pytest.raises(ValueError, match=message):
            resolve(path)
