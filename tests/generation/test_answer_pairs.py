"""Pairs of scored answers."""

import pytest

from tddpo_jax.data.formats import ParsedRow
from tddpo_jax.generation.answer_pairs import chosen_and_rejected, pair_row

CHAT = ParsedRow("chat", [{"role": "user", "content": "x"}], ("answer",))


@pytest.mark.parametrize(
    ("scores", "best", "all_pairs"),
    [
        ([1.0, 0.0, 2.0], [(2, 1)], [(0, 1), (2, 0), (2, 1)]),
        ([1.0, 0.0, 1.0, 0.0], [(0, 1)], [(0, 1), (0, 3), (2, 1), (2, 3)]),
        ([0.5, None, 0.0], [(0, 2)], [(0, 2)]),
        ([1.0, 1.0], [], []),
        ([None, 1.0], [], []),
    ],
)
def test_the_better_answer_is_chosen(scores, best, all_pairs):
    assert chosen_and_rejected(scores, "best") == best
    assert chosen_and_rejected(scores, "all") == all_pairs


def test_rows_have_the_shape_of_their_prompt():
    said = {"chosen": "a", "rejected": "b"}
    messages = {name: [{"role": "assistant", "content": text}] for name, text in said.items()}
    assert pair_row(CHAT, "a", "b") == {"prompt": CHAT.prompt, **messages}
    tools = [{"name": "look"}]
    assert pair_row(CHAT._replace(tools=tools), "a", "b")["tools"] == tools
    text = ParsedRow("text", "once", ("answer",))
    assert pair_row(text, "a", "b") == {"prompt": "once", **said}
    ids = ParsedRow("ids", [1, 2], ([0],))
    expected = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}
    assert pair_row(ids, [3], [4]) == expected
