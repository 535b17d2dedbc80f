"""Rows as they are in the wild: each shape comes out as one that is known, or as a reason."""

from __future__ import annotations

import json

import pytest
from tiny_rows import assistant, conversation, load, user, write

from tddpo_jax.data.formats import ParsedRow, parse_row, shape
from tddpo_jax.data.remarks import description
from tddpo_jax.data.sources import read_source

ASKED = [user("what is red?")]
PLAIN = {"prompt": ASKED, "chosen": "the ball", "rejected": "the river"}
SYSTEM = {"role": "system", "content": "Be kind."}


def gpt(text):
    return {"from": "gpt", "value": text}


SAME_ROW = {
    "ShareGPT with single messages": {
        "conversations": [{"from": "human", "value": "what is red?"}],
        "chosen": gpt("the ball"),
        "rejected": gpt("the river"),
    },
    "ShareGPT with whole conversations": {
        "chosen": [{"from": "human", "value": "what is red?"}, gpt("the ball")],
        "rejected": [{"from": "human", "value": "what is red?"}, gpt("the river")],
    },
    "other names of roles": {
        **PLAIN,
        "prompt": [{"role": " Human", "content": "what is red?"}],
        "chosen": [{"role": "model", "content": "the ball"}],
        "rejected": [{"role": "Bot", "content": "the river"}],
    },
    "contents of text parts": {
        **PLAIN,
        "prompt": [user([{"type": "text", "text": "what is "}, {"type": "text", "text": "red?"}])],
        "chosen": [assistant([{"type": "text", "text": "the ball"}])],
        "rejected": [assistant(["the ", {"text": "river", "image": None}])],
    },
    "conversations as JSON": {
        name: json.dumps(messages) for name, messages in conversation().items()
    },
    "conversations in Python's notation": {
        name: str(messages) for name, messages in conversation().items()
    },
    "a prompt as JSON": {**PLAIN, "prompt": json.dumps(ASKED)},
    "a prompt with other white space": {**conversation(), "prompt": [user(" what  is red?\n")]},
    "keys that are null or empty": {
        **PLAIN,
        "prompt": [{**user("what is red?"), "tool_calls": None, "name": ""}],
        "tools": [],
        "system": "",
    },
}


@pytest.mark.parametrize("name", SAME_ROW)
def test_shapes_that_come_out_as_a_plain_row(name):
    assert parse_row(SAME_ROW[name]) == parse_row(PLAIN)
    assert parse_row(PLAIN) == ParsedRow("chat", ASKED, ("the ball", "the river"))


def test_a_system_column_is_the_first_message():
    expected = ParsedRow("chat", [SYSTEM, *ASKED], ("the ball", "the river"))
    assert parse_row({**PLAIN, "system": "Be kind."}) == expected
    assert parse_row({**conversation(), "system_prompt": "Be kind."}) == expected
    with_message = {**PLAIN, "prompt": [SYSTEM, *ASKED], "system": " Be kind.\n"}
    assert parse_row(with_message) == expected
    assert "system column differs" in parse_row({**with_message, "system": "Be rude."})


def test_the_prompt_or_the_conversations_may_lack_the_system_message():
    asked = parse_row({**conversation(), "prompt": [SYSTEM, *ASKED]})
    assert asked == parse_row({**conversation(), "system": "Be kind."})
    both = {name: [SYSTEM, *messages] for name, messages in conversation().items()}
    assert parse_row({**both, "prompt": ASKED}) == asked
    other = [{**SYSTEM, "content": "Be rude."}, *ASKED]
    assert "not the beginning" in parse_row({**both, "prompt": other})
    one = {**both, "rejected": conversation()["rejected"]}
    assert parse_row({**one, "prompt": [SYSTEM, *ASKED]}) == asked
    assert parse_row(one) == "differing histories"


def test_a_system_column_stands_before_a_text_with_an_empty_line_between():
    row = {"system": "Be kind.", "prompt": "Q", "chosen": "a", "rejected": "b"}
    assert parse_row(row) == ParsedRow("text", "Be kind.\n\nQ", ("a", "b"))
    assert parse_row({**row, "prompt": " "}) == "empty prompt"


def test_two_texts_split_at_the_assistants_last_turn():
    """hh-rlhf as it is shipped."""
    before = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = {"chosen": f"{before} d e", "rejected": f"{before} d f"}
    assert parse_row(row) == ParsedRow("text", before, (" d e", " d f"))
    other = "\n\nHuman: x\n\nAssistant: b"
    assert parse_row({**row, "rejected": other}) == "differing histories"
    assert parse_row({**row, "rejected": "no heading"}) == "lacks the column 'prompt'"
    assert parse_row({**row, "rejected": before}) == "empty response"


