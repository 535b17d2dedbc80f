"""JSON that may be damaged, and lines of a file that may still grow."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tddpo_jax.runs.records import parse_records
from tddpo_jax.system.json_files import parse, problem, whole_lines

RECORD = b'{"step": 1}'


@pytest.mark.parametrize(
    ("text", "lines", "torn"),
    [
        (b"", [b""], b""),
        (RECORD, [RECORD], b""),
        (RECORD + b"\n", [RECORD, b""], b""),
        (RECORD + b"\n" + RECORD[:-1], [RECORD], RECORD[:-1]),
        (RECORD[:1], [], RECORD[:1]),
        # With its newline a line is whole, and damaged.
        (RECORD[:-1] + b"\n", [RECORD[:-1], b""], b""),
        (RECORD + b"\n  ", [RECORD, b"  "], b""),
    ],
)
def test_only_a_last_line_without_its_newline_is_torn(text, lines, torn):
    assert whole_lines(text) == (lines, torn)


def test_records_are_read_up_to_a_torn_line_and_damage_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert parse_records(file, RECORD + b"\n\n" + RECORD[:5]) == [{"step": 1}]
    for damaged in (RECORD[:5] + b"\n", RECORD[:5] + b"\n" + RECORD):
        with pytest.raises(ValueError, match=r"metrics\.jsonl: not JSON: .*: b'\{\"ste'"):
            parse_records(file, damaged)


@settings(max_examples=60)
@given(st.binary(max_size=20) | st.text(alphabet='[]{}",:019.eE-+ \\ultrn', max_size=20))
def test_a_text_is_parsed_as_by_json_or_refused_in_one_line(text):
    found, why = attempt(parse, text)
    assert repr(found) == repr(attempt(json.loads, text)[0])
    assert "\n" not in why


def attempt(read, text):
    """What a parser reads in a text, and why it reads nothing."""
    try:
        return read(text), ""
    except ValueError as error:
        return None, problem(error)


@pytest.mark.parametrize("open_and_close", ["[]", '{"a":}'])
@pytest.mark.parametrize("levels", [101, 100_000])
def test_what_is_nested_too_deeply_is_refused(open_and_close, levels):
    begin, end = open_and_close[:-1], open_and_close[-1]
    text = begin * levels + "0" + end * levels
    for given_text in (text, text.encode()):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse(given_text)
    assert parse(begin * 100 + "0" + end * 100)
