"""Makes tiny random Llamas, Hugging Face folders and examples.

Sizes are odd or have few divisors, weights are large, and norms are not ones. So a test fails if
axes are swapped, a weight is forgotten, or a default replaces a setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig

from tddpo_jax.batches.layout import Batch, Example
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.models.attention.view import View
from tddpo_jax.models.decoder import Decoder, Remat
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.scoring.forward import view_of
from tddpo_jax.weights.hugging_face import load as load_checkpoint
from tddpo_jax.weights.tensor_files import (
    WEIGHT_FILES,
    WHOLE_OR_PACKED,
    stored_tensor,
)

if TYPE_CHECKING:  # functions import it themselves, because not every test needs PyTorch
    import torch
    from transformers import PreTrainedModel

CONFIG = LlamaConfig(
    vocabulary=61,
    width=24,
    layers=3,
    heads=6,
    key_value_heads=2,
    head_size=10,
    feed_forward=37,
    context=256,
    rope_theta=12345.6,
    rope_scaling=None,
    norm_epsilon=3e-4,
    tied=False,
    biases=False,
    head_norms=False,
    window=None,
)
# Sizes that every mesh of eight devices divides, with inputs of whole blocks of 64 for QLoRA.
DIVISIBLE = {
    "vocabulary": 64,
    "width": 64,
    "layers": 2,
    "heads": 8,
    "key_value_heads": 8,
    "head_size": 8,
    "feed_forward": 192,
}
HUGGING_FACE = {
    "vocab_size": CONFIG.vocabulary,
    "hidden_size": CONFIG.width,
    "num_hidden_layers": CONFIG.layers,
    "num_attention_heads": CONFIG.heads,
    "num_key_value_heads": CONFIG.key_value_heads,
    "head_dim": CONFIG.head_size,
    "intermediate_size": CONFIG.feed_forward,
    "max_position_embeddings": CONFIG.context,
    "rope_parameters": {"rope_type": "default", "rope_theta": CONFIG.rope_theta},
    "rms_norm_eps": CONFIG.norm_epsilon,
    "tie_word_embeddings": CONFIG.tied,
}

# For functions that compile for seconds and run for milliseconds.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_weight(rng: np.random.Generator, shape: tuple[int, ...], is_norm: bool) -> np.ndarray:
    """Normal weights that keep hidden states from vanishing or exploding; norms around one."""
    noise = rng.normal(size=shape).astype(np.float32)
    return 1 + 0.2 * noise if is_norm else 1.5 * noise / np.sqrt(shape[-1])


def llama(seed: int = 0, **changes: Any) -> Decoder:
    """A model with random weights and the shape of `CONFIG`, with these changes."""
    config = dataclasses.replace(CONFIG, **changes)
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> jax.Array:
        return jnp.asarray(random_weight(rng, leaf.shape, "norm" in jax.tree_util.keystr(path)))

    abstract = jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, abstract)


def hugging_face(
    seed: int = 0, dtype: torch.dtype | None = None, model_type: str = "llama", **changes: Any
) -> PreTrainedModel:
    """transformers' model of the same shape; changes have transformers' names."""
    import torch
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**HUGGING_FACE, **changes})
    model: Any = AutoModelForCausalLM.from_config(config)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(random_weight(rng, tuple(weight.shape), "norm" in name)))
    return model.to(dtype=dtype or torch.float32).eval()


def save(folder: Path, model: PreTrainedModel, tokenizer: Any = None, **settings: Any) -> Path:
    """Writes the Hugging Face folder of a model; `settings` are those of `save_pretrained`."""
    model.save_pretrained(folder, **settings)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: Any = None) -> Decoder:
    """Loads the folder's model onto one device."""
    return load_checkpoint(folder, one_device(), dtype)


def load_from(model: PreTrainedModel) -> Decoder:
    """Converts a transformers model to ours, by way of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        return load(save(Path(folder), model))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of every safetensors file of a folder, also of a dtype that is refused."""
    found: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            names = list(tensors.keys())
        found |= {name: stored_tensor(file, name, (*WHOLE_OR_PACKED, "F64"))[:] for name in names}
    return found


def change_config(folder: Path, **changes: Any) -> None:
    """Sets attributes of config.json; None removes one."""
    path = folder / "config.json"
    attributes = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in attributes.items() if v is not None}))


def change_tensors(folder: Path, **changes: Any) -> None:
    """Sets tensors of the single file; None removes one. Double underscores mean dots."""
    changes = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    tensors = {**tensors_of(folder), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / WEIGHT_FILES[0])


def one_device() -> Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])


def mesh_of(data: int, fsdp: int, tensor: int) -> Mesh:
    devices = jax.devices()[: data * fsdp * tensor]
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices)


def reading_order(rows: int, length: int) -> View:
    """The view of plain causal sequences, with one sequence in each row."""
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return View(jnp.zeros_like(positions), positions + 1, positions)


def plain_states(
    model: Decoder, tokens: Any, dtype: Any = jnp.float32, remat: Remat = "none"
) -> jax.Array:
    """Hidden states of plain sequences."""
    return model(tokens, reading_order(*tokens.shape), dtype=dtype, remat=remat)[0]


hidden_states = quick_jit(plain_states, static_argnames=("dtype", "remat"))


def run(model: Decoder, batch: Batch, **settings: Any) -> jax.Array:
    """Hidden states of packed rows."""
    return model(batch.tokens, view_of(batch), **{"dtype": jnp.float32, **settings})[0]


def dense_attention(
    q: Any,
    k: Any,
    v: Any,
    view: View,
    *,
    window: int | None = None,
    chunk: int | None = None,
    scale: float | None = None,
    allowed: jax.Array | None = None,
) -> jax.Array:
    """Attention with an explicit mask of queries and keys. A query without keys gets zeros."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BQHS,BKHS->BHQK", q, k) * (scale or q.shape[-1] ** -0.5)
    key = jnp.arange(k.shape[1])[None, None]
    seen = (view.key_start[..., None] <= key) & (key < view.key_end[..., None])
    if window is not None:
        seen &= view.position[:, :, None] - view.position[:, None] < window
    if chunk is not None:
        seen &= view.position[:, :, None] // chunk <= view.position[:, None] // chunk
    if allowed is not None:
        seen &= allowed
    seen = seen[:, None]
    largest = jnp.max(scores, axis=-1, keepdims=True, where=seen, initial=-1e30)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores - largest, 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.einsum("BHQK,BKHS->BQHS", weights / jnp.where(total > 0, total, 1), v)


def random_examples(
    lengths: Any, seed: int = 0, vocabulary: int = CONFIG.vocabulary
) -> list[Example]:
    """Examples of random token ids.

    Args:
        lengths: for each example, the lengths of its prompt and of its responses.
        seed: seed of the ids.
        vocabulary: all ids are below this number.
    """
    rng = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, length).astype(np.int32)

    return [
        Example(number, ids(prompt), tuple(map(ids, responses)))
        for number, (prompt, *responses) in enumerate(lengths)
    ]


def count_parameters(model: Decoder) -> int:
    """Number of weights of a model, which may also come from `jax.eval_shape`."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """No program comes out of the compilation cache.

    JAX remembers whether it uses the cache. `reset_cache` makes it ask again.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
