"""What a row asks, in every shape that it may have."""

from __future__ import annotations

import pytest
from tiny_rows import IDS, TOKENIZER, assistant, conversation, load, user, write

from tddpo_jax.config.schema import DataSource
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.formats import ParsedRow, parse_row
from tddpo_jax.data.row_prompts import STAND_IN, load_prompts, parse_prompt

ASKED = [user("what is red?")]
CHAT = ParsedRow("chat", ASKED, (STAND_IN,))
ANY = Vocabulary(10**6)
BEGUN = [*ASKED, assistant("the ")]

SAME_PROMPT = {
    "a text": {"prompt": "what is red?"},
    "a conversation": {"prompt": ASKED},
    "a conversation as JSON": {"prompt": '[{"role": "user", "content": "what is red?"}]'},
    "a question": {"question": "what is red?"},
    "a question and its answer": {"question": "what is red?", "answer": "#### 2"},
    "a conversation with its answer": {"messages": [*ASKED, assistant("the ball")]},
    "a conversation without an answer": {"conversations": ASKED},
    "a pair": conversation(),
    "a pair beside a text": {"prompt": "what is red?", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("name", SAME_PROMPT)
def test_shapes_of_one_prompt(name):
    assert parse_prompt(SAME_PROMPT[name]) == CHAT


def test_a_system_text_beside_whole_texts_stands_before_them_once():
    row = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
    whole = parse_row({**row, "system": "Be kind."})
    assert whole.prompt.count("Be kind.") == 1
    assert parse_prompt({**row, "system": "Be kind."}) == whole._replace(responses=(STAND_IN,))


def test_other_prompts():
    about = {"instruction": "what is red?", "input": "ball, river"}
    assert parse_prompt(about).prompt == [user("what is red?\n\nball, river")]
    system = {"role": "system", "content": "Be kind."}
    assert parse_prompt({"prompt": "x", "system": "Be kind."}).prompt == [system, user("x")]
    assert parse_prompt({"prompt": BEGUN}) == CHAT._replace(prompt=BEGUN, continues=True)
    assert parse_prompt({"prompt": "once"}, raw=True) == ParsedRow("text", "once", (STAND_IN,))
    assert parse_prompt(IDS) == ParsedRow("ids", IDS["prompt_ids"], ([0],))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "x"}, "has no column with a prompt, such as 'prompt'"),
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": []}, "empty prompt"),
        ({"prompt": 3}, "'prompt' must be a list of {role, content} or {from, value}"),
        ({"question": 3}, "'question' must be a text"),
        ({"prompt_ids": "1 2"}, "'prompt_ids' must be a list of integers"),
        ({"chosen": [user("a")], "rejected": [user("a")]}, "the last role of 'chosen' is 'user', "),
    ],
)
def test_rows_without_a_prompt(row, reason):
    assert parse_prompt(row).startswith(reason)
    assert parse_prompt({"prompt": ASKED}, raw=True) == "--raw takes a text as the prompt"


def test_prompts_have_the_ids_of_training(tmp_path):
    rows = [{"prompt": "what is red?"}, {"prompt": ""}, {"prompt": BEGUN}, IDS]
    rows += [{"prompt": "what is " + "red " * 50}]
    file = write(tmp_path / "prompts.jsonl", rows)
    prompts, unused = load_prompts(DataSource(path=file), TOKENIZER, None, most=30, vocabulary=ANY)
    trained = [
        {"prompt": ASKED, "chosen": "a", "rejected": "b"},
        {"prompt": BEGUN, "chosen": "a", "rejected": "b"},
        IDS,
    ]
    expected = [example.prompt.tolist() for example in load(tmp_path, trained).train]
    assert [prompt.ids.tolist() for prompt in prompts] == expected
    assert [prompt.row for prompt in prompts] == [0, 2, 3]
    assert unused == {"empty prompt": [1], "a prompt of more than 30 tokens": [4]}
    asked = [prompt.asked for prompt in prompts]
    assert asked == ["what is red?", BEGUN, IDS["prompt_ids"]]
    with pytest.raises(ValueError, match="none of its rows can be used: 4 x a prompt of more"):
        load_prompts(DataSource(path=file), TOKENIZER, None, most=2, vocabulary=ANY)
