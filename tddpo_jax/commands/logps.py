"""Using a policy without training it: log-probs of pairs, and its export as a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tddpo_jax.adapters.load import load_model
from tddpo_jax.batches.layout import Pair
from tddpo_jax.config.schema import MeshConfig, ModelConfig
from tddpo_jax.data.dataset import load_uncut_pairs
from tddpo_jax.data.pairs import Unusable, check_vocabulary
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.placement.computation import computation
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.runs.run_directory import check_output
from tddpo_jax.scoring.data_sets import pair_log_probs
from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.weights.locate import resolve


def write_log_probs(
    model: str,
    data: str,
    output: Path,
    template: str | None,
    dtype: Literal["auto", "float32", "bfloat16"],
) -> None:
    """Writes a JSON line per row of the data: index, log-probs in nats, token counts.

    Nothing is cut. A row that makes no pair gets a line with its `index` and `unusable`, the
    reason.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    check_output(output.parent)
    if output.is_dir():
        raise UserError(f"output: {output} is a directory, a file is wanted")
    use_compilation_cache()
    mesh = make_mesh(MeshConfig())
    files = resolve(model)
    rows = load_uncut_pairs(data, load_tokenizer_if_any(files.tokenizer), template)
    pairs = [row for row in rows if isinstance(row, Pair)]
    how = computation(ModelConfig(dtype=dtype, remat="none"), mesh)
    policy = load_model(files, mesh, how.dtype)
    check_vocabulary(data, pairs, policy.config.vocabulary)
    scored = iter(pair_log_probs(policy, pairs, how, mesh).tolist())
    lines = [_line(row, next(scored) if isinstance(row, Pair) else None) for row in rows]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, "".join(json.dumps(line) + "\n" for line in lines))


def _line(row: Pair | Unusable, logps: list[float] | None) -> dict[str, Any]:
    if isinstance(row, Unusable):
        return {"index": row.row, "unusable": row.reason}
    assert logps is not None
    return {
        "index": row.row,
        "logp_chosen": logps[0],
        "logp_rejected": logps[1],
        "prompt_tokens": len(row.prompt),
        "chosen_tokens": len(row.chosen),
        "rejected_tokens": len(row.rejected),
    }
