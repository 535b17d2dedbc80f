"""Hugging Face's hub: what its ids look like, and whether it answers.

One short request finds out whether it answers. The hub's own client would retry for a minute.
"""

from __future__ import annotations

import os
import re

import huggingface_hub
from huggingface_hub import constants

from tddpo_jax.errors import UserError

SECONDS = 3.0
# Some old data sets of the hub, such as `imdb`, have no owner in their id. A model's id must have
# one here: a single word is more likely a misspelt folder, and every Llama on the hub has an owner.
_NAME = r"[\w.-]+"
MODEL_ID = re.compile(f"{_NAME}/{_NAME}")
DATA_SET_ID = re.compile(f"({_NAME}/)?{_NAME}")


class NotAtHand(UserError):
    """The files of a hub id are not in the cache, and the hub did not give them."""


def answers() -> bool:
    """Whether the hub, or its mirror (`HF_ENDPOINT`), may be asked and can be reached.

    The hub's client knows the mirror, the proxies and `HF_HUB_OFFLINE`.
    """
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # the client's kinds of errors are not the same in all of its versions
        return False
    return True


def offline_unless_it_answers() -> None:
    """If the hub does not answer, lets only cached files be used."""
    if not answers():
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for modules that are imported later, and processes
