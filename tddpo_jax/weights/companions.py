"""What stands in a policy's folder beside its weights, so that other programs use it rightly.

These are the tokenizer, the chat template that the policy was trained under, the tokens at which an
answer ends, and the model card.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from tddpo_jax.data.chat_format import ChatFormat
from tddpo_jax.system.atomic import write_json, write_text
from tddpo_jax.system.json_files import read_object

GENERATION_CONFIG = "generation_config.json"
TEMPLATE_FILE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
# What makes ids of conversations, and answers of ids.
CHAT_FILES = (
    *("tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG, "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", TEMPLATE_FILE, GENERATION_CONFIG),
)


class Companions(NamedTuple):
    """What to write beside the weights of a policy."""

    base: Path  # Hugging Face folder of the model that was trained
    tokenizer: Path  # folder with the tokenizer's files
    chat: ChatFormat | None = None  # how the policy's conversations are written, if it has seen any
    card: str | None = None  # text of the model card


def write_companions(companions: Companions, folder: Path) -> None:
    """Writes them into a policy's folder; files of the same names are replaced."""
    for name in CHAT_FILES:
        if (companions.tokenizer / name).is_file():
            shutil.copyfile(companions.tokenizer / name, folder / name)
    if companions.chat is not None:
        _write_template(companions.chat.jinja, folder)
        _write_stops(companions.chat.stop_ids, companions.base, folder)
    if companions.card is not None:
        write_text(folder / "README.md", companions.card)


def _write_template(jinja: str, folder: Path) -> None:
    write_text(folder / TEMPLATE_FILE, jinja)
    config = folder / TOKENIZER_CONFIG
    # Some programs read the template from here, for example converters to GGUF.
    if config.is_file():
        write_json(config, {**read_object(config), "chat_template": jinja})


def _write_stops(stop_ids: tuple[int, ...], base: Path, folder: Path) -> None:
    """Adds the ends of answers to those that programs stop at."""
    path = folder / GENERATION_CONFIG
    given = path if path.is_file() else base / GENERATION_CONFIG
    settings = read_object(given) if given.is_file() else _tokens(read_object(base / "config.json"))
    known = settings.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    new = [stop for stop in stop_ids if stop not in known]
    if new or not given.is_file():
        write_json(path, {**settings, "eos_token_id": [*known, *new]})


def _tokens(config: dict[str, object]) -> dict[str, object]:
    """What transformers takes from a config where there are no settings of generation."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if name in config}
