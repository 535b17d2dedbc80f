"""Reads YAML, and refuses a key that is given twice: the last one alone would count."""

from __future__ import annotations

from typing import Any

import yaml

from tddpo_jax.errors import UserError


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which reads a mapping only if each key is there once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            UserError: a key is given twice; the message says where.
        """
        seen = set()
        for key, _ in node.value:
            # Merged mappings (`<<`) are not flattened yet: a key beside one may replace its value.
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise UserError(f"line {line}: the key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)
