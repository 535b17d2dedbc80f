"""A judge's endpoint: the client, what it answers, and what its errors mean.

Errors are of three kinds. The user must act, because the key is refused or the model is unknown:
`UserError`. No request can succeed for now, because the quota is spent: `JudgeStopped`. This
request failed, and another may succeed: `RequestFailed`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import openai
import pydantic

from tddpo_jax.errors import UserError

from .judge_settings import Accepted, Judge, JudgeStopped
from .negotiation import without_refused

QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}


class RequestFailed(RuntimeError):
    """The judge did not answer one request. The same request may succeed later."""


class RequestRefused(RequestFailed):
    """The endpoint refuses this request, for example because its text is too long."""


@dataclasses.dataclass
class Session:
    """An open client, and what one run has learnt about the endpoint.

    Attributes:
        accepted: what the endpoint is known to accept.
    """

    client: openai.AsyncOpenAI
    judge: Judge
    key: str = dataclasses.field(repr=False)
    accepted: Accepted


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a judge answered.

    Attributes:
        text: without what the endpoint returns as reasoning in another field.
        retries: how often the client repeated the request.
        accepted: what the endpoint accepted in the request.
    """

    text: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int
    completion_tokens: int
    retries: int
    accepted: Accepted


def _text_of_parts(content: Any) -> Any:
    """Some endpoints send the content as a list of parts, of which only texts are the answer."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    return "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")


class Message(pydantic.BaseModel):
    content: Annotated[str | None, pydantic.BeforeValidator(_text_of_parts)] = None


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

    What the endpoint refuses is replaced or dropped in `session.accepted`, for this and all later
    requests.

    Raises:
        UserError, JudgeStopped, RequestFailed: as the head of this file says.
    """
    while True:
        sent = session.accepted
        try:
            create: Any = session.client.chat.completions.with_raw_response.create
            response = await create(
                model=session.judge.model,
                messages=sent.messages(messages),
                **sent.parameters,
            )
        except openai.APIError as error:
            accepted = without_refused(sent, error, session.judge.max_tokens)
            if accepted is None:
                raise explained(error, session) from None
            # Other requests under way are refused for the same reason. The first one's finding
            # stays.
            if session.accepted is sent:
                session.accepted = accepted
            continue
        return _reply(_hidden(response.http_response.text, session.key), response, sent)


def _reply(body: str, response: Any, accepted: Accepted) -> Reply | None:
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
        accepted=accepted,
    )


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
