"""Generation against transformers, token for token, and against itself in other company."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_tokenizers
import torch
from tiny_adapters import adapted

from tddpo_jax import convert, lora
from tddpo_jax.config import MeshConfig
from tddpo_jax.decode import Prompts, generate_rows
from tddpo_jax.generate import Generator, continue_prompts, generate_text
from tddpo_jax.peft_files import export_adapter
from tddpo_jax.row_adapters import adapter_set
from tddpo_jax.sampling import Sampler, Sampling, row_keys

SHAPES = {
    "grouped heads": {},
    "as many key/value heads, odd head": {"num_key_value_heads": 6, "head_dim": 14},
    "one key/value head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}
STOPS = (3, 17, 40)
# Each of them settles something that the others leave open.
SETTINGS = (
    Sampling(max_new_tokens=20),
    Sampling(temperature=0.9, max_new_tokens=17),
    Sampling(temperature=1.5, top_k=7, max_new_tokens=20),
    Sampling(temperature=1.1, top_p=0.8, max_new_tokens=11),
)


def prompts_of(lengths, seed: int = 0, vocabulary: int = tiny.CONFIG.vocabulary):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


def continued(models, prompts, sampling, keys, adapters=None, **changes):
    settings = {"stop_ids": STOPS, "bos": 1, "mesh": tiny.one_device(), "dtype": jnp.float32}
    return continue_prompts(models, prompts, sampling, keys, adapters, **{**settings, **changes})


@functools.cache
def plain():
    return adapter_set([tiny.llama()])


# ---- against transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_tokens_are_those_of_transformers(name, tmp_path):
    """Mixed lengths in one batch, rows that end early and rows that do not; the longest prompt and
    its answer take two blocks of the cache. Expected: transformers, one prompt at a time."""
    theirs = tiny.hugging_face(**SHAPES[name])
    ours = adapter_set([tiny.load(tiny.save(tmp_path / "model", theirs))])
    prompts = prompts_of([1, 2, 7, 31, 32, 33, 90, 129])
    found = continued(ours, prompts, [Sampling(max_new_tokens=40)] * 8, [(0,)] * 8)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=list(STOPS),
            pad_token_id=0,
        )
        assert answer.token_ids == expected[0, len(prompt) :].tolist()
    assert {answer.finish_reason for answer in found} == {"stop", "length"}
    assert len({token for answer in found for token in answer.token_ids}) > 20


# ---- independence --------------------------------------------------------------------------------


def test_a_batch_of_80_mixed_prompts_is_what_they_are_one_by_one():
    """Also in another order: a row depends on its prompt, its settings and its key alone."""
    prompts = prompts_of(np.random.default_rng(1).integers(1, 60, 80))
    sampling = [SETTINGS[number % 4] for number in range(80)]
    keys = [(5, number, 1) for number in range(80)]
    together = continued(plain(), prompts, sampling, keys)
    backwards = continued(plain(), prompts[::-1], sampling[::-1], keys[::-1])
    assert backwards[::-1] == together
    alone = [
        continued(plain(), [prompt], [settings], [key])[0]
        for prompt, settings, key in zip(prompts, sampling, keys, strict=True)
    ]
    assert alone == together
    assert {answer.finish_reason for answer in together} == {"stop", "length"}


def test_the_devices_change_nothing(tmp_path):
    folder = tiny.save(tmp_path / "model", tiny.hugging_face(head_dim=12, vocab_size=62))
    prompts = prompts_of([1, 5, 40, 11, 2, 3, 20, 33, 9, 4, 7], vocabulary=62)
    sampling = [SETTINGS[number % 4] for number in range(11)]
    keys = [(0, number) for number in range(11)]
    alone = continued(adapter_set([tiny.load(folder)]), prompts, sampling, keys)
    mesh = tiny.mesh_of(2, 2, 2)
    model = adapter_set([convert.load(folder, mesh)])
    # Feed-forward 37 would not divide.
    assert continued(model, prompts, sampling, keys, mesh=mesh) == alone
