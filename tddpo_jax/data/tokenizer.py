"""Texts to token ids, so that pieces encoded one by one join into what the whole would be.

*   Sentencepiece-like tokenizers put a `▁` in front of every text they are given, so a response
    encoded alone would begin with a space that its continuation does not have. Such a text is
    encoded behind an anchor, and the anchor's ids are taken off again.
*   Special tokens quoted in somebody's words are ordinary text. `quote` breaks them up with a mark
    before a template is laid around the words; what is still whole after that is the template's.
    The tokens of a template count as special even where the tokenizer does not call them so.
*   Nothing is added to a text: no beginning and no end of sequence.
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tddpo_jax.errors import UserError, one_line
from tddpo_jax.system.foreign_code import not_run
from tddpo_jax.system.hub import NotAtHand
from tddpo_jax.system.json_files import read_object

# Texts whose ids merge with nothing that follows: a line break is a byte of its own in Llama-2's
# vocabulary; where it is not, a private-use character falls back to bytes or to <unk>.
ANCHORS = ("\n", "\ue000")

SPACES = ("▁", "Ġ")  # how vocabularies write a space


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and what it does to the ends of texts, found out by `make_encoder`."""

    tokenizer: PreTrainedTokenizerBase
    special_tokens: frozenset[str]  # by the tokenizer's own word
    special: re.Pattern[str]  # any of these, or a template's token
    has_prefix: bool  # a text alone begins with a dummy prefix
    special_restarts: bool  # a text behind a special token begins as if it stood alone
    drops_spaces: bool  # spaces at the end of a text are lost


class Text(NamedTuple):
    """A text to encode. `mark` breaks up the special tokens quoted in it, "" if there are none;
    `before` is the end of the text it continues, "" if there is none."""

    text: str
    mark: str = ""
    before: str = ""


def make_encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Looks once at what a tokenizer does."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    specials = frozenset(added | set(tokenizer.all_special_tokens))
    end = tokenizer.eos_token or max(sorted(specials), key=len, default="")
    alone, with_space, special, behind = _alone(tokenizer, ["a", "a ", end, end + "a"])
    return Encoder(
        tokenizer=tokenizer,
        special_tokens=specials,
        special=pattern(specials),
        has_prefix=str(tokenizer.convert_ids_to_tokens(alone)[0]).startswith(SPACES),
        special_restarts=behind == special + alone,
        drops_spaces=with_space == alone,
    )


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that were added to a vocabulary, special or not, but for those of white space."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {token for token in added | set(tokenizer.all_special_tokens) if token.strip()}


def pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these tokens; the longest, where one is the beginning of another."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def quote(encoder: Encoder, words: Sequence[str]) -> tuple[list[str], str]:
    """Texts with the special tokens in them broken up by a mark, a character that none of them
    holds, and the mark; the texts as they are and "" if they hold no special tokens."""
    if not any(encoder.special.search(text) for text in words):
        return list(words), ""
    mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in "".join(words))
    return [encoder.special.sub(lambda found: mark.join(found[0]), text) for text in words], mark


def encode(encoder: Encoder, texts: Sequence[Text]) -> list[list[int]]:
    """The ids of each text, in two batches, since a call costs more than a short text.

    Raises:
        UserError: a tokenizer with a dummy prefix merges every anchor with a text.
    """
    ids = {i: _encode_quoted(encoder, text) for i, text in enumerate(texts) if text.mark}
    behind = [i for i, text in enumerate(texts) if i not in ids and _continues(encoder, text)]
    alone = sorted(set(range(len(texts))) - ids.keys() - set(behind))
    for numbers, function in ((behind, _behind), (alone, _alone)):
        encoded = function(encoder.tokenizer, [texts[i].text for i in numbers])
        ids.update(zip(numbers, encoded, strict=True))
    return [ids[i] for i in range(len(texts))]


def _continues(encoder: Encoder, text: Text) -> bool:
    """True if the tokenizer would give the text a dummy prefix that it must not have."""
    if not encoder.has_prefix or not text.before:
        return False
    behind_special = re.search(rf"(?:{encoder.special.pattern})\Z", text.before)
    return not (encoder.special_restarts and behind_special)


def _encode_quoted(encoder: Encoder, text: Text) -> list[int]:
    """The ids of a text with marks in it, piece by piece between its true special tokens."""
    ids: list[int] = []
    before = text.before
    for piece in re.split(f"({encoder.special.pattern})", text.text):
        if not piece:
            continue
        if encoder.special.fullmatch(piece):
            ids += _alone(encoder.tokenizer, [piece])[0]
            before = piece
            continue
        for words in _letters_apart(encoder, piece.replace(text.mark, "")):
            behind = _continues(encoder, Text(words, before=before))
            function = _behind if behind else _alone
            ids += function(encoder.tokenizer, [words], quoted=True)[0]
            before = words
    return ids


