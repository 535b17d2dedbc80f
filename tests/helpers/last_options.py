"""Lets a test's own options replace the usual ones before them; a command would refuse both."""

from __future__ import annotations


def last_of_each(words: list[str], kept: str = "") -> list[str]:
    """The words with the last occurrence of each option; the option `kept` keeps all of its."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    last = {group[0]: number for number, group in enumerate(groups)}
    return [
        word
        for number, group in enumerate(groups)
        if group[0] == kept or last[group[0]] == number
        for word in group
    ]
