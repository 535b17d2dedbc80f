"""The scores of several models as one mapping, each with the facts that it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.system.json_lines import read_rows

from ..uncertainty import holm
from .benchmark import AnswerFile, Data
from .difference import difference, interval
from .judge_settings import Judge
from .judgments import Judgment, Key, Slot, current
from .remaining import key_of
from .requests import requests_for
from .score import Scores, mean, scores_of, sd_over_seeds

# Two models should share these facts. Otherwise their difference is not one of answers alone.
JUDGED_WITH = ("response_models", "base_url", "sampling", "data")


def read_judgments(paths: Iterable[str | Path], judge_model: str | None = None) -> list[Judgment]:
    """The rows of judgment files, of one judge.

    Raises:
        UserError: a row is wrong; or the files hold no rows; or they hold several judges and none
            was chosen; or they do not hold the chosen judge.
    """
    rows = [row for path in paths for row in read_rows(path, Judgment)]
    judges = sorted({row.judge[0] for row in rows})
    if not judges:
        raise UserError("--judgments: the files hold no judgments")
    if judge_model is None and len(judges) > 1:
        raise UserError(f"--judge-model: the files hold several judges: {', '.join(judges)}")
    if judge_model is not None and judge_model not in judges:
        raise UserError(f"--judge-model {judge_model}: the files hold only {', '.join(judges)}")
    return [row for row in rows if judge_model in (None, row.judge[0])]


def asked_now(rows: Sequence[Judgment], files: Iterable[AnswerFile], data: Data) -> dict[Slot, Key]:
    """The current request of each slot: made from the answers, with the last row's judge."""
    last = rows[-1]
    requested = Judge(model=last.judge[0]).requested | (last.requested or {})
    judge = Judge(
        model=last.judge[0],
        temperature=float(requested["temperature"]),
        max_tokens=int(requested["max_tokens"]),
    )
    keys = [key_of(request, judge) for file in files for request in requests_for(data, file)]
    return {key[0]: key for key in keys}


def report(
    rows: Sequence[Judgment],
    *,
    baseline: str | None = None,
    allow_missing: bool = False,
    keys: Mapping[Slot, Key] | None = None,
) -> dict[str, dict[str, Any]]:
    """All numbers of each model, ready for JSON.

    Args:
        rows: the rows of one judge, with older requests and duplicates.
        baseline: the model that the others are compared with.
        allow_missing: whether to give scores although rows are missing or invalid. By default they
            are None then.
        keys: the current requests, from `asked_now`; by default the requests judged last.

    Raises:
        UserError: the baseline was not judged; or as `scores_of`.
    """
    counted = current(rows, keys)
    models = scores_of(counted)
    if baseline is not None and baseline not in models:
        raise UserError(
            f"--baseline {baseline}: was not judged; these were: {', '.join(models) or 'none'}"
        )
    made = {model: _made_with(counted, model) for model in models}
    result = {
        model: _score(scores, allow_missing) | {"made_with": made[model]}
        for model, scores in models.items()
    }
    if baseline is None:
        return result
    scored = [model for model, entry in result.items() if entry["average"] is not None]
    for model in scored if baseline in scored else []:
        if model == baseline:
            continue
        found = difference(models[model], models[baseline])
        result[model]["difference"] = found and dataclasses.asdict(found)
        result[model]["judged_differently"] = [
            name for name in JUDGED_WITH if made[model][name] != made[baseline][name]
        ]
    _correct_p_values(result)
    return result


def _score(scores: Scores, allow_missing: bool) -> dict[str, Any]:
    shown = scores.complete or (allow_missing and mean(scores.ratings) is not None)
    categories = dict.fromkeys(scores.categories)
    return {
        "average": mean(scores.ratings) if shown else None,
        "interval": interval(scores) if shown else None,
        "sd_over_seeds": sd_over_seeds(scores) if shown else None,
        "turn_1": mean(scores.ratings[..., :1]) if shown else None,
        "turn_2": mean(scores.ratings[..., 1:]) if shown else None,
        "categories": {name: _category(scores, name) for name in categories} if shown else None,
        "seeds": len(scores.seeds),
        "valid": scores.valid,
        "invalid": scores.invalid,
        "expected": scores.expected,
    }


def _category(scores: Scores, name: str) -> float | None:
    members = [place for place, category in enumerate(scores.categories) if category == name]
    return mean(scores.ratings[:, members])


def _made_with(rows: Iterable[Judgment], model: str) -> dict[str, Any]:
    """The distinct values of everything that a score depends on. Each should have one value."""
    own = [row for row in rows if (row.model_id or row.model) == model]
    return {
        "judge": own[0].judge[0],
        "response_models": _distinct(row.response_model for row in own),
        "base_url": _distinct(row.base_url for row in own),
        "sampling": _distinct(
            {
                "requested": row.requested,
                "accepted": row.parameters,
                "system_role": row.system_role,
            }
            for row in own
        ),
        "data": _distinct(row.data for row in own),
        "generation": _distinct(row.generation for row in own),
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct


def _correct_p_values(result: dict[str, dict[str, Any]]) -> None:
    found = {
        model: entry["difference"] for model, entry in result.items() if entry.get("difference")
    }
    corrected = holm({model: entry["p_value"] for model, entry in found.items()})
    for model, entry in found.items():
        entry["p_value_holm"] = corrected[model]
