"""Templates that leave out a part of a row, each by its own way of doing so."""

from __future__ import annotations

import pytest
from tiny_rows import as_lists, assistant, load, user
from tiny_tokenizers import sentencepiece

from tddpo_jax.data.chat_format import chat_format
from tddpo_jax.data.messages import KEYS
from tddpo_jax.data.templates import chat_example, encode_examples, encode_prompt

HEADING = "{{ '<' + m.role + '>' }}"
END = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
WORDS = "{% for m in messages %}" + HEADING + "{{ m.content + eos_token }}" + END
THINKS = WORDS.replace("{{ m", "{{ m.reasoning_content or '' }}{{ m")
LAST_THINKS = WORDS.replace("{{ m", "{{ m.reasoning_content if loop.last else '' }}{{ m")
CALLS = "{{ tools | tojson if tools else '' }}" + WORDS.replace(
    "{{ m", "{{ m.tool_calls | tojson if m.tool_calls else '' }}{{ m"
)
NAMES_OF_CALLS = WORDS.replace(
    "{{ m", "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{{ m"
)
STRIPS = WORDS.replace("m.content", "m.content.split('</think>')[-1]")
SKIPS = "{% for m in messages if m.role in ('user', 'assistant') %}" + WORDS.partition("%}")[2]
TWO_ROLES = WORDS.replace("m.role", "('user' if m.role == 'user' else 'assistant')")
NO_ROLES = WORDS.replace(HEADING, "").replace("<assistant>", "")
NAMED = WORDS.replace("m.role", "m.role + '=' + m.name|default('')").replace("nt>", "nt=>")

CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"city": "Lima"}}}
CALLED = [
    user("warm?"),
    {**assistant(""), "tool_calls": [CALL]},
    {"role": "tool", "name": "f", "tool_call_id": "1", "content": "18"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
WEATHER = {"prompt": CALLED, "chosen": "yes", "rejected": "no"}
QUESTION = {"prompt": [user("a b")], "chosen": "c", "rejected": "d"}
GUIDED = {**QUESTION, "system": "Be kind."}


def thinking(row, text="since d"):
    return {
        **row,
        **{
            name: [{**assistant(row[name]), "reasoning_content": text + name}]
            for name in ("chosen", "rejected")
        },
    }


def reasons(tmp_path, template, row):
    """Why a row is unusable under a template; none if it is used. The other row always is."""
    other = {"prompt": [user("x")], "chosen": "y", "rejected": "z"}
    dataset = load(tmp_path, [other, row], sentencepiece(chat_template=template))
    assert [example.row for example in dataset.train] == [0, 1][: 2 - len(dataset.dropped)]
    return [reason.removeprefix("template: leaves out ") for reason in dataset.dropped]


WRITTEN = [
    (WORDS, QUESTION),
    (WORDS, {**QUESTION, "chosen": " \n c  c "}),
    (WORDS.replace("m.content", "m.content | trim"), {**QUESTION, "chosen": "\n c  c "}),
    (WORDS, GUIDED),
    (NO_ROLES, QUESTION),
    (THINKS, thinking(QUESTION)),
    (CALLS, WEATHER),
    (CALLS, {**WEATHER, "tools": TOOLS}),
    (NAMED, {**QUESTION, "prompt": [{**user("a b"), "name": "Tom"}]}),
    (LAST_THINKS, thinking(QUESTION)),
]
LEFT_OUT = [
    (WORDS, thinking(QUESTION), "'reasoning_content' of a message"),
    (THINKS, {**QUESTION, "prompt": [{**user("a"), "name": "Tom"}]}, "'name' of a message"),
    # The word stands in the content too, so only the probe can tell.
    (WORDS, {**QUESTION, "prompt": [{**user("Tom"), "name": "Tom"}]}, "'name' of a message"),
    (WORDS, WEATHER, "'tool_calls' of a message"),
    (NAMES_OF_CALLS, WEATHER, "'tool_calls' of a message"),
    (NAMES_OF_CALLS, {**QUESTION, "tools": TOOLS}, "the name of a tool"),
    (STRIPS, {**QUESTION, "chosen": "<think>e</think>c"}, "a part of a message of the role 'assi"),
    (SKIPS, GUIDED, "a part of a message of the role 'system'"),
    # The same words as the user's, so only the probe can tell.
    (SKIPS, {**QUESTION, "system": "a b"}, "a message of the role 'system'"),
    (TWO_ROLES, GUIDED, "the role 'system', written like 'assistant'"),
    (NO_ROLES, GUIDED, "the role 'system', written like 'user'"),
    (
        LAST_THINKS,
        {
            **QUESTION,
            "prompt": [user("a"), {**assistant("b"), "reasoning_content": "e"}, user("f")],
        },
        "'reasoning_content' of a message",
    ),
]


@pytest.mark.parametrize(("template", "row"), WRITTEN)
def test_rows_that_are_written_in_full(tmp_path, template, row):
    assert reasons(tmp_path, template, row) == []


@pytest.mark.parametrize(("template", "row", "what"), LEFT_OUT)
def test_rows_that_are_written_in_part(tmp_path, template, row, what):
    (reason,) = reasons(tmp_path, template, row)
    assert reason.startswith(what)


def test_a_row_left_out_moves_the_content_hash(tmp_path):
    """Under a cache that an earlier version filled, the hash of the rows alone is the same."""
    strips, keeps = (sentencepiece(chat_template=each) for each in (STRIPS, WORDS))
    for tokenizer, row, moves in ((strips, "<think>e</think>c", True), (keeps, "c", False)):
        rows = [QUESTION, {**QUESTION, "chosen": row}]
        first, second = (load(tmp_path, rows, tokenizer) for _ in range(2))
        assert first.content_hash == second.content_hash
        assert as_lists(first.train) == as_lists(second.train)
        (file,) = [
            file
            for file in (tmp_path / "cache").iterdir()
            if first.content_hash[:32] in file.name or moves
        ]
        assert (first.content_hash[:32] not in file.name) == moves
        file.unlink()


@pytest.mark.parametrize("template", [WORDS, WORDS.replace("m.content", "m.content | trim")])
@pytest.mark.parametrize("begun", ["It is", "It is ", " It is", "It </s> is"])
def test_a_prompt_with_the_answers_beginning_is_not_closed(template, begun):
    """Prompt and response are what the template writes for the whole, cut behind the beginning."""
    style = chat_format(sentencepiece(chat_template=template), None)
    history = [user("warm?"), assistant(begun)]
    pair = chat_example(style, history, [" warm.", " cold."], continues=True)
    prompt, responses, _ = encode_examples(style, [pair])[0]
    whole = chat_example(style, history[:1], [f"{begun} warm.", f"{begun} cold."])
    assert pair.prompt.text.endswith(begun.lstrip().replace("</s>", pair.prompt.mark.join("</s>")))
    for (one,), (other,) in zip(pair.responses, whole.responses, strict=True):
        assert pair.prompt.text + one.text == whole.prompt.text + other.text
    # Generation starts from the same prompt.
    assert encode_prompt(style.encoder.tokenizer, history).tolist() == prompt
    assert all(ids.count(2) == 1 for ids in responses)  # one end of turn
    assert prompt.count(2) == 1  # of the user's turn


def test_a_template_that_fails_in_python_makes_a_reason(tmp_path):
    adds = WORDS.replace("m.content", "m.content + (m.tool_calls or '')")
    (reason,) = reasons(tmp_path, adds, WEATHER)
    assert reason.startswith("template: can only concatenate str")


def test_the_first_key_that_is_left_out_gives_the_reason(tmp_path):
    """The reason is part of the content hash. So it must not depend on the order of a set."""
    keys = [key for key in KEYS if "think" in key or "reason" in key or key == "name"]
    while keys:
        answer = {**assistant("c"), **dict.fromkeys(reversed(keys), "since d")}
        row = {**QUESTION, "chosen": [answer], "rejected": [assistant("d")]}
        (reason,) = reasons(tmp_path, WORDS, row)
        assert reason == f"{keys.pop(0)!r} of a message"
