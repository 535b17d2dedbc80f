"""The sentiment study's inputs: parts that depend on a text alone, and ridge regression."""

import numpy as np
import pytest

from eval.studies.sentiment.judges import fitted
from eval.studies.sentiment.sentences import PARTS, Sentence, parts_of, read_sentences
from tddpo_jax.errors import UserError


def test_a_sentence_has_one_part_whatever_its_place():
    sentences = [Sentence(f"film {number}", 0.0) for number in range(10_605)]
    parts = parts_of(sentences)
    assert {name: len(part) for name, part in parts.items()} == PARTS
    assert len({each for part in parts.values() for each in part}) == sum(PARTS.values())
    assert parts_of(sentences[::-1]) == parts


def test_ridge_regression_is_least_squares_with_rows_for_the_penalty():
    rng = np.random.default_rng(0)
    x, y, penalty = rng.normal(size=(30, 4)) + 3, rng.normal(size=30), 2.0
    mean, weight, offset = fitted(x, y, penalty)
    rows = np.concatenate([x - x.mean(0)[None], penalty**0.5 * np.eye(4)])
    expected, *_ = np.linalg.lstsq(rows, np.concatenate([y - y.mean(), np.zeros(4)]), rcond=None)
    np.testing.assert_allclose(weight, expected, rtol=1e-10)
    np.testing.assert_allclose(
        (x - mean[None]) @ weight + offset, (x - x.mean(0)) @ weight + y.mean()
    )


def test_an_archive_without_the_sentences_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="does not hold hutto"):
        read_sentences(tmp_path / "a.tar.gz")
