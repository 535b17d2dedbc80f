"""Adapters on a Llama 4's experts beside the real `peft`, which takes their inputs for outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny_models
import torch
from both_logits import our_logits, their_logits
from places import GOLDEN
from tiny_adapters import adapted
from transformers import AutoModelForCausalLM

from tddpo_jax.adapters.lora import merged
from tddpo_jax.adapters.peft_files import export_adapter, load_adapter

MAVERICK = GOLDEN / "llama4-maverick" / "model"
TOKENS = np.random.default_rng(1).integers(3, 300, (2, 41), np.int32)
# PEFT asks transformers for an attribute that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def base_of_peft():
    return AutoModelForCausalLM.from_pretrained(MAVERICK, dtype=torch.float32)


def test_peft_computes_with_our_folder_what_we_compute(tmp_path):
    base = tiny_models.load(MAVERICK, jnp.float32)
    targets = ("q_proj", "gate_proj", "experts.gate_up", "experts.down")
    ours = adapted(base, 1, rank=3, alpha=7.0, targets=targets)
    export_adapter(ours, tmp_path / "adapter", str(MAVERICK))
    theirs = their_logits(
        peft.PeftModel.from_pretrained(base_of_peft(), tmp_path / "adapter"), TOKENS
    )
    bound = 1e-4 * np.abs(theirs).max()
    np.testing.assert_allclose(our_logits(ours, TOKENS), theirs, rtol=0, atol=bound)
    np.testing.assert_allclose(
        our_logits(merged(ours, jnp.float32), TOKENS), theirs, rtol=0, atol=bound
    )
    assert np.abs(our_logits(ours, TOKENS) - our_logits(base, TOKENS)).max() > 0.1
    again = tiny_models.load(MAVERICK, jnp.float32)
    load_adapter(again, tmp_path / "adapter", tiny_models.one_device())
    assert jax.tree.all(jax.tree.map(np.array_equal, again, ours))


def test_we_compute_with_a_folder_of_peft_what_peft_computes(tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=r".*self_attn.v_proj",
        target_parameters=["feed_forward.experts.down_proj", "experts.gate_up_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(base_of_peft(), config).eval()
    theirs.save_pretrained(tmp_path)
    ours = tiny_models.load(MAVERICK, jnp.float32)
    load_adapter(ours, tmp_path, tiny_models.one_device())
    expected = their_logits(theirs, TOKENS)
    np.testing.assert_allclose(
        our_logits(ours, TOKENS), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
