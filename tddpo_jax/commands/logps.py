"""The verb `logps`, which writes a policy's log-probs of the responses of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tddpo_jax.adapters.load import load_model
from tddpo_jax.batches.layout import Example, score_counts
from tddpo_jax.config.schema import DataSource, MeshConfig, ModelConfig
from tddpo_jax.data.dataset import load_uncut_examples
from tddpo_jax.data.examples import Unusable, Vocabulary, check_vocabulary
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.placement.computation import computation
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.runs.run_directory import check_output
from tddpo_jax.scoring.data_sets import example_log_probs
from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import resolve


def write_log_probs(
    model: str,
    data: DataSource,
    output: Path,
    template: str | None,
    dtype: Literal["auto", "float32", "bfloat16"],
) -> None:
    """Writes one JSON line per row of the data, see `log_prob_lines`.

    Args:
        model: this, `data`, `template` and `dtype`: as for `log_prob_lines`.
        output: the file to write.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    check_output(output.parent)
    if output.is_dir():
        raise UserError(f"output: {output} is a directory; expected a file")
    lines = log_prob_lines(model, data, template, dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, "".join(json.dumps(line) + "\n" for line in lines))


def log_prob_lines(
    model: str,
    data: DataSource,
    template: str | None,
    dtype: Literal["auto", "float32", "bfloat16"],
) -> list[dict[str, Any]]:
    """One mapping per row of the data: index, log-probs in nats, token counts.

    No prompt or response is cut. A row that cannot be used has its `index` and the reason,
    `unusable`.

    Args:
        model: a Hugging Face or PEFT folder, a run directory, a hub id, or `embedded`.
        data: the data set, all of whose rows are taken.
        template: name of a chat template; None for the tokenizer's own.
        dtype: dtype of the computation.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    use_compilation_cache()
    mesh = make_mesh(MeshConfig())
    files = resolve(model)
    rows = load_uncut_examples(data, load_tokenizer_if_any(files.tokenizer), template)
    examples = [row for row in rows if isinstance(row, Example)]
    settings = ModelConfig(dtype=dtype, remat="none")
    how = computation(settings, mesh, read_config(files.base))
    policy = load_model(files, mesh, how.dtype)
    shape = policy.config
    check_vocabulary(data.path, examples, Vocabulary(shape.vocabulary, shape.not_text))
    scored = iter(example_log_probs(policy, examples, how, mesh).tolist())
    return [_line(row, next(scored) if isinstance(row, Example) else None) for row in rows]


def _line(row: Example | Unusable, logps: list[float] | None) -> dict[str, Any]:
    if isinstance(row, Unusable):
        return {"index": row.row, "unusable": row.reason}
    assert logps is not None
    single = len(logps) == 1
    logp_names = ("logp",) if single else ("logp_chosen", "logp_rejected")
    count_names = ("response_tokens",) if single else ("chosen_tokens", "rejected_tokens")
    return {
        "index": row.row,
        **dict(zip(logp_names, logps, strict=True)),
        "prompt_tokens": len(row.prompt),
        **dict(zip(count_names, score_counts(row), strict=True)),
    }
