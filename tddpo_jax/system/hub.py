"""Whether Hugging Face's hub answers, found out in seconds and not in a minute of retries."""

from __future__ import annotations

import os
import socket

from tddpo_jax.errors import UserError

HOST, PORT, SECONDS = "huggingface.co", 443, 3.0


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
