"""Conversations to texts to ids, under a chat template.

A prompt and its response are encoded once each and concatenated. The ids of a prompt are exactly
what generation starts from: training and generation both call this file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from tddpo_jax.data.chat_format import ChatFormat, Messages, chat_format, render
from tddpo_jax.data.messages import Message, map_leaves, texts_in
from tddpo_jax.data.tokenizer import Text, encode, quote
from tddpo_jax.errors import UserError

Answer = str | Message | list[Message]


class ExampleText(NamedTuple):
    """A prompt and its responses with their ends of turn.

    A response is what the assistant says, and then in turn what it is told and says.
    """

    prompt: Text
    responses: tuple[tuple[Text, ...], ...]


class ExampleIds(NamedTuple):
    """Token ids of a prompt and its responses, and which ids the assistant says."""

    prompt: list[int]
    responses: list[list[int]]
    scored: list[list[bool]]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages_or_text: Messages | str,
    template: str | None = None,
    *,
    system: str | None = None,
) -> Int32[np.ndarray, " n"]:
    """The ids generation starts from; training makes its prompts with the same code.

    Args:
        tokenizer: any fast tokenizer of transformers.
        messages_or_text: a conversation, written by the template up to where the assistant begins
            to speak, or behind the assistant's words that end it; or a text, taken verbatim behind
            the beginning of sequence, no template.
        template: as in `chat_format`.
        system: a system message to put in front of the conversation.

    Returns:
        int32 ids that begin with the beginning of sequence, if the tokenizer uses one.

    Raises:
        UserError: as `chat_format`; or the template refuses the conversation; or a text comes with
            a system message, or is no Unicode.
    """
    style = chat_format(tokenizer, template)
    if isinstance(messages_or_text, str):
        if system is not None:
            raise UserError("a text without a template has no place for a system message")
        prompt = Text(messages_or_text)
    else:
        first = [] if system is None else [{"role": "system", "content": system}]
        (messages, _, _), mark = _quoted(style, [*first, *messages_or_text])
        prompt = Text(_prompt(style, messages), mark)
    try:
        prompt.text.encode()
    except UnicodeEncodeError:
        raise UserError("a prompt holds half a surrogate pair, so it is no Unicode text") from None
    return np.asarray(_with_bos(style, encode(style.encoder, [prompt])[0]), np.int32)


def _prompt(style: ChatFormat, messages: list[Message]) -> str:
    """A conversation up to where the model goes on: a new turn, or the assistant's own words."""
    if not messages or messages[-1]["role"] != "assistant":
        return render(style, messages, add_generation_prompt=True)
    *asked, begun = messages
    prompt = render(style, asked, add_generation_prompt=True)
    # A word behind the beginning keeps its last spaces from templates that trim a content.
    said = {**begun, "content": f"{begun['content']}a"}
    whole = render(style, [*asked, said])
    return _continued(style, prompt, begun["content"], [_response(style, prompt, whole)])[0]


def branches(
    history: Messages, responses: Sequence[Answer], continues: bool = False
) -> tuple[list[Message], list[list[Message]]]:
    """The messages before the answers, and the messages of each answer.

    Args:
        history: the prompt's messages.
        responses: texts, messages that have more than a content, or several messages.
        continues: whether the responses continue the last message of the history. That message then
            belongs to each answer.
    """
    before = [dict(message) for message in history]
    begun = before.pop() if continues else {"role": "assistant", "content": ""}
    return before, [_messages(each, begun) for each in responses]


def _messages(answer: Answer, begun: Message) -> list[Message]:
    if isinstance(answer, str):
        return [{**begun, "content": begun["content"] + answer}]
    return [dict(each) for each in (answer if isinstance(answer, list) else [answer])]


def chat_example(
    style: ChatFormat,
    history: Messages,
    responses: Sequence[Answer],
    *,
    tools: list[Any] | None = None,
    continues: bool = False,
) -> ExampleText:
    """A conversation and the answers to it, written by the template.

    Args:
        style: how conversations are written.
        history: the prompt's messages.
        responses: as in `branches`.
        tools: that the conversation may call.
        continues: as in `branches`.

    Raises:
        UserError: the template refuses the conversation.
    """
    asked, answers = branches(history, responses, continues)
    begun = history[-1]["content"] if continues else ""
    flat = [*asked, *itertools.chain.from_iterable(answers)]
    (messages, quoted_tools, begun), mark = _quoted(style, flat, tools, begun)
    each = iter(messages)
    asked, *answers = [list(itertools.islice(each, len(part))) for part in (asked, *answers)]
    prompt = render(style, asked, quoted_tools, add_generation_prompt=True)
    said = [_parts(style, prompt, asked, answer, quoted_tools) for answer in answers]
    if continues:
        prompt, texts = _continued(style, prompt, begun, [first for (first,) in said])
        said = [[text] for text in texts]
    return ExampleText(Text(prompt, mark), tuple(_texts(prompt, mark, parts) for parts in said))


