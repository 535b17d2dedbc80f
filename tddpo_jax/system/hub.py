"""Hugging Face's hub: what its ids look like, and whether it answers.

Whether it answers is found out in seconds, and not in a minute of retries.
"""

from __future__ import annotations

import os
import re
import socket

from tddpo_jax.errors import UserError

HOST, PORT, SECONDS = "huggingface.co", 443, 3.0
# Old data sets of the hub have no owner, such as `imdb`. For models an owner is required: a single
# word is more likely a misspelt folder, and no Llama has such an id.
_NAME = r"[\w.-]+"
MODEL_ID = re.compile(f"{_NAME}/{_NAME}")
DATA_SET_ID = re.compile(f"({_NAME}/)?{_NAME}")


class NotAtHand(UserError):
    """What a hub id stands for is not in the cache, and the hub did not give it."""


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
    """Lets what is imported later use only the files at hand, if the hub does not answer."""
    if not answers():
        os.environ["HF_HUB_OFFLINE"] = "1"
