"""Hugging Face's hub: what its ids look like, and whether it answers.

One short connection finds out whether it answers. The hub's own client would retry for a minute.
"""

from __future__ import annotations

import os
import re
import socket

from tddpo_jax.errors import UserError

HOST, PORT, SECONDS = "huggingface.co", 443, 3.0
# Some old data sets of the hub, such as `imdb`, have no owner in their id. A model's id must have
# one here: a single word is more likely a misspelt folder, and every Llama on the hub has an owner.
_NAME = r"[\w.-]+"
MODEL_ID = re.compile(f"{_NAME}/{_NAME}")
DATA_SET_ID = re.compile(f"({_NAME}/)?{_NAME}")


class NotAtHand(UserError):
    """The files of a hub id are not in the cache, and the hub did not give them."""


def answers() -> bool:
    """Whether the hub may be asked and can be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    try:
        socket.create_connection((HOST, PORT), SECONDS).close()
    except OSError:
        return False
    return True


def offline_unless_it_answers() -> None:
    """If the hub does not answer, makes modules that are imported later use only cached files."""
    if not answers():
        os.environ["HF_HUB_OFFLINE"] = "1"
