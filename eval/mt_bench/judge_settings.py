"""Whom to ask for ratings, and how. This module does not import the client, which is optional."""

from __future__ import annotations

import dataclasses
import urllib.parse
from typing import NamedTuple

Parameters = dict[str, int | float]
Message = dict[str, str]


class Accepted(NamedTuple):
    """What an endpoint is known to accept.

    Attributes:
        parameters: the sampling.
        system_role: whether it takes a system message. If not, the text of that message stands at
            the beginning of the user's.
    """

    parameters: Parameters
    system_role: bool = True

    def messages(self, wanted: list[Message]) -> list[Message]:
        """The messages to send in place of a system and a user message."""
        if self.system_role:
            return wanted
        system, user = (message["content"] for message in wanted)
        text = f"{system.rstrip()}\n\n{user}" if system.strip() else user
        return [{"role": "user", "content": text}]


class JudgeStopped(RuntimeError):
    """No further request can succeed for now. All judgments so far are stored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """Whom to ask and how.

    Attributes:
        model: the judge's name at its endpoint.
        base_url: the URL of an OpenAI-compatible endpoint; None for OpenAI's own.
        key_name: the environment variable that holds the key; messages name it.
        max_tokens: the limit on tokens of one judgment.
        attempts: how often to ask before a request without a rating counts as invalid.
        concurrency: requests at a time.
        max_retries: how often the client repeats a request after 408, 409, 429, 5xx and broken
            connections. It obeys a `Retry-After` of up to 120 s.
        timeout: seconds for one request.
    """

    model: str
    base_url: str | None = None
    key_name: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 2048
    attempts: int = 3
    concurrency: int = 8
    max_retries: int = 5
    timeout: float = 600.0

    @property
    def requested(self) -> Parameters:
        """The sampling that is wanted."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}

    @property
    def where(self) -> str | None:
        """The base URL without user, password and query: keys may hide there."""
        if self.base_url is None:
            return None
        url = urllib.parse.urlsplit(self.base_url)
        return urllib.parse.urlunsplit(
            (url.scheme, url.netloc.rpartition("@")[2], url.path, "", "")
        )
