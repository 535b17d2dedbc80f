"""What a peer is given: the shape of the model, the pairs, the settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tddpo_jax.batches.layout import Example

from .case import WARM_UP, Case


def peer_job(
    case: Case,
    pairs: list[Example],
    folder: Path,
    settings: str,
    micro_batch: int,
    longest: tuple[int, int],
) -> dict[str, Any]:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        dict(zip(columns, (ids.tolist() for ids in (pair.prompt, *pair.responses)), strict=True))
        for pair in pairs
    ]
    return {
        "folder": str(folder / "model"),
        "tokenizer": str(case.tokenizer.absolute()),
        "model": dataclasses.asdict(case.model),
        "mode": case.mode,
        "settings": settings,
        "batch_pairs": case.batch_pairs,
        "micro_batch": micro_batch,
        "max_length": case.max_length,
        "longest": longest,
        "steps": case.steps + WARM_UP,
        "pairs": rows,
    }


def longest(pairs: list[Example]) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest response in all the data."""
    responses = (len(response) for pair in pairs for response in pair.responses)
    return max(len(pair.prompt) for pair in pairs), max(responses)


def shape_folder(case: Case, folder: Path) -> Path:
    shape = folder / "shape"
    shape.mkdir()
    (shape / "config.json").write_text(json.dumps(_config_json(case)))
    return shape


def _config_json(case: Case) -> dict[str, Any]:
    model = case.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.width,
        "intermediate_size": model.feed_forward,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_size,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied,
    }
