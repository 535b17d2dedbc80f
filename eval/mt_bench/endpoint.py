"""A judge's endpoint: the client, the parameters it accepts, and what its errors mean.

Errors are of three kinds. The user must act, because the key is refused or the model is unknown:
`UserError`. No request can succeed for now, because the quota is spent: `JudgeStopped`. This
request failed, and another may succeed: `RequestFailed`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import openai
import pydantic

from tddpo_jax.errors import UserError

from .judge_settings import Judge, JudgeStopped, Parameters

# The limit on new tokens has two names. Some endpoints know neither.
NEXT_TOKEN_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": None}
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
REFUSAL = re.compile(
    r"unsupported|not support|not permitted|not allowed|unrecogni[sz]ed|unknown|deprecated", re.I
)


class RequestFailed(RuntimeError):
    """The judge did not answer one request. The same request may succeed later."""


class RequestRefused(RequestFailed):
    """The endpoint refuses this request, for example because its text is too long."""


@dataclasses.dataclass
class Session:
    """An open client, and what one run has learnt about the endpoint.

    Attributes:
        parameters: the sampling that the endpoint is known to accept. The dict is replaced, never
            changed in place.
    """

    client: openai.AsyncOpenAI
    judge: Judge
    key: str = dataclasses.field(repr=False)
    parameters: Parameters


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a judge answered.

    Attributes:
        retries: how often the client repeated the request.
        parameters: the sampling of the request.
    """

    text: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int
    completion_tokens: int
    retries: int
    parameters: Parameters


class Message(pydantic.BaseModel):
    content: str | None = None


class Choice(pydantic.BaseModel):
    message: Message
    finish_reason: str | None = None


class Usage(pydantic.BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(pydantic.BaseModel):
    """The parts of a chat completion that are used. The client does not validate them; we do."""

    model: str | None = None
    choices: list[Choice] = pydantic.Field(min_length=1)
    usage: Usage | None = None


def client(judge: Judge, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=judge.base_url,
        max_retries=judge.max_retries,
        timeout=judge.timeout,
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_no_retry_of_quota]}),
    )


async def _no_retry_of_quota(response: Any) -> None:
    """A response hook. The client repeats every 429, but a spent quota does not come back."""
    if response.status_code != 429:
        return
    body = await response.aread()
    if any(code.encode() in body for code in QUOTA_CODES):
        response.headers["x-should-retry"] = "false"


async def complete(session: Session, messages: list[dict[str, str]]) -> Reply | None:
    """Asks for one chat completion; None if the answer is not one.

    Parameters that the endpoint refuses are replaced or dropped in `session.parameters`, for this
    and all later requests.

    Raises:
        UserError, JudgeStopped, RequestFailed: as the head of this file says.
    """
    while True:
        sent = session.parameters
        try:
            create: Any = session.client.chat.completions.with_raw_response.create
            response = await create(
                model=session.judge.model,
                messages=messages,
                **sent,
            )
        except openai.APIError as error:
            accepted = without_refused(sent, error, session.judge.max_tokens)
            if accepted is None:
                raise explained(error, session) from None
            # Other requests under way are refused for the same reason. The first one's finding
            # stays.
            if session.parameters is sent:
                session.parameters = accepted
            continue
        return _reply(_hidden(response.http_response.text, session.key), response, sent)


def _reply(body: str, response: Any, parameters: Parameters) -> Reply | None:
    try:
        completion = Completion.model_validate_json(body)
    except pydantic.ValidationError:
        return None
    choice = completion.choices[0]
    usage = completion.usage or Usage()
    return Reply(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        model=completion.model,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        retries=response.retries_taken,
        parameters=parameters,
    )


def without_refused(
    parameters: Parameters, error: openai.APIError, max_tokens: int
) -> Parameters | None:
    """The parameters without those that an error refuses; None if it is about something else.

    A token limit is first tried under its other name, and dropped only if that is refused too.
    """
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return None
    refused = [name for name in parameters if _refuses(error, name)]
    if not refused:
        return None
    accepted = {name: value for name, value in parameters.items() if name not in refused}
    other_names = [NEXT_TOKEN_LIMIT.get(name) for name in refused]
    return accepted | {name: max_tokens for name in other_names if name is not None}


def _refuses(error: openai.APIError, name: str) -> bool:
    if error.code in ("unsupported_parameter", "unsupported_value") and error.param is not None:
        return error.param == name
    # Some endpoints refuse in words only. An error about a limit that is too large also names the
    # parameter; the second pattern tells the two apart.
    said = str(error.message)
    return bool(re.search(rf"\b{name}\b", said) and REFUSAL.search(said))


def explained(error: openai.APIError, session: Session) -> Exception:
    """The exception to raise in place of the client's, with one line that says what happened."""
    judge = session.judge
    where = judge.where or "the OpenAI API"
    if isinstance(error, openai.APITimeoutError):
        return RequestFailed(f"no answer within {judge.timeout:g} s")
    if not isinstance(error, openai.APIStatusError):
        return RequestFailed(f"no connection to {where}")
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    said = " ".join(_hidden(str(body.get("message") or error.message), session.key).split())[:300]
    if status in (401, 403):
        return UserError(f"{judge.key_name}: {where} refuses the key ({status}): {said}")
    if (
        status == 404
        or error.code == "model_not_found"
        or (status == 400 and error.param == "model")
    ):
        return UserError(f"--judge-model {judge.model}: not found at {where} ({status}): {said}")
    if status == 402 or QUOTA_CODES & {error.code, error.type}:
        return JudgeStopped(f"the quota at {where} is spent ({status}): {said}")
    passing = status in (408, 409, 429) or status >= 500
    return (RequestFailed if passing else RequestRefused)(f"status {status}: {said}")


def _hidden(text: str, key: str) -> str:
    """The text without the key: an endpoint may repeat it. A short placeholder is not a secret."""
    return text.replace(key, "[key]") if len(key) >= 8 else text
