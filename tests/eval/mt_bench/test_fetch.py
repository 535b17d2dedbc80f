"""The download, against a file server on loopback."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mt_bench_files import write_data

from eval.mt_bench import fetch
from eval.mt_bench.__main__ import main
from eval.mt_bench.benchmark import load_data


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A mirror, its files pinned in place of FastChat's."""
    folder = write_data(tmp_path / "mirror")
    pinned = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in fetch.CHECKSUMS
    }
    monkeypatch.setattr(fetch, "CHECKSUMS", pinned)
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}", folder
    http.shutdown()
    thread.join()
    http.server_close()


def test_downloads_once_what_is_missing(
    source: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, mirror = source
    folder = fetch.default_folder()
    assert main(["fetch", "--source", url]) == 0
    assert "3 files downloaded" in capsys.readouterr().out
    assert load_data(folder).questions.keys() == load_data(mirror).questions.keys()
    assert main(["fetch", "--source", url]) == 0
    assert "0 files downloaded" in capsys.readouterr().out
    (folder / "judge_prompts.jsonl").write_text("changed")
    assert main(["fetch", "--source", url]) == 0
    assert "1 files downloaded" in capsys.readouterr().out
    assert not list(folder.rglob("*.partial"))


def test_a_changed_source_is_refused(
    source: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, mirror = source
    (mirror / "judge_prompts.jsonl").write_text("{}\n")
    assert main(["fetch", "--source", url]) == 1
    said = capsys.readouterr().err
    assert f"{url}/judge_prompts.jsonl: its SHA-256 is" in said
    assert said.count("\n") == 1
    assert not (fetch.default_folder() / "judge_prompts.jsonl").exists()


def test_a_source_that_is_not_there(
    source: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = source
    assert main(["fetch", "--source", f"{url}/nowhere"]) == 1
    said = capsys.readouterr().err
    assert f"{url}/nowhere/judge_prompts.jsonl: HTTP Error 404" in said
    assert said.count("\n") == 1


def test_a_local_copy_is_compared(
    source: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, mirror = source
    assert main(["fetch", "--data-dir", str(mirror)]) == 0
    assert "4 questions; FastChat's own" in capsys.readouterr().out
    with (mirror / "judge_prompts.jsonl").open("a") as file:
        file.write("\n")
    assert main(["fetch", "--data-dir", str(mirror)]) == 0
    assert "these differ from FastChat's: judge_prompts.jsonl" in capsys.readouterr().out


def test_the_pin_is_a_commit_and_checksums() -> None:
    assert len(fetch.COMMIT) == 40
    assert fetch.COMMIT in fetch.SOURCE
    assert all(len(checksum) == 64 for checksum in fetch.CHECKSUMS.values())