def test_a_prompt_that_the_conversation_holds_is_not_put_in_front_again():
    branches = {name: [SYSTEM, *messages] for name, messages in conversation(chosen="a").items()}
    assert parse_row({**branches, "prompt": ASKED}) == parse_row(branches)
    others = [user("something else")], [user("x"), assistant("y"), *ASKED]
    for prompt in others:
        reason = parse_row({**conversation(), "prompt": prompt})
        assert reason == "the prompt is not the beginning of the conversation"
    # Only the answers of earlier turns end a prompt that a further turn may follow.
    earlier = [user("hello"), assistant("hi")]
    followed = parse_row({**conversation(), "prompt": earlier})
    assert followed.prompt == [*earlier, *ASKED]


def test_a_prompt_that_ends_with_the_answers_beginning_is_continued():
    begun = [*ASKED, assistant("It is")]
    expected = ParsedRow("chat", begun, (" a", " b"), continues=True)
    assert parse_row({"prompt": begun, "chosen": " a", "rejected": " b"}) == expected
    messages = {"chosen": [assistant(" a")], "rejected": [assistant(" b")]}
    assert parse_row({"prompt": begun, **messages}) == expected


def test_keys_that_carry_words_and_tools_are_kept():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    history = [*ASKED, {**assistant(None), "tool_calls": [call]}]
    history += [{"role": "observation", "content": "18", "tool_call_id": "1", "name": "f"}]
    answer = {**assistant("warm"), "reasoning_content": "since 18"}
    row = {"prompt": history, "chosen": [answer], "rejected": "no", "tools": [{"name": "f"}]}
    row["rejected"] = [assistant("no")]
    parsed = parse_row(row)
    assert parsed.prompt[1] == {**assistant(""), "tool_calls": [call]}
    assert parsed.prompt[2] == {**history[2], "role": "tool"}
    assert parsed.responses == (answer, "no")
    assert parsed.tools == [{"name": "f"}]
    assert parse_row({**row, "tools": json.dumps(row["tools"])}) == parsed
    # A response may be a call and nothing else.
    called = parse_row({**PLAIN, "chosen": [history[1]], "rejected": [assistant("no")]})
    assert called.responses == ({**assistant(""), "tool_calls": [call]}, "no")


REASONS = {
    "the role 'narrator' in 'prompt' is unknown": {
        **PLAIN,
        "prompt": [{"role": "narrator", "content": "a"}],
    },
    "a message in 'prompt' has no role": {**PLAIN, "prompt": [{"content": "a"}]},
    "a content has a part that is not text: 'image'": {
        **PLAIN,
        "prompt": [user([{"type": "image", "image": "x.png"}])],
    },
    "a content is neither a text nor a list of text parts: 3": {**PLAIN, "prompt": [user(3)]},
    "null content of a 'system' message": {
        **PLAIN,
        "prompt": [{"role": "system", "content": None}, *ASKED],
    },
    "empty prompt": {**PLAIN, "prompt": [user(None)]},
    "empty response": {**conversation(), "rejected": [*ASKED, assistant(None)]},
    "a conversation that is stored as a text cannot be read": {
        "chosen": "[{'role': 'user',",
        "rejected": "[{'role': 'user',",
    },
    "'tools' must be a list of objects": {**PLAIN, "tools": {"a": 1}},
    "'tools' is neither a list nor a JSON list": {**PLAIN, "tools": "none"},
    "'tools' beside texts, which no template writes": {
        "prompt": "a",
        "chosen": "b",
        "rejected": "c",
        "tools": [{"name": "f"}],
    },
    "an answer that continues the prompt has more than a content": {
        "prompt": [*ASKED, assistant("It is")],
        "chosen": [{**assistant("a"), "thinking": "b"}],
        "rejected": [assistant("c")],
    },
    "the columns 'system' and 'system_prompt' differ": {
        **PLAIN,
        "system": "a",
        "system_prompt": "b",
    },
}


@pytest.mark.parametrize("reason", REASONS)
def test_rows_that_cannot_be_used(reason):
    assert parse_row(REASONS[reason]) == reason


def test_nesting_beyond_measure_is_a_reason():
    arguments: dict = {}
    for _ in range(5000):
        arguments = {"a": arguments}
    call = {"function": {"name": "f", "arguments": arguments}}
    history = [*ASKED, {**assistant(""), "tool_calls": [call]}, {"role": "tool", "content": "b"}]
    assert parse_row({**PLAIN, "prompt": history}) == "lists or objects are nested too deeply"


