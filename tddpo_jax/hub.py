"""Whether Hugging Face's hub answers, found out in seconds and not in a minute of retries."""

from __future__ import annotations

import os
import socket

HOST, PORT, SECONDS = "huggingface.co", 443, 3.0


def offline_unless_it_answers() -> None:
    """Lets what is imported later use only the files at hand, if the hub does not answer."""
    try:
        socket.create_connection((HOST, PORT), SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
