"""Checks the values in a `config.json`. A model with 0 heads would break far from that file."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.models.rope import RopeScaling, Yarn

LARGEST = 2**31 - 1  # of an array's axis, with the integers that devices count in
MOST_LAYERS = 10_000  # more are a mistake, and listing their tensors would take all memory


def whole_number(
    value: Any, name: str, path: str, at_most: int = LARGEST, *, at_least: int = 1
) -> int:
    """A size or a count.

    Args:
        value: the attribute's value.
        name: of the attribute.
        path: of the file.
        at_most: the largest value.
        at_least: the smallest value.

    Raises:
        UserError: it is not a whole number from `at_least` to `at_most`.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not at_least <= value <= at_most:
        limits = f"from {at_least} to {at_most}"
        raise UserError(f"{path}: {name} must be a whole number {limits}, got {value!r}")
    return value


def positive_number(value: Any, name: str, path: str) -> float:
    """A factor or an epsilon. The arguments are those of `whole_number`.

    Raises:
        UserError: it is not a positive, finite number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise UserError(f"{path}: {name} must be a positive number, got {value!r}")
    return float(value)


def unread(
    attributes: Mapping[str, Any],
    understood: Mapping[str, tuple[Any, ...]],
    ignored: Collection[str],
    path: str,
) -> dict[str, Any]:
    """The attributes that are still to be read.

    Args:
        attributes: all attributes.
        understood: the only values that these attributes may have.
        ignored: names of attributes that change nothing.
        path: of the file.

    Raises:
        UserError: an attribute has a value that is not among the understood ones.
    """
    for name, values in understood.items():
        if name in attributes and attributes[name] not in values:
            raise UserError(f"{path}: {name} = {attributes[name]!r} is not supported")
    done = (*understood, *ignored)
    return {name: value for name, value in attributes.items() if name not in done}


def take_numbers(
    known: dict[str, Any], names: Mapping[str, str], check: Callable[..., Any], path: str
) -> dict[str, Any]:
    """Takes numbers that no file may lack out of `known`, and gives them by their fields.

    Args:
        known: the attributes that are not read yet; it loses these.
        names: the fields of the config by the attributes' names.
        check: `whole_number` or `positive_number`.
        path: of the file.

    Raises:
        UserError: an attribute is missing, or `check` refuses it.
    """
    for name in names:
        if known.get(name) is None:
            raise UserError(f"{path}: {name} is missing")
    return {field: check(known.pop(name), name, path) for name, field in names.items()}


def check_all_read(known: Mapping[str, Any], path: str) -> None:
    """Refuses attributes that nothing has read, because they may change the mathematics.

    Raises:
        UserError: there is such an attribute.
    """
    if known:
        raise UserError(f"{path}: {sorted(known)[0]} is not understood")


def text_part(
    outer: dict[str, Any], ignored: Collection[str], default_token: int, path: str
) -> tuple[Mapping[str, Any], int]:
    """The attributes of the text part of a model that also has a vision part.

    Args:
        outer: the attributes of the whole that are not read yet.
        ignored: names of those of them that do not concern the text.
        default_token: the token id that stands for a part of an image if the file has none.
        path: of the file.

    Returns:
        The attributes of the text part, and the token id that stands for a part of an image.

    Raises:
        UserError: there is no text part, or an attribute of the whole is wrong or unknown.
    """
    known = {name: value for name, value in outer.items() if name not in ignored}
    text = known.pop("text_config", None)
    if not isinstance(text, Mapping):
        raise UserError(f"{path}: text_config is missing")
    named = [known.pop(name, None) for name in ("image_token_index", "image_token_id")]
    token = next((each for each in named if each is not None), default_token)
    token = whole_number(token, "image_token_index", path)
    check_all_read(known, path)
    return text, token


def rope_attributes(known: dict[str, Any], path: str) -> tuple[Any, float | None, dict[str, Any]]:
    """Takes rope's attributes out of `known`.

    transformers 5 writes all of them into `rope_parameters`; older versions write `rope_theta` and
    `rope_scaling`. As in transformers, the older object counts if a file has both, and a base in
    the object that counts goes before `rope_theta`. A base that is null counts as absent.

    Args:
        known: the attributes that are not read yet; it loses those of rope.
        path: of the file.

    Returns:
        The kind of stretching (`default`: none), the base of the frequencies (None: the file has
        none), and the other attributes of the object that counts.

    Raises:
        UserError: `rope_scaling` is not an object, or the base is not a positive number.
    """
    scaling, parameters = known.pop("rope_scaling", None), known.pop("rope_parameters", None)
    scaling = scaling or parameters or {}
    if not isinstance(scaling, Mapping):
        raise UserError(f"{path}: rope_scaling = {scaling!r} is not an object")
    rest = dict(scaling)
    inner, outer = rest.pop("rope_theta", None), known.pop("rope_theta", None)
    base = outer if inner is None else inner
    kinds = rest.pop("rope_type", None), rest.pop("type", None)
    kind = kinds[0] or kinds[1] or "default"
    return kind, None if base is None else positive_number(base, "rope_theta", path), rest


def stretched_rope(kind: Any, scaling: Mapping[str, Any], path: str) -> RopeScaling | None:
    """Llama-3's stretching of rope, or none.

    Args:
        kind: of the stretching, as `rope_attributes` gives it.
        scaling: its other attributes.
        path: of the file.

    Raises:
        UserError: the kind is another one, or an attribute is missing, wrong or unknown.
    """
    if kind == "default" and not scaling:
        return None
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind != "llama3" or set(scaling) != set(fields):
        raise _unsupported(kind, scaling, path)
    *factors, original_context = fields
    factor, low, high = (positive_number(scaling[field], field, path) for field in factors)
    if low > high:
        raise UserError(f"{path}: low_freq_factor must be at most high_freq_factor")
    context = whole_number(scaling[original_context], original_context, path)
    return RopeScaling(factor, low, high, context)


def check_heads(heads: int, key_value_heads: int, size: int, path: str) -> None:
    """Checks that the heads share keys and values evenly, and that rope can pair their features.

    Raises:
        UserError: they do not, or it cannot.
    """
    if heads % key_value_heads or size % 2:
        raise UserError(
            f"{path}: num_attention_heads ({heads}) must be a multiple of num_key_value_heads "
            f"({key_value_heads}), and head_dim ({size}) must be even"
        )


def yarn_attributes(
    kind: Any, scaling: Mapping[str, Any], path: str, truncate: bool | None = None
) -> Yarn | None:
    """YaRN's stretching of rope, or none.

    Args:
        kind: of the stretching, as `rope_attributes` gives it.
        scaling: its other attributes.
        path: of the file.
        truncate: what `truncate` is in a file that leaves it out; None: no file may.

    Raises:
        UserError: the kind is another one, an attribute is missing, wrong or unknown, or the bounds
            meet.
    """
    if kind == "default" and not scaling:
        return None
    given = {"truncate": truncate, **scaling}
    factors = ("factor", "beta_fast", "beta_slow")
    original_context = "original_max_position_embeddings"
    whole_bounds = given.pop("truncate")
    if (
        kind != "yarn"
        or set(given) != {*factors, original_context}
        or whole_bounds not in (True, False)
    ):
        raise _unsupported(kind, scaling, path)
    factor, fast, slow = (positive_number(given[name], name, path) for name in factors)
    context = whole_number(given[original_context], original_context, path)
    if slow >= fast:
        raise UserError(f"{path}: beta_slow must be less than beta_fast")
    return Yarn(factor, context, fast, slow, bool(whole_bounds))


def _unsupported(kind: Any, scaling: Mapping[str, Any], path: str) -> UserError:
    return UserError(
        f"{path}: rope_scaling of type {kind!r} with {sorted(scaling)} is not supported"
    )
