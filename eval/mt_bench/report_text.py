"""The report as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .fetch import CHECKSUMS

Result = Mapping[str, Mapping[str, Any]]


def as_text(result: Result, baseline: str | None) -> str:
    """The report as text: what made the scores, the scores, categories, differences."""
    blocks = [_made_with_text(result), _scores_text(result), _categories_text(result)]
    if baseline is not None:
        blocks.append(_differences_text(result, baseline))
    return "\n\n".join(block for block in blocks if block)


def _scores_text(result: Result) -> str:
    header = ("model", "score", "95% interval", "SD over seeds", "turn 1", "turn 2", "rows valid")
    rows = [(model, *_score_cells(entry)) for model, entry in result.items()]
    notes = [
        f"{model}: {_incomplete(entry)}"
        for model, entry in result.items()
        if entry["valid"] < entry["expected"]
    ]
    if any(entry["average"] is None for entry in result.values()):
        notes.append(
            "judge the missing rows (judge --retry-invalid asks again), or give --allow-missing"
        )
    return "\n".join([_table([header, *rows]), *notes])


def _score_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    interval = entry["interval"]
    return (
        _number(entry["average"]),
        f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-",
        f"{_number(entry['sd_over_seeds'])} ({entry['seeds']})",
        _number(entry["turn_1"]),
        _number(entry["turn_2"]),
        f"{entry['valid']} of {entry['expected']}",
    )


def _incomplete(entry: Mapping[str, Any]) -> str:
    missing = entry["expected"] - entry["valid"] - entry["invalid"]
    what = "no score" if entry["average"] is None else "the score covers an incomplete set"
    return (
        f"{what}: {missing} of {entry['expected']} rows are missing, "
        f"and {entry['invalid']} have no valid rating"
    )


def _categories_text(result: Result) -> str:
    scored = {model: entry["categories"] for model, entry in result.items() if entry["categories"]}
    names = list(dict.fromkeys(name for categories in scored.values() for name in categories))
    if not scored:
        return ""
    rows = [
        (model, *(_number(categories.get(name)) for name in names))
        for model, categories in scored.items()
    ]
    return _table([("model", *names), *rows])


def _differences_text(result: Result, baseline: str) -> str:
    header = (f"against {baseline}", "difference", "95% interval", "p", "p (Holm)", "detectable")
    lines = [header]
    notes = []
    for model, entry in result.items():
        found = entry.get("difference")
        if not found:
            continue
        low, high = found["interval"]
        lines.append(
            (
                model,
                f"{found['mean']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{found['p_value']:.4f}",
                f"{found['p_value_holm']:.4f}",
                f"{found['smallest_detectable']:.2f}",
            )
        )
        if entry["judged_differently"]:
            names = ", ".join(entry["judged_differently"])
            notes.append(f"{model}: judged in another way than {baseline}; these differ: {names}")
    if len(lines) == 1:
        return f"no comparison with {baseline}: scores are missing"
    notes.append(
        "detectable: the smallest true difference that the 5% test finds four times out of five"
    )
    return "\n".join([_table(lines), *notes])


def _made_with_text(result: Result) -> str:
    """One line per thing that a score depends on. Models that share a value share a line."""
    texts = {model: _lines_of(entry["made_with"]) for model, entry in result.items()}
    lines = []
    for name in ("questions", "prompts", "references", "judge", "sampling", "answers"):
        values: dict[str, list[str]] = {}
        for model, text in texts.items():
            values.setdefault(text[name], []).append(model)
        for value, models in values.items():
            whose = "" if len(values) == 1 else f"  ({', '.join(models)})"
            lines.append(f"{name:<11}{value}{whose}")
    return "\n".join(lines)


def _lines_of(made: Mapping[str, Any]) -> dict[str, str]:
    data = [record for record in made["data"] if record]
    return {
        "questions": _joined(f"{d['question_count']}, {_file(d['questions'])}" for d in data),
        "prompts": _joined(_file(d["prompts"]) for d in data),
        "references": _joined(f"{d['reference']}, {_file(d['references'])}" for d in data),
        "judge": (
            f"{made['judge']}{_at(made['base_url'])}, "
            f"answering as {_joined(made['response_models'])}"
        ),
        "sampling": _joined(_sampling(**sampling) for sampling in made["sampling"]),
        "answers": _joined(_generation(generation) for generation in made["generation"]),
    }


def _joined(values: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(value or "not recorded" for value in values)) or "not recorded"


def _of(record: Mapping[str, Any], name: str) -> str:
    """A fact that a row should record; rows of other programs may use its key for other things."""
    return str(record.get(name, "not recorded"))


def _file(checksum: str) -> str:
    origin = "FastChat's" if checksum in CHECKSUMS.values() else "not FastChat's"
    return f"{origin} ({checksum[:8]})"


def _at(urls: Sequence[str | None]) -> str:
    known = [url for url in urls if url]
    return f" at {', '.join(known)}" if known else ""


def _sampling(
    requested: Mapping[str, int | float] | None,
    accepted: Mapping[str, int | float] | None,
    system_role: bool,
) -> str | None:
    if requested is None or accepted is None:
        return None
    limits = set(accepted) & {"max_tokens", "max_completion_tokens"}
    refused = [
        name for name in requested if name not in accepted and not (name == "max_tokens" and limits)
    ]
    refused += [] if system_role else ["system role"]
    said = [f"{name} {value:g}" for name, value in accepted.items()]
    return ", ".join(said + [f"{name} not accepted" for name in refused])


def _generation(made: Mapping[str, Any] | None) -> str | None:
    if made is None:
        return None
    system = made.get("system")
    parts = (
        f"template {_of(made, 'template')} ({_of(made, 'template_sha256')[:8]})",
        "no system prompt" if system is None else f"system prompt {system!r}",
        *(f"{name} {_of(made, name)}" for name in ("temperature", "top_k", "top_p")),
        f"{_of(made, 'max_new_tokens')} new tokens",
        _of(made, "dtype"),
        f"weights {_of(made, 'weights')[:8]}",
    )
    return ", ".join(parts)


def fastchat_text(result: Result) -> str:
    """FastChat's three numbers, and how many rows it drops silently."""
    header = ("model", "turn 1", "turn 2", "average", "rows", "dropped")
    rows = [
        (
            model,
            *(_number(entry[name], 6) for name in ("turn_1", "turn_2", "average")),
            str(entry["rows"]),
            str(entry["dropped"]),
        )
        for model, entry in result.items()
    ]
    note = "as FastChat computes it: rows of score -1 are dropped, duplicates count"
    return "\n".join([_table([header, *rows]), note])


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
