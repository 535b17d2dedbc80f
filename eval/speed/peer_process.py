"""The process of a peer's trainer, which makes one step on each command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError


class PeerProcess:
    """The peer's process. It makes one step on each command."""

    def __init__(self, peer: str, python: str, job: dict[str, Any], file: Path) -> None:
        file.write_text(json.dumps(job))
        self.name = peer
        worker = Path(__file__).with_name(f"{peer}_worker.py")
        try:
            # -I isolates it: it must not import a module of ours in place of one of the peer's.
            self.process = subprocess.Popen(
                [python, "-I", str(worker), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise UserError(f"--peer-python: {python}: {error.strerror}") from None

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self.process.stdout.readline()
        if not line:
            raise UserError(f"--against: {self.name}'s trainer stopped; its own message is above")
        return json.loads(line)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.communicate()