def test_a_file_without_a_usable_row_says_what_it_holds(tmp_path):
    rows = [{"question": "a", "chosen_response": [1.5], "meta": None, "turns": [{"a": 1}]}] * 2
    file = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(ValueError, match=r"none of its rows can be used: 2 x lacks") as caught:
        read_source(file)
    assert str(caught.value).endswith(
        "(first row 0); row 0 has question (text), chosen_response (list of number), "
        "meta (null), turns (list of object with a)"
    )
    assert shape({}) == "no columns"


def test_what_nothing_reads_is_named_once(tmp_path):
    row = {**PLAIN, "prompt": [{**ASKED[0], "id": 3}], "score": 1.0, "empty": None}
    other = write(tmp_path / "other.jsonl", [row])
    dataset = load(tmp_path, [row] * 3, validation=other)
    assert list(description("", dataset))[1:] == ["not read: columns score and keys of messages id"]
    more = write(tmp_path / "more.jsonl", [{**row, "id": 1}])
    lines = list(description("", load(tmp_path, [], path=other, validation=more)))[1:]
    assert [line.rpartition("/")[2] for line in lines] == ["more.jsonl", "other.jsonl"]
    assert len(list(description("", load(tmp_path, [PLAIN])))) == 1


QUESTIONS = {
    "alpaca-cleaned": (
        {"output": "The ball.", "input": "ball, river", "instruction": "What is red?"},
        "What is red?\n\nball, river",
        "The ball.",
        "",
    ),
    "alpaca without an input": (
        {"instruction": "What is red?", "input": "", "output": "The ball.", "text": "Below is"},
        "What is red?",
        "The ball.",
        "columns text",
    ),
    "databricks-dolly-15k": (
        {
            "instruction": "What is red?",
            "context": "The ball is red.",
            "response": "The ball.",
            "category": "closed_qa",
        },
        "What is red?\n\nThe ball is red.",
        "The ball.",
        "columns category",
    ),
    "gsm8k": (
        {"question": "What is 1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
        "What is 1 + 1?",
        "It is <<1+1=2>>2.\n#### 2",
        "",
    ),
    "MATH": (
        {
            "problem": "What is $1 + 1$?",
            "level": "Level 1",
            "type": "Algebra",
            "solution": "It is $\\boxed{2}$.",
        },
        "What is $1 + 1$?",
        "It is $\\boxed{2}$.",
        "columns level, type",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_and_its_answer_are_messages(tmp_path, name):
    row, asked, answer, not_read = QUESTIONS[name]
    source = read_source(write(tmp_path / "data.jsonl", [row]))
    assert source.rows == [ParsedRow("chat", [user(asked)], (answer,))]
    assert (source.responses, source.not_read) == (1, not_read)


def test_the_answer_alone_counts_of_a_row_of_a_question(tmp_path):
    row = {"instruction": "what is red?", "input": "ball", "output": "the ball"}
    [example] = load(tmp_path, [row]).train
    same = {"messages": [user("what is red?\n\nball"), assistant("the ball")]}
    [expected] = load(tmp_path, [same]).train
    assert example.prompt.tolist() == expected.prompt.tolist()
    assert example.responses[0].tolist() == expected.responses[0].tolist()
    assert example.scored is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": " ", "input": "x", "output": "y"}, "empty prompt"),
        ({"question": None, "answer": "y"}, "empty prompt"),
        ({"question": "x", "answer": None}, "empty response"),
        ({"problem": "x", "solution": "\n"}, "empty response"),
        ({"question": "x", "answer": 2}, "the answer must be a text"),
        ({"instruction": "x", "context": ["c"], "response": "y"}, "'context' must be a text"),
        (
            {"question": "x", "answer": "y", "response": "z"},
            "has 'question' and 'answer', and 'question' and 'response': "
            "name the columns with data.columns",
        ),
        (
            {"instruction": "x", "input": "c", "outptu": "y"},
            "lacks the column 'chosen', or for a single response 'messages', 'completion' "
            "or a question and its answer",
        ),
    ],
)
def test_rows_of_a_question_that_are_wrong(row, reason):
    assert parse_row(row) == reason


def test_empty_columns_of_another_data_set_are_no_second_question():
    """As a table of both data sets has them."""
    row = {"question": "x", "answer": "y"}
    assert parse_row({"problem": None, "solution": None, **row}) == parse_row(row)


def test_other_shapes_count_before_a_question_and_its_answer():
    pair = {"question": "x", "answer": "y"}
    assert parse_row({**pair, **PLAIN}) == parse_row(PLAIN)
    told = {"messages": [*ASKED, assistant("the ball")]}
    assert parse_row({**pair, **told}) == parse_row(told)
