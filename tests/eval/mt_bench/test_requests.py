"""What the judge is asked, to the letter, and how its rating is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from mt_bench_files import lines, write_answers, write_data, write_lines

from eval.mt_bench.benchmark import load_answers, load_data
from eval.mt_bench.requests import (
    Request,
    fastchat_rating,
    parse_rating,
    request_hash,
    requests_for,
)

SAMPLING = {"temperature": 0.0, "max_tokens": 2048.0}


@pytest.fixture
def requests(tmp_path: Path) -> dict[tuple[int, int], Request]:
    data = write_data(tmp_path / "data")
    path = write_answers(tmp_path / "answers", data)
    found = requests_for(load_data(data), load_answers(path))
    return {(request.question_id, request.turn): request for request in found}


# Written out by hand from the templates of `mt_bench_files`; braces and brackets of answers stay.
FIRST, SECOND = "answer [1] tiny-seed0", "answer {b} tiny-seed0"
GOLDEN = {
    (81, 1): (
        "single-v1",
        "Help.",
        "Rate [[1]] to [[10]].\n\n[Q]\nwriting 0 one?\n\n[A]\nanswer [1] tiny-seed0\n[End]",
    ),
    (81, 2): (
        "single-v1-multi-turn",
        "Judge turn 2.\n\n",
        f"<|A|>\nwriting 0 one?\n{FIRST}\nwriting 0 {{two}}?\n{SECOND}\n<|End|>",
    ),
    (111, 1): (
        "single-math-v1",
        "Help.",
        "[Q]\nmath 0 one?\n\n[R]\nref one\n\n[A]\nanswer [1] tiny-seed0\n[End]",
    ),
    (121, 2): (
        "single-math-v1-multi-turn",
        "Judge turn 2 with the reference.\n\n",
        "<|R|>\ncoding 0 one?\nref one\ncoding 0 {two}?\nref two\n<|End|>\n\n"
        f"<|A|>\ncoding 0 one?\n{FIRST}\ncoding 0 {{two}}?\n{SECOND}\n<|End|>",
    ),
}


@pytest.mark.parametrize("where", GOLDEN)
def test_golden_prompts(requests: dict[tuple[int, int], Request], where: tuple[int, int]) -> None:
    prompt, system, user = GOLDEN[where]
    request = requests[where]
    assert request.prompt == prompt
    assert request.messages == [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
    ]


def test_every_answered_turn_is_asked_about_once(
    requests: dict[tuple[int, int], Request],
) -> None:
    assert list(requests) == [(q, turn) for q in (81, 111, 121, 141) for turn in (1, 2)]


def test_the_hash_covers_judge_text_and_sampling(
    requests: dict[tuple[int, int], Request],
) -> None:
    one = requests[81, 1]
    hashes = {
        request_hash("j", one, SAMPLING),
        request_hash("k", one, SAMPLING),
        request_hash("j", requests[81, 2], SAMPLING),
        request_hash("j", one, {**SAMPLING, "max_tokens": 2.0}),
    }
    assert len(hashes) == 4
    assert request_hash("j", one, dict(reversed(SAMPLING.items()))) in hashes


@pytest.mark.parametrize(
    ("text", "ours", "fastchats"),
    [
        ("Rating: [[7]]", 7, 7),
        ("Rating: [[7.5]]", 7.5, 7.5),
        ("Rating: [5]", None, 5),
        ("array[0] is wrong", None, 0),
        ("Rating: [[0]]", None, 0),
        ("Rating: [[11]]", None, 11),
        ("[[3]], on reflection [[9]]", 3, 3),
        ("[[11]], I mean [[9]]", None, 11),
        ("No rating.", None, -1),
        ("", None, -1),
        ("Rating: [[rating]] [[10]]", 10, 10),
        ("**Rating: [[1]]**", 1, 1),
        ("x = a[2]\nRating: [[6]]", 6, 6),
        ("[[-3]]", None, -1),
        ("[[٣]]", None, -1),
        ("<think>e.g. [[5]]</think>\n[[9]]", 9, 5),
        ("e.g. [[5]]</think>\n[[9]]", 9, 5),
        ("<think>a</think>[[3]]<think>b</think>[[9]]", 9, 3),
        ("<think>e.g. [[5]]", None, 5),
        ("<think>e.g. [[5]]</think> I cannot tell.", None, 5),
        ("[THINK]e.g. [[5]][/THINK][[9]]", 9, 5),
        ("The answer opens a <think>. [[4]]", 4, 4),
    ],
)
def test_parser_table(text: str, ours: float | None, fastchats: float) -> None:
    assert parse_rating(text) == ours
    assert fastchat_rating(text) == fastchats


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    answers = load_answers(write_answers(tmp_path / "answers", folder))
    references = folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl"
    write_lines(references, lines(references)[1:])
    with pytest.raises(ValueError, match="question 111 has none"):
        requests_for(load_data(folder), answers)
    with pytest.raises(ValueError, match=r"reference_answer/other.jsonl: No such file"):
        load_data(folder, "other")
    prompts = folder / "judge_prompts.jsonl"
    write_data(folder)
    write_lines(prompts, lines(prompts)[1:])
    with pytest.raises(ValueError, match="'single-v1' is missing"):
        requests_for(load_data(folder), answers)
    write_data(folder)
    write_lines(prompts, [{**row, "prompt_template": "{answer_b}"} for row in lines(prompts)])
    with pytest.raises(ValueError, match="'single-v1': no value for 'answer_b'"):
        requests_for(load_data(folder), answers)
    write_data(folder)
    questions = folder / "mt_bench" / "question.jsonl"
    write_lines(questions, lines(questions)[:-1])
    with pytest.raises(ValueError, match="question 141 is not one"):
        requests_for(load_data(folder), answers)
