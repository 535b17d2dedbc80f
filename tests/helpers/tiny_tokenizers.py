"""Makes tokenizers of a few hundred pieces, of the kinds that the Llama models use."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "User: what do you think about the red ball in the garden?",
    "Assistant: I think that the red ball is in the garden, by the river.",
    "system user assistant [INST] <<SYS>> hello there, how are you today? [/INST]",
    "the the the there then that this thing think in on at an and are you your",
]
LLAMA_3_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
]


def byte_level(specials: list[str] = LLAMA_3_SPECIALS, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 3's: of bytes, without a dummy prefix; it adds its own BOS token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    begin = specials[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=specials[1], **settings
    )


def sentencepiece(
    prefix: str = "every", drops_spaces: bool = False, adds_bos: bool = True, **settings: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama-2's.

    It writes `▁` for a space, adds one in front of a text, and encodes unknown characters as bytes.

    Args:
        prefix: where the dummy prefix is added: in front of "every" piece of text between special
            tokens, or of the "first" piece alone.
        drops_spaces: whether spaces at the ends are removed and runs of spaces shrink to one.
        adds_bos: whether the tokenizer adds `<s>` by itself.
        settings: settings for `PreTrainedTokenizerFast`.
    """
    vocabulary, merges = _pieces()
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    if prefix == "every":
        steps.insert(0, normalizers.Prepend("▁"))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if drops_spaces:
        steps.insert(0, normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.insert(1, normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **settings,
    )


def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learned pieces and merges, none across a space.

    `<unk>`, `<s>`, `</s>` and the bytes come before the learned pieces.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=180, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = first + sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    return {piece: i for i, piece in enumerate(pieces)}, [tuple(m) for m in learned["merges"]]
