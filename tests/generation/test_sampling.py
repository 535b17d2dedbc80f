"""The next token's distribution against transformers' own logits processors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tddpo_jax.generation.sampling import Sampler, kept_logits, next_token, row_keys

VOCABULARY = 37
# (temperature, top_k, top_p): each alone, the two together, k beyond the vocabulary.
SETTINGS = [
    (0.7, 0, 1.0),
    (1.3, 5, 1.0),
    (1.0, 0, 0.8),
    (2.0, 11, 0.6),
    (0.4, 50, 0.95),
    (1.0, 1, 0.01),
]


def logits_of(rows: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.normal(size=(rows, VOCABULARY)).astype(np.float32)


def sampler_of(settings, rows: int, seed: int = 0) -> Sampler:
    """`rows` rows with the same settings, or one row for each of several."""
    columns = np.broadcast_to(np.asarray(settings, np.float32), (rows, 3)).T
    keys = np.stack([np.full(rows, seed), np.arange(rows)], axis=1).astype(np.uint32)
    return Sampler(
        jnp.asarray(columns[0]),
        jnp.asarray(columns[1].astype(np.int32)),
        jnp.asarray(columns[2]),
        row_keys(jnp.asarray(keys)),
    )


def expected_logits(logits: np.ndarray, temperature: float, top_k: int, top_p: float):
    """transformers' processors in the order its `generate` applies them."""
    scores = torch.from_numpy(logits)
    processors = [TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for processor in processors:
        scores = processor(None, scores)
    return scores.numpy()


def test_each_row_keeps_what_transformers_keeps():
    """One batch with a different setting in every row."""
    logits = logits_of(60)
    settings = [SETTINGS[row % len(SETTINGS)] for row in range(60)]
    kept = jax.jit(kept_logits)(logits, sampler_of(settings, 60))
    for row, setting in enumerate(settings):
        expected = expected_logits(logits[row : row + 1], *setting)[0]
        np.testing.assert_allclose(kept[row], expected, rtol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS[:5])
def test_samples_follow_the_exact_distribution(settings):
    """20,000 rows with a key each; Pearson's chi-square, tokens expected fewer than 5 times pooled.
    A right sampler fails below p = 1e-3 once in a thousand, and the keys are fixed."""
    rows = 20_000
    logits = logits_of(1)
    drawn = jax.jit(next_token)(
        jnp.broadcast_to(logits, (rows, VOCABULARY)), sampler_of(settings, rows), 4
    )
    probability = np.exp(expected_logits(logits, *settings)[0].astype(np.float64))
    expected = rows * probability / probability.sum()
    counts = np.bincount(drawn, minlength=VOCABULARY)
    assert not counts[expected == 0].any()
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    pooled = [x[:-1] if pooled[1][-1] == 0 else x for x in pooled]
    assert chisquare(*pooled).pvalue > 1e-3


def test_the_number_of_the_token_moves_the_sample_and_the_row_beside_does_not():
    logits = jnp.broadcast_to(logits_of(1), (200, VOCABULARY))
    sampler = sampler_of((1.5, 0, 1.0), 200)
    draw = jax.jit(next_token)
    first, second = draw(logits, sampler, 0), draw(logits, sampler, 1)
    # Independent draws agree with probability sum p^2, about 0.1 here.
    assert 0.02 < np.mean(first == second) < 0.3
    backwards = jax.tree.map(lambda x: x[::-1], sampler)
    np.testing.assert_array_equal(draw(logits, backwards, 0)[::-1], first)


def test_temperature_zero_is_greedy_beside_rows_that_are_not():
    logits = logits_of(50)
    settings = [(0.0, 3, 0.5) if row % 2 else (1.0, 0, 1.0) for row in range(50)]
    drawn = np.asarray(next_token(jnp.asarray(logits), sampler_of(settings, 50), 0))
    assert (drawn == logits.argmax(axis=1))[1::2].all()
    assert (drawn != logits.argmax(axis=1))[0::2].any()
