"""Downloads the benchmark's files from lm-sys/FastChat (Apache-2.0) at one commit, checksummed."""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path

from tddpo_jax.system.atomic import write_file
from tddpo_jax.system.cache import cache_folder

from .benchmark import JUDGE_PROMPTS, QUESTIONS, sha256

COMMIT = "0e6d3e4beaab66f4d3f93db72541a4abab8af28d"
SOURCE = f"https://raw.githubusercontent.com/lm-sys/FastChat/{COMMIT}/fastchat/llm_judge/data"
CHECKSUMS = {
    JUDGE_PROMPTS: "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
    QUESTIONS: "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "mt_bench/reference_answer/gpt-4.jsonl": (
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f"
    ),
}


def default_folder() -> Path:
    """The folder in the user's cache where `fetch` puts the files and other commands find them."""
    return cache_folder() / f"mt_bench-{COMMIT[:12]}"


def fetch(folder: Path, source: str = SOURCE) -> list[Path]:
    """Downloads the files that `folder` lacks.

    Args:
        folder: the folder for the files.
        source: URL of FastChat's `data` folder, or of a mirror of it.

    Returns:
        The files that were downloaded.

    Raises:
        OSError: the source cannot be reached, or it sent something other than the pinned file.
    """
    wanted = [name for name in CHECKSUMS if not _is_pinned(folder / name, CHECKSUMS[name])]
    return [_download(f"{source}/{name}", folder / name, CHECKSUMS[name]) for name in wanted]


def _is_pinned(path: Path, checksum: str) -> bool:
    return path.exists() and sha256(path) == checksum


def _download(url: str, path: Path, checksum: str) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except OSError as error:
        raise OSError(f"{url}: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != checksum:
        raise OSError(f"{url}: its SHA-256 is {found[:12]}, expected {checksum[:12]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_file(path) as file:
        file.write(content)
    return path


def differing(folder: Path) -> list[str]:
    """The names of the files in a local copy that are missing or differ from the pinned ones."""
    return [name for name, checksum in CHECKSUMS.items() if not _is_pinned(folder / name, checksum)]
