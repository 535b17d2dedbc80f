"""Answers prompts with the model of a folder, a run directory or adapters, in batches of any size.

    generator = Generator.from_path("runs/x", template="llama-2")
    prompt = encode_prompt(generator.tokenizer, [{"role": "user", "content": "Why?"}], "llama-2")
    [completion] = generator.generate([prompt], [Sampling(temperature=0.7)], [(seed, 0)])

A prompt's result depends on the prompt, its settings and its key, and not on other prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int, Int32
from transformers import PreTrainedTokenizerBase

from tddpo_jax.adapters.adapter_set import AdapterSet, adapter_set
from tddpo_jax.adapters.load import load_base
from tddpo_jax.adapters.peft_files import has_quantized_base, load_adapter
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.data.chat_format import chat_format
from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.data.tokenizer import load_tokenizer, load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.generation.batching import continue_prompts
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.computation import compute_dtype
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.system.json_files import read_object
from tddpo_jax.weights.locate import ModelFiles, resolve

# Every device holds all weights and takes its share of the rows. This is the fastest mesh if the
# model fits one device.
COPIES = MeshConfig(data=-1, fsdp=1, tensor=1)


class Completion(NamedTuple):
    """A continuation and its text, without special tokens."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_cut: bool


class Generator:
    """A model, or several adapters over one base, with its tokenizer and its stop tokens."""

    def __init__(
        self,
        adapters: AdapterSet,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        stop_ids: Sequence[int],
        mesh: Mesh,
        dtype: Any,
    ) -> None:
        self.adapters = adapters
        self._tokenizer = tokenizer
        self.stop_ids = tuple(stop_ids)
        self.mesh = mesh
        self.dtype = dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model's folder, which may lack one if all prompts are token ids."""
        if self._tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer")
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether answers have texts."""
        return self._tokenizer is not None

    @property
    def context(self) -> int:
        """The largest number of tokens of a prompt and its continuation together."""
        return self.adapters.model.config.context

    @classmethod
    def from_path(
        cls,
        path: str | Sequence[str],
        dtype: str = "auto",
        *,
        template: str | None = None,
        mesh: MeshConfig = COPIES,
        by_ids: bool = False,
        ignore_eos: bool = False,
    ) -> Generator:
        """Loads a model, or several adapters of one base. Adapters are not merged.

        A checkpoint's generation_config.json gives the stop tokens. Its sampling settings are not
        used.

        Args:
            path: a path that `weights.locate.resolve` accepts, or several of them with the same
                base; then `generate` takes the number of a path as the adapter.
            dtype: dtype of weights and computation; `auto`: bfloat16 on accelerators, float32 on
                CPU.
            template: chat template of the prompts to come; its end of turn ends an answer.
            mesh: the device mesh; by default every device holds all weights.
            by_ids: whether the folder may lack a tokenizer. Texts of answers are then empty.
            ignore_eos: whether nothing but its length ends an answer.

        Raises:
            UserError: a path, one of its files, the template or the mesh is wrong, or several paths
                have different bases.
        """
        paths = [path] if isinstance(path, str) else list(path)
        files = [resolve(one) for one in paths]
        for one, found in zip(paths, files, strict=True):
            if found.base.resolve() != files[0].base.resolve():
                raise UserError(f"model.path: {one} has another base than {paths[0]}")
        load = load_tokenizer_if_any if by_ids else load_tokenizer
        tokenizer = load(files[0].tokenizer)
        stop_ids = set() if ignore_eos else set(configured_stops(files[0]))
        if tokenizer is not None and not ignore_eos:
            stop_ids |= set(chat_format(tokenizer, template).stop_ids)
        devices = make_mesh(mesh)
        compute = compute_dtype(dtype)
        adapters = [found.adapter for found in files]
        if len({has_quantized_base(adapter) for adapter in adapters}) > 1:
            raise UserError("model.path: some of the adapters need a base in NF4, others do not")
        quantized = any(map(has_quantized_base, adapters))
        base = load_base(files[0].base, devices, compute, quantized=quantized)
        models = [_with_adapter(base, adapter, devices) for adapter in adapters]
        return cls(
            adapter_set(models), tokenizer, stop_ids=sorted(stop_ids), mesh=devices, dtype=compute
        )

    def generate(
        self,
        prompts: Sequence[Int[np.ndarray, " _"]],
        sampling: Sequence[Sampling],
        keys: Sequence[tuple[int, ...]],
        adapters: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Continues every prompt. `continue_prompts` documents the arguments and the errors."""
        continuations = continue_prompts(
            self.adapters,
            prompts,
            sampling,
            keys,
            adapters,
            stop_ids=self.stop_ids,
            bos=self._tokenizer.bos_token_id if self._tokenizer else None,
            mesh=self.mesh,
            dtype=self.dtype,
        )
        return [
            Completion(self.text_after(prompt.tolist(), continuation.token_ids), *continuation)
            for prompt, continuation in zip(prompts, continuations, strict=True)
        ]

    def text_after(self, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text that new tokens add to a prompt's text; empty without a tokenizer.

        The new tokens are decoded together with the prompt, because many tokenizers strip the space
        at the front of a text.
        """
        if self._tokenizer is None:
            return ""
        new = [token for token in token_ids if token not in self.stop_ids]
        before, whole = self._decoded(list(prompt)), self._decoded([*prompt, *new])
        # If the prompt ends in the middle of a character, its text is not a prefix of the whole.
        return whole[len(before) :] if whole.startswith(before) else self._decoded(new)

    def _decoded(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)


def generate_text(
    model: str,
    prompt: str | Sequence[int],
    *,
    raw: bool = False,
    template: str | None = None,
    system: str | None = None,
    begin: str | None = None,
    ignore_eos: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
) -> Completion:
    """Answers one prompt.

    Args:
        model: a path that `weights.locate.resolve` accepts.
        prompt: the user's message, or the beginning of a text if `raw`, or token ids.
        raw: whether to continue the prompt without a chat template.
        template: a named chat template; default: the tokenizer's own.
        system: a system message before the prompt.
        begin: beginning of the answer, which the model continues.
        ignore_eos: whether nothing but its length ends the answer.
        temperature: as in `Sampling`.
        top_k: as in `Sampling`.
        top_p: as in `Sampling`.
        max_new_tokens: largest number of new tokens; default: 256, or half the model's context if
            that is less.
        seed: makes the random key.
        dtype: as for `Generator.from_path`.

    Returns:
        The answer, without white space around its text unless `raw`.

    Raises:
        UserError: the user's input is wrong.
    """
    by_ids = not isinstance(prompt, str)
    if by_ids and (raw, begin, system, template) != (False, None, None, None):
        raise UserError("prompt ids: are taken as they are, without a template, system or begin")
    if raw and begin is not None:
        raise UserError("begin: a raw prompt has no answer to begin; write the beginning behind it")
    generator = Generator.from_path(
        model, dtype, template=template, by_ids=by_ids, ignore_eos=ignore_eos
    )
    if isinstance(prompt, str):
        begun = [] if begin is None else [{"role": "assistant", "content": begin}]
        start = prompt if raw else [{"role": "user", "content": prompt}, *begun]
        ids = encode_prompt(generator.tokenizer, start, template, system=system)
    else:
        ids = _token_ids(prompt)
    if max_new_tokens is None:
        max_new_tokens = most_new_tokens(generator.context)
    sampling = Sampling(temperature, top_k, top_p, max_new_tokens)
    [completion] = generator.generate([ids], [sampling], [(seed,)])
    if completion.prompt_cut:
        warnings.warn(
            "the prompt is longer than the context; its beginning was cut off", stacklevel=2
        )
    return completion if raw else completion._replace(text=completion.text.strip())


def most_new_tokens(context: int) -> int:
    """The most new tokens where nobody says: 256, or half the context if that is less."""
    return min(Sampling().max_new_tokens, context // 2)


def _token_ids(ids: Sequence[int]) -> Int32[np.ndarray, " T"]:
    largest = np.iinfo(np.int32).max
    for each in ids:
        if not 0 <= each <= largest:
            raise UserError(f"prompt ids: must be from 0 to {largest}, got {each}")
    return np.array(ids, np.int32)


def _with_adapter(base: Decoder, folder: Path | None, mesh: Mesh) -> Decoder:
    model = nnx.clone(base)
    if folder is not None:
        load_adapter(model, folder, mesh)
    return model


def configured_stops(files: ModelFiles) -> list[int]:
    """The stop tokens that the checkpoint itself names, read as transformers does.

    Raises:
        UserError: they are no token ids.
    """
    for name in ("generation_config.json", "config.json"):
        file = files.base / name
        if file.is_file():
            break
    given = read_object(file).get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(token) is int for token in ids):
        raise UserError(f"{file}: eos_token_id must be a token id or a list of them, got {given!r}")
    return ids
