"""What one tokenizer does with conversations under one chat template.

The beginning of sequence is there once, if the template writes it or the tokenizer's own `encode`
adds it, and a response ends with exactly one end of turn: the added token that the template puts
after a response, or the tokenizer's end of sequence where the template puts none.

A policy's folder gets the template that is used here, so other programs make the same ids. They may
write another date, see `template_date.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from tddpo_jax.data.named_templates import NAMED, check_name
from tddpo_jax.data.template_date import AT_DATE
from tddpo_jax.data.tokenizer import Encoder, Text, added_tokens, encode, make_encoder, pattern
from tddpo_jax.errors import UserError, one_line

Messages = Sequence[Mapping[str, Any]]

# Makes a template write the beginning of sequence first. A line break behind a comment is not
# written, and the template's first line still is a line of its own.
BEGINNING = "{{ bos_token }}{# the tokenizer adds it, the template does not #}\n"
# What a template is tried with.
QUESTION, ANSWER = "question", "answer"


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer writes conversations under one template, found out by `chat_format`."""

    encoder: Encoder
    name: str  # of the template; "tokenizer" for the tokenizer's own
    jinja: str  # writes the beginning of sequence, if the tokenizer uses one
    bos: int | None  # goes in front of a text without a template that does not begin with it
    continues: bool  # a conversation begins with the generation prompt of its question
    suffix: str  # what the template writes after a response
    ending: str  # what of it belongs to the response: all up to the end of turn
    end_of_turn: str  # ends a response that the template writes
    end_of_text: str  # ends a response without a template: the end of sequence, if there is one
    stop_ids: tuple[int, ...]  # of both: generation stops at either


def chat_format(tokenizer: PreTrainedTokenizerBase, template: str | None) -> ChatFormat:
    """Looks once at what a tokenizer and a template do.

    Args:
        tokenizer: any fast tokenizer of transformers.
        template: a name in `NAMED`; None for the tokenizer's own chat template, or `plain` where it
            has none.

    Raises:
        UserError: no such template; the tokenizer lacks a token the template needs, or any end of
            sequence; the template does not write an answer.
    """
    name, jinja = _named(tokenizer, template)
    prompt, whole = _probe(tokenizer, name, jinja)
    adds_bos = _adds_bos(tokenizer)
    if adds_bos and not whole.startswith(str(tokenizer.bos_token)):
        jinja = BEGINNING + jinja
    suffix = whole.rpartition(ANSWER)[2]
    encoder = _with_controls(make_encoder(tokenizer), whole.partition(QUESTION)[0] + suffix)
    ending, end_of_turn = _ending(encoder, name, suffix)
    end_of_text = tokenizer.eos_token or end_of_turn
    (turn_id,), (text_id,) = encode(encoder, [Text(end_of_turn), Text(end_of_text)])
    return ChatFormat(
        encoder=encoder,
        name=name,
        jinja=jinja,
        bos=tokenizer.bos_token_id if adds_bos else None,
        continues=whole.startswith(prompt),
        suffix=suffix,
        ending=ending,
        end_of_turn=end_of_turn,
        end_of_text=end_of_text,
        stop_ids=tuple(sorted({turn_id, text_id})),
    )


def check_continues(style: ChatFormat) -> None:
    """Raises UserError if no answer can be trained on, because none follows a generation prompt."""
    if not style.continues:
        raise UserError(
            f"template {style.name!r}: a conversation does not continue its generation prompt; "
            "choose another with data.template"
        )


def _named(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[str, str]:
    if template is None and tokenizer.chat_template is not None:
        return "tokenizer", tokenizer.get_chat_template()
    name = "plain" if template is None else template
    check_name(name)
    missing = [need for need in NAMED[name].needs if not _has_token(tokenizer, need)]
    if missing:
        raise UserError(f"template {name!r}: the tokenizer lacks {', '.join(missing)}")
    return name, NAMED[name].jinja


def _has_token(tokenizer: PreTrainedTokenizerBase, need: str) -> bool:
    if need in ("bos_token", "eos_token"):
        return getattr(tokenizer, need) is not None
    return need in added_tokens(tokenizer)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _probe(tokenizer: PreTrainedTokenizerBase, name: str, jinja: str) -> tuple[str, str]:
    """What the template writes for a question, and for a question and its answer."""
    question = [{"role": "user", "content": QUESTION}]
    prompt = _apply(tokenizer, jinja, question, add_generation_prompt=True)
    whole = _apply(tokenizer, jinja, [*question, {"role": "assistant", "content": ANSWER}])
    if ANSWER not in whole.partition(QUESTION)[2]:
        raise UserError(
            f"template {name!r}: does not write an answer; choose another with data.template"
        )
    return prompt, whole


def _with_controls(encoder: Encoder, written: str) -> Encoder:
    """The same encoder, to which the added tokens in a template's text are special tokens.

    Some tokenizers have a template's tokens as added tokens that are not special. Other such tokens
    stay ordinary words, for example `<think>`, which a model may have to say.
    """
    found = {token for token in added_tokens(encoder.tokenizer) if token in written}
    return replace(encoder, special=pattern(encoder.special_tokens | found))


def _ending(encoder: Encoder, name: str, suffix: str) -> tuple[str, str]:
    """What of a suffix belongs to the response, and the end of turn, which is the last of it: the
    suffix's first added token, or the end of sequence where it has none."""
    found = encoder.special.search(suffix)
    if found:
        return suffix[: found.end()], found.group()
    if suffix.strip():
        raise UserError(
            f"template {name!r}: ends a response with {suffix.strip()!r}, "
            "which is no added token of the tokenizer"
        )
    end = encoder.tokenizer.eos_token
    if end is None:
        raise UserError(f"template {name!r}: no end of turn, and the tokenizer has no eos_token")
    return end, end


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    jinja: str,
    messages: Messages,
    add_generation_prompt: bool = False,
    tools: list[Any] | None = None,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=tools,
            chat_template=AT_DATE + jinja,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    # A template is a program. Its mistake, such as a sum of a text and a list, is Python's error.
    except Exception as error:
        raise UserError(f"template: {one_line(error)}") from None
    assert isinstance(text, str)
    return text


def render(
    style: ChatFormat,
    messages: Messages,
    tools: list[Any] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """What the template writes for a conversation.

    Raises:
        UserError: the template refuses the conversation.
    """
    return _apply(style.encoder.tokenizer, style.jinja, messages, add_generation_prompt, tools)
