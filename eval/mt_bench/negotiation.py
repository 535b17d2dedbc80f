"""What an endpoint accepts, and what its refusals say about it.

Endpoints refuse parameters that they do not know, and some chat templates know no system role. A
refusal is understood once; the request goes out again without what was refused.
"""

from __future__ import annotations

import re

import openai

from .judge_settings import Accepted

# The limit on new tokens has two names. Some endpoints know neither.
NEXT_TOKEN_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": None}
REFUSAL = re.compile(
    r"unsupported|not support|not permitted|not allowed|unrecogni[sz]ed|unknown|deprecated", re.I
)
# Requests have one system and one user message. What an endpoint says of roles is therefore about
# the system role, whatever words its chat template has for it.
ROLE = re.compile(r"\broles?\b|\b(system|developer) (message|prompt|instruction)s?\b", re.I)
ROLE_REFUSAL = re.compile(
    rf"{REFUSAL.pattern}|\bmust\b|\bonly\b|invalid|unexpected|not enabled", re.I
)


def without_refused(accepted: Accepted, error: openai.APIError, max_tokens: int) -> Accepted | None:
    """What is left without what an error refuses; None if the error is about something else.

    A token limit is first tried under its other name, and dropped only if that is refused too.
    """
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return None
    refused = [name for name in accepted.parameters if _refuses(error, name)]
    if refused:
        kept = {name: n for name, n in accepted.parameters.items() if name not in refused}
        other_names = [NEXT_TOKEN_LIMIT.get(name) for name in refused]
        more = {name: max_tokens for name in other_names if name is not None}
        return accepted._replace(parameters=kept | more)
    if accepted.system_role and _refuses_system_role(error):
        return accepted._replace(system_role=False)
    return None


def _refuses(error: openai.APIError, name: str) -> bool:
    if error.code in ("unsupported_parameter", "unsupported_value") and error.param is not None:
        return error.param == name
    # Some endpoints refuse in words only. An error about a limit that is too large also names the
    # parameter; the second pattern tells the two apart.
    said = str(error.message)
    return bool(re.search(rf"\b{name}\b", said) and REFUSAL.search(said))


def _refuses_system_role(error: openai.APIError) -> bool:
    said = str(error.message)
    return bool(ROLE.search(said) and ROLE_REFUSAL.search(said))