def _letters_apart(encoder: Encoder, words: str) -> Iterator[str]:
    """Words, cut behind the first letter of every quoted token that the tokenizer would keep whole.

    It takes special tokens apart by itself, but not a template's tokens that are not special.
    """
    whole = (found for found in encoder.special.finditer(words))
    cuts = [found.start() + 1 for found in whole if found[0] not in encoder.special_tokens]
    for start, end in itertools.pairwise([0, *cuts, len(words)]):
        yield words[start:end]


def _alone(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], quoted: bool = False
) -> list[list[int]]:
    """Each text as the tokenizer takes it; special tokens in it are special unless `quoted`."""
    if not texts:
        return []
    return tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=quoted,
        return_attention_mask=False,
        verbose=False,  # no complaint about texts longer than the model's context
    )["input_ids"]


def _behind(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], quoted: bool = False
) -> list[list[int]]:
    """Each text as the continuation of another one, without the dummy prefix."""
    found: dict[int, list[int]] = {}
    for anchor in ANCHORS:
        missing = [i for i in range(len(texts)) if i not in found]
        joint = [anchor + texts[i] for i in missing]
        lead, *encoded = _alone(tokenizer, [anchor, *joint], quoted)
        for i, ids in zip(missing, encoded, strict=True):
            if lead and ids[: len(lead)] == lead:  # a normaliser may have dropped the anchor
                found[i] = ids[len(lead) :]
    lost = [text for i, text in enumerate(texts) if i not in found]
    if lost:
        raise UserError(f"the tokenizer cannot continue a text with {lost[0][:40]!r}")
    return [found[i] for i in range(len(texts))]


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def load_tokenizer_if_any(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model's folder, if it has one; data of token ids needs none."""
    return load_tokenizer(folder) if _has_files(folder) else None


def _has_files(folder: Path) -> bool:
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a hub id.

    Raises:
        UserError: there is none (`NotAtHand` of a hub id); or a file of it is damaged; or there is
            only a `tokenizer.model`, from which transformers makes a tokenizer that splits runs of
            spaces wrongly.
    """
    if Path(folder).is_dir() and not _has_files(Path(folder)):
        # Of some kinds of models transformers would make a tokenizer that knows no word.
        raise UserError(f"tokenizer {folder}: there is none; only token ids can be used")
    _check_json(folder, Path(folder, "tokenizer.model"))
    code = _code_of(Path(folder))
    try:
        # Without this argument, transformers would ask on the terminal whether to run the code.
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        _try_out(tokenizer)
    except Exception as error:  # whatever damaged files make transformers and tokenizers raise
        for file in sorted(Path(folder).glob("*token*.json")):
            read_object(file)  # names the file, if it is no JSON
        kind = UserError if Path(folder).exists() else NotAtHand
        reason = _reason(error)
        if "trust_remote_code" in reason:
            reason = code or "needs code of its own, which is never run"
        raise kind(f"tokenizer {folder}: {reason}") from None
    if code:
        warnings.warn(f"tokenizer {folder}: {code}", stacklevel=2)
    _check_json(folder, Path(getattr(tokenizer, "vocab_file", None) or ""))  # where the hub put it
    return tokenizer


def _code_of(folder: Path) -> str:
    """Says which code the tokenizer of a local folder asks for; "" if it asks for none."""
    file = folder / "tokenizer_config.json"
    return not_run(read_object(file)) if file.is_file() else ""


def _try_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """Fails if the tokenizer cannot do what all use of it begins with.

    Raises:
        ValueError: a letter makes no token, or a special token is not one token.
        Exception: whatever the tokenizer raises.
    """
    letter, _ = _alone(tokenizer, ["a", "\ue000"])  # the second is in hardly any vocabulary
    if not letter:
        raise ValueError("the letter a makes no token")
    if "" in tokenizer.all_special_tokens:
        raise ValueError("a special token is an empty text")
    for name in ("bos_token", "eos_token"):
        token = getattr(tokenizer, name)
        if token is not None and len(_alone(tokenizer, [token])[0]) != 1:
            raise ValueError(f"{name} {token!r} is not one token")


def _reason(error: Exception) -> str:
    """The error in one line; those of Python's own that are mere names need their kind."""
    said = one_line(error)
    known = isinstance(error, (OSError, ValueError, ImportError))
    return said if known else f"damaged or incomplete ({type(error).__name__}: {said})"


def _check_json(folder: str | Path, vocabulary: Path) -> None:
    if vocabulary.suffix != ".model" or not vocabulary.is_file():
        return
    if not vocabulary.with_name("tokenizer.json").is_file():
        raise UserError(
            f"tokenizer {folder}: has a {vocabulary.name} but no tokenizer.json, "
            "without which transformers splits runs of spaces wrongly"
        )


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that makes ids of texts; truncation and padding are traces of earlier calls."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    parts = {key: part for key, part in parts.items() if key not in ("truncation", "padding")}
    return json.dumps([parts, tokenizer.special_tokens_map], sort_keys=True, default=str)
