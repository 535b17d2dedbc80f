"""Answers of several messages: an agent's calls, what its tools gave, and its last words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tiny_rows import as_lists, assistant, conversation, load, user, write
from tiny_tokenizers import sentencepiece

from tddpo_jax.config.schema import DataConfig
from tddpo_jax.data.dataset import load_fitted
from tddpo_jax.data.formats import parse_row
from tddpo_jax.planning.examples_text import example_lines

# Writes calls as JSON. A role stands in brackets, and the end of sequence ends each message.
JINJA = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls else '' }}{{ eos_token }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ ' ' }}{% endif %}"
)
TOKENIZER = sentencepiece(chat_template=JINJA)
ASKED = user("what is red?")


def call(city):
    function = {"name": "f", "arguments": {"city": city}}
    return {**assistant(""), "tool_calls": [{"type": "function", "function": function}]}


def tool(content):
    return {"role": "tool", "content": content}


CHOSEN = [call("the ball"), tool("near"), call("the river"), tool("far"), assistant("the ball")]
REJECTED = [call("the river"), tool("far"), assistant("the river")]
ROW = {"chosen": [ASKED, *CHOSEN], "rejected": [ASKED, *REJECTED]}


def slow_scores(history, answer):
    """The obvious version: writes message by message, and cuts each into what is said and told.

    Returns:
        The ids, and whether the assistant says each of them. The line break behind a message and
        the heading of the next one are not its own.
    """
    pieces = []
    messages = [*history, *answer]
    for end in range(len(history), len(messages)):
        before, upto = (
            TOKENIZER.apply_chat_template(messages[:n], tokenize=False) for n in (end, end + 1)
        )
        mine = messages[end]["role"] == "assistant"
        heading = "[assistant] " if mine else ""
        said = upto.removeprefix(before + heading).removesuffix("\n")
        pieces += [(heading, False), (said, mine), ("\n", False)]
    ids, scored = [], []
    # The prompt ends with the first heading, and the response with its end of turn.
    for is_said, run in itertools.groupby(pieces[1:-1], key=lambda piece: piece[1]):
        text = "".join(text for text, _ in run)
        # What is said continues a heading. What is told stands behind an end of turn, where this
        # tokenizer begins anew.
        lead = "\n" if is_said else ""
        start, whole = TOKENIZER([lead, lead + text], add_special_tokens=False)["input_ids"]
        ids += whole[len(start) :]
        scored += [is_said] * len(whole[len(start) :])
    return ids, scored


@pytest.mark.parametrize("prompt", [False, True])
def test_the_loss_counts_what_the_assistant_says(tmp_path, prompt):
    row = {"prompt": [ASKED], "chosen": CHOSEN, "rejected": REJECTED} if prompt else ROW
    (pair,) = load(tmp_path, [row], TOKENIZER).train
    assert pair.scored is not None
    for ids, scored, answer in zip(pair.responses, pair.scored, (CHOSEN, REJECTED), strict=True):
        assert (ids.tolist(), scored.tolist()) == slow_scores([ASKED], answer)
        assert TOKENIZER.decode(ids[scored]).count("</s>") == (len(answer) + 1) // 2


def test_a_tools_words_are_seen_and_not_counted(tmp_path):
    (pair,) = load(tmp_path, [ROW], TOKENIZER).train
    row = {**ROW, "chosen": [ASKED, CHOSEN[0], tool("far"), *CHOSEN[2:]]}
    (other,) = load(tmp_path, [row], TOKENIZER).train
    assert pair.responses[0].tolist() != other.responses[0].tolist()
    counted = [each.responses[0][each.scores[0]].tolist() for each in (pair, other)]
    assert counted[0] == counted[1]


def test_answers_begin_where_the_conversations_part():
    same = {"chosen": ROW["chosen"], "rejected": [*ROW["chosen"][:-1], assistant("else")]}
    assert parse_row(same).prompt == ROW["chosen"][:-1]
    late = {"chosen": ROW["chosen"], "rejected": [*ROW["chosen"][:3], assistant("else")]}
    assert parse_row(late).prompt == ROW["chosen"][:3]
    assert parse_row(late).responses == (CHOSEN[2:], "else")
    short = {"chosen": [ASKED, assistant("red")], "rejected": ROW["rejected"]}
    assert parse_row(short).responses == ("red", REJECTED)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROW, "rejected": [user("else?"), *REJECTED]}, "differing histories"),
        ({**ROW, "rejected": [ASKED, assistant("a"), user("b"), *REJECTED]}, "differing histories"),
        ({**ROW, "rejected": [ASKED, REJECTED[0], tool(None), REJECTED[2]]}, "null content of a "),
        ({**ROW, "rejected": [ASKED, *REJECTED[:2], assistant(None)]}, "empty response"),
        ({**ROW, "rejected": [ASKED, *REJECTED[:2]]}, "the last role of 'rejected' is 'tool'"),
    ],
)
def test_what_cannot_be_a_pair_of_trajectories(row, reason):
    assert parse_row(row).startswith(reason)


def test_a_template_that_writes_earlier_messages_anew_is_no_use(tmp_path):
    last = JINJA.replace("m.content", "(m.content if loop.last or m.role != 'assistant' else 'x')")
    dataset = load(tmp_path, [conversation(), ROW], sentencepiece(chat_template=last))
    (reason,) = dataset.dropped
    assert reason.startswith("template: ")
    assert dataset.dropped[reason] == [1]


def test_they_are_cut_kept_and_shown(tmp_path):
    first, again = (load(tmp_path, [ROW, conversation()], TOKENIZER) for _ in range(2))
    assert as_lists(again.train) == as_lists(first.train)
    for one, other in zip(first.train, again.train, strict=True):
        assert all(map(np.array_equal, one.scores, other.scores))
    assert again.train[1].scored is None
    config = DataConfig(path=write(tmp_path / "data.jsonl", [ROW]), validation=0, max_length=100)
    _, (fitted,) = load_fitted(config, TOKENIZER, context=999, cache=tmp_path / "c", count=1)
    assert [len(each) for each in fitted.cut.scores] == [len(each) for each in fitted.cut.responses]
    assert len(fitted.cut.responses[0]) < len(fitted.whole.responses[0])
    _, _, _, chosen, *_ = example_lines(fitted, TOKENIZER)
    assert "</s>\u00bb" in chosen