def text_example(style: ChatFormat, prompt: str, responses: Sequence[str]) -> ExampleText:
    """A prompt and its responses as they are, without a template.

    Special tokens written out in the prompt are special, so that a prompt rendered elsewhere means
    what it says. In a response they are ordinary text, except for an end of turn at its very end,
    which is not doubled.
    """
    body = _without_lost_spaces(style, prompt)
    spaces = prompt[len(body) :]
    said = (_verbatim_response(style, body, spaces + response) for response in responses)
    return ExampleText(Text(body), tuple((each,) for each in said))


def encode_examples(style: ChatFormat, examples: Sequence[ExampleText]) -> list[ExampleIds]:
    """Ids of the prompt and of the responses of each example."""
    texts = [
        text
        for example in examples
        for text in (example.prompt, *itertools.chain.from_iterable(example.responses))
    ]
    ids = iter(encode(style.encoder, texts))
    encoded = []
    for example in examples:
        prompt = _with_bos(style, next(ids))
        parts = [[next(ids) for _ in texts] for texts in example.responses]
        responses = [list(itertools.chain.from_iterable(each)) for each in parts]
        scored = [
            [number % 2 == 0 for number, part in enumerate(each) for _ in part] for each in parts
        ]
        encoded.append(ExampleIds(prompt, responses, scored))
    return encoded


def _parts(
    style: ChatFormat,
    prompt: str,
    asked: list[Message],
    answer: list[Message],
    tools: list[Any] | None,
) -> list[str]:
    """What the assistant says in an answer, and between that what it is told, in turn.

    Each thing that it says is written as it would be if the conversation ended there, and as it is
    in the whole. A template that writes a later message anew, such as one that strips an earlier
    thought, cannot be trained on the whole.
    """
    parts: list[str] = []
    written = prompt
    for end, message in enumerate(answer, 1):
        if message["role"] != "assistant":
            continue
        before = [*asked, *answer[: end - 1]]
        start = render(style, before, tools, add_generation_prompt=True) if parts else prompt
        if not start.startswith(written):
            raise UserError("template: does not write an answer of several messages in turn")
        said = _response(style, start, render(style, [*asked, *answer[:end]], tools))
        parts += [start[len(written) :], said] if parts else [said]
        written = start + said
    return parts


def _texts(prompt: str, mark: str, parts: Sequence[str]) -> tuple[Text, ...]:
    befores = itertools.accumulate(parts, initial=prompt)
    return tuple(Text(text, mark, before) for text, before in zip(parts, befores, strict=False))


def _response(style: ChatFormat, prompt: str, whole: str) -> str:
    """The part of a written conversation that the model has to say."""
    if not whole.startswith(prompt) or not whole.endswith(style.suffix):
        raise UserError("template: the conversation does not continue its generation prompt")
    return whole[len(prompt) : len(whole) - len(style.suffix)] + style.ending


def _continued(
    style: ChatFormat, prompt: str, begun: str, responses: Sequence[str]
) -> tuple[str, list[str]]:
    """A prompt that ends in the middle of the assistant's turn, and what continues it.

    Args:
        style: how conversations are written.
        prompt: what the template writes up to where the assistant begins to speak.
        begun: what the assistant has said in the prompt.
        responses: what the template writes after `prompt`; each holds `begun`.
    """
    begun = begun.lstrip()  # some templates trim a content
    ends = {text.find(begun) + len(begun) for text in responses if begun in text}
    heads = {text[:end] for text in responses for end in ends}
    if len(ends) != 1 or len(heads) != 1:
        raise UserError("template: does not write the last message of the prompt as it is")
    (head,) = heads
    kept = _without_lost_spaces(style, head)
    return prompt + kept, [text[len(kept) :] for text in responses]


def _without_lost_spaces(style: ChatFormat, prompt: str) -> str:
    """A prompt without its final spaces where the tokenizer drops them.

    Such a tokenizer would glue the response to the prompt's last word.
    """
    return prompt.rstrip(" ") if style.encoder.drops_spaces else prompt


def _verbatim_response(style: ChatFormat, prompt: str, response: str) -> Text:
    ends = (style.end_of_text, style.end_of_turn)
    end = next((end for end in ends if response.endswith(end)), ends[0])
    (words,), mark = quote(style.encoder, [response.removesuffix(end)])
    return Text(words + end, mark, prompt)


def _quoted(
    style: ChatFormat, messages: Messages, tools: list[Any] | None = None, begun: str = ""
) -> tuple[tuple[list[Message], list[Any] | None, str], str]:
    """The same messages, tools and text with the special tokens broken up, and the mark in them."""
    roles = [message["role"] for message in messages]
    bodies = [{key: part for key, part in each.items() if key != "role"} for each in messages]
    parts = [bodies, tools, begun]
    words, mark = quote(style.encoder, list(texts_in(parts)))
    each = iter(words)
    bodies, tools, begun = map_leaves(
        parts, lambda leaf: next(each) if isinstance(leaf, str) else leaf
    )
    quoted = [{"role": role, **body} for role, body in zip(roles, bodies, strict=True)]
    return (quoted, tools, begun), mark


def _with_bos(style: ChatFormat, ids: list[int]) -> list[int]:
    return ids if style.bos is None or ids[:1] == [style.bos] else [style.bos, *ids]
