"""The code that a model's folder brings along. It is never run.

A `config.json` or `tokenizer_config.json` names it in `auto_map`, for example
`{"AutoModelForCausalLM": "modeling_own.OwnModel"}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def not_run(attributes: Mapping[str, Any]) -> str:
    """Says which code the attributes ask for, for a message; "" if they ask for none."""
    asked = attributes.get("auto_map")
    if not asked:
        return ""
    values = asked.values() if isinstance(asked, Mapping) else [asked]
    names = [name for each in values for name in (each if isinstance(each, list) else [each])]
    wanted = ", ".join(dict.fromkeys(str(name) for name in names if name))
    return f"auto_map asks to run code of its own ({wanted}), which is never run"
