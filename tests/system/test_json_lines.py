"""JSON-lines files that survive kills, and errors that name the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mt_bench_files import lines, write_answers, write_data, write_lines

from eval.mt_bench.benchmark import answer_files, load_answers, load_data
from eval.mt_bench.judgments import Judgment
from tddpo_jax.system.json_lines import Row, appending, read_rows


class Number(Row):
    value: int


def test_appends_one_line_a_row_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with appending(path) as append:
        append({"value": 1, "other": "é\n\ud800"})
        assert path.read_bytes().endswith(b"}\n"), "a row is in the file before append returns"
        append({"value": 2})
    assert [row.value for row in read_rows(path, Number)] == [1, 2]


@pytest.mark.parametrize("size", range(1, 12))
def test_a_line_torn_at_any_byte_costs_that_line_alone(tmp_path: Path, size: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"value": 1}\n' + b'{"value": 2}'[:size])
    with pytest.warns(UserWarning, match="the last line is cut off"):
        assert [row.value for row in read_rows(path, Number)] == [1]
    removed = pytest.warns(UserWarning, match=f"removed a cut-off last line of {size} bytes")
    with removed, appending(path) as append:
        append({"value": 3})
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_whole_last_line_lacks_only_its_newline(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"value": 1}\n{"value": 2}')
    assert [row.value for row in read_rows(path, Number)] == [1, 2]
    with appending(path) as append:
        append({"value": 3})
    assert [row.value for row in read_rows(path, Number)] == [1, 2, 3]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    refused = pytest.raises(ValueError, match=r"rows.jsonl: another process")
    with appending(path), refused, appending(path):
        pass


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"value": "x"}', "row 2: value: "),
        ("{}", "row 2: value: Field required"),
        ("[1]", "row 2: must be an object"),
        ("{", "row 2: not JSON"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"value": 1}}\n{line}\n{{"value": 3}}\n')
    with pytest.raises(ValueError, match=f"{path}, {said}") as caught:
        read_rows(path, Number)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.jsonl: No such file"):
        read_rows(tmp_path / "absent.jsonl", Number)


def test_pairwise_judgments_are_not_taken_for_ratings(tmp_path: Path) -> None:
    row = {"question_id": 81, "model_1": "a", "model_2": "b", "judge": ["gpt-4", "pair-v2"]}
    with pytest.raises(ValueError, match="row 1: judgment: compares two answers; only ratings"):
        read_rows(write_lines(tmp_path / "gpt-4_pair.jsonl", [row]), Judgment)


def test_answers_of_other_tools_are_known_by_their_file(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    file = load_answers(write_answers(tmp_path / "answers", data, "vicuna", None))
    assert (file.model, file.model_id, file.seed) == ("vicuna", "vicuna", None)


def test_our_answers_are_known_by_their_rows(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    path = write_answers(tmp_path / "answers", data, "dpo-beta0.05-seed0", 2)
    file = load_answers(path)
    assert file.model == "dpo-beta0.05-seed0-seed2"
    assert (file.model_id, file.seed) == ("dpo-beta0.05-seed0", 2)


def test_answer_files_that_contradict_each_other(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    path = write_answers(tmp_path / "answers", data)
    rows = lines(path)
    copy = write_lines(tmp_path / "answers" / "copy.jsonl", rows)
    with pytest.raises(ValueError, match="has the same model 'tiny' and seed"):
        answer_files([path, copy])
    with pytest.raises(ValueError, match="more than one model or seed"):
        load_answers(write_lines(copy, [*rows[:-1], {**rows[-1], "seed": 1}]))
    with pytest.raises(ValueError, match="question 81 appears twice"):
        load_answers(write_lines(copy, [*rows, rows[0]]))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no answer files"):
        answer_files([tmp_path / "none"])


def test_a_missing_benchmark_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fetch"):
        load_data(tmp_path)
