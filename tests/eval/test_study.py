"""The pages about the study: numbers that stand beside their intervals lie in them."""

import re

import pytest
from places import ROOT

STUDY = ROOT / "eval" / "study"
# `−0.079, 95 % [−0.113, −0.050]` or `0.14 [0.10, 0.18]`, with a minus sign or a hyphen.
NUMBER = r"[−-]?\d[\d.]*"
BESIDE = re.compile(rf"(?<![\d.])({NUMBER})(?:, 95 %)? \[({NUMBER}), ({NUMBER}|∞)\]")


def value(text):
    return float(text.replace("−", "-").replace("∞", "inf"))


@pytest.mark.parametrize(("page", "least"), [("report.md", 150), ("README.md", 4)])
def test_a_number_and_its_interval_have_one_sign(page, least):
    """A difference of 0.079 beside [−0.113, −0.050] would be found here."""
    found = BESIDE.findall((STUDY / page).read_text())
    assert len(found) >= least
    for number, low, high in found:
        assert value(low) <= value(number) <= value(high), (page, number, low, high)
