"""Lines of a file that may still grow."""

import pytest

from tddpo_jax.runs.records import parse_records
from tddpo_jax.system.json_files import whole_lines

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
