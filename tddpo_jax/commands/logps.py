"""Using a policy without training it: log-probs of pairs, and its export as a folder."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from tddpo_jax.adapters.peft_files import has_quantized_base
from tddpo_jax.batches.layout import Batch, Pair
from tddpo_jax.batches.packing import choose_shapes
from tddpo_jax.config.schema import MeshConfig, ModelConfig
from tddpo_jax.data.dataset import load_uncut_pairs
from tddpo_jax.data.pairs import Unusable, check_vocabulary
from tddpo_jax.errors import UserError
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.models.attention.kernels import KERNELS
from tddpo_jax.models.llama.model import Llama
from tddpo_jax.placement.shardings import make_mesh, row_devices
from tddpo_jax.runs.run_directory import check_output, write_atomically
from tddpo_jax.scoring.reference import log_probs
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.training.prepare import computation, load_model, load_tokenizer_if_any
from tddpo_jax.training.step import Computation, Frozen, hidden_states
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import resolve
from tddpo_jax.weights.tensor_files import checkpoint_dtype

PAIRS_PACKED_TOGETHER = 128


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
    rows = load_uncut_pairs(data, load_tokenizer_if_any(files), template)
    pairs = [row for row in rows if isinstance(row, Pair)]
    how = computation(ModelConfig(dtype=dtype, remat="none"), mesh)
    policy = load_model(files, mesh, how.dtype)
    check_vocabulary(data, pairs, policy.config.vocabulary)
    scored = iter(pair_log_probs(policy, pairs, how, mesh).tolist())
    lines = [_line(row, next(scored) if isinstance(row, Pair) else None) for row in rows]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, "".join(json.dumps(line) + "\n" for line in lines))


def pair_log_probs(
    policy: Llama, pairs: Sequence[Pair], how: Computation, mesh: Mesh
) -> Float[np.ndarray, "pairs 2"]:
    """log pi(y | x) of both responses of every pair, in nats."""
    if not pairs:
        return np.zeros((0, 2), np.float32)
    graphdef, weights = nnx.split(policy)

    @jax.jit
    def run(weights: nnx.State, _: Frozen, batch: Batch) -> tuple[jax.Array, jax.Array]:
        policy = nnx.merge(graphdef, weights)
        logps = branch_logps(hidden_states(policy, batch, how), policy.head_weight, batch)[None]
        return logps, jnp.zeros_like(logps)

    shapes = choose_shapes(
        pairs,
        PAIRS_PACKED_TOGETHER,
        rows=row_devices(mesh),
        causal_rows=how.attention in KERNELS,
    )
    return log_probs(run, weights, Frozen(nnx.State({}), None), pairs, shapes, mesh)[0][0]


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


def export_run(run: Path, output: Path, *, adapter: bool) -> None:
    """Writes a run's best policy as a Hugging Face folder, adapters merged, or as a PEFT folder.

    Raises:
        UserError: the run has no policy yet, has no adapters, or the output exists.
    """
    check_output(output.parent)
    if output.exists():
        raise UserError(f"output: {output} exists")
    if not run.is_dir():
        raise UserError(f"run: {run}: no such directory")
    files = resolve(str(run))
    if adapter and files.adapter is None:
        raise UserError(f"adapter: {run} trained no adapters")
    if adapter and has_quantized_base(files.adapter):
        warnings.warn(
            "the adapter belongs to the base in four bits, of which PEFT knows nothing: put on the "
            "base as it is stored it is another policy; without --adapter the export is merged",
            stacklevel=2,
        )
    if adapter or files.adapter is None:
        shutil.copytree(files.adapter or files.base, output)
        return
    mesh = make_mesh(MeshConfig())
    model = load_model(files, mesh, checkpoint_dtype(files.base))
    hugging_face.export(model, files.base, output)
