"""A trial of a loss on a few pairs: whether it is what training takes it for.

A loss must be pure, give one finite number per pair that no other pair changes, and have a
gradient. JAX traces it once and runs what it saw, so a mistake here would be silent later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.errors import UserError, one_line
from tddpo_jax.losses.elementary import PerPair
from tddpo_jax.losses.loss import BATCH_FACTS, Loss, Setting, keywords_of
from tddpo_jax.losses.pair_logps import PairLogps

# Float32 differs in the last digits between eager and compiled mathematics.
TOLERANCE = 1e-4
# Log-probs of the reference in nats, and numbers of tokens, for chosen and rejected responses.
CHOSEN, REJECTED = (-12.0, -35.5, -7.25, -90.0, -3.5), (-14.5, -30.0, -7.25, -120.0, -2.0)
LENGTHS = (5.0, 17.0, 3.0, 40.0, 2.0), (7.0, 13.0, 3.0, 61.0, 2.0)
# A loss that is a mean over tokens is tried with sums over them.
FACTS = dict.fromkeys(BATCH_FACTS, 1.0)
# How far a policy in training may have moved from it.
MOVED = (3.0, -2.0, 0.5, 4.0, -1.5), (-1.0, 2.5, 0.25, -6.0, 1.0)


def at_start() -> PairLogps:
    """Five pairs before the first step: the policy is the reference."""
    return pairs_of(np.zeros(5), np.zeros(5))


def moved() -> PairLogps:
    """The same pairs under a policy that has learned some of them."""
    return pairs_of(*map(np.array, MOVED))


def pairs_of(chosen_ratio: Any, rejected_ratio: Any, dtype: Any = jnp.float32) -> PairLogps:
    """Pairs with these log-ratios, each `[P]` nats; the rest repeats that of five pairs."""
    count = len(chosen_ratio)

    def repeated(values: tuple[float, ...]) -> Any:
        return jnp.asarray(np.resize(values, count), dtype)

    chosen, rejected = repeated(CHOSEN), repeated(REJECTED)
    zero = jnp.zeros(count, dtype)
    return PairLogps(
        logp_chosen=chosen + jnp.asarray(chosen_ratio, dtype),
        logp_rejected=rejected + jnp.asarray(rejected_ratio, dtype),
        ref_logp_chosen=chosen,
        ref_logp_rejected=rejected,
        length_chosen=repeated(LENGTHS[0]),
        length_rejected=repeated(LENGTHS[1]),
        kl_chosen=zero,
        kl_rejected=zero,
    )


def reads_kl(function: Callable[..., PerPair], settings: Mapping[str, Setting]) -> bool:
    """Whether a loss reads the exact KL: a KL that is not a number then makes it none.

    Raises:
        UserError: the function fails.
    """
    known = FACTS | {
        name: 1.0 if setting.default is None else setting.default
        for name, setting in settings.items()
    }
    values = {name: known[name] for name in keywords_of(function)}
    # A step may ask while it is being compiled.
    with jax.ensure_compile_time_eval(), told(function.__name__, "fails"):
        unknown = jnp.full(5, jnp.nan, jnp.float32)
        found = function(moved()._replace(kl_chosen=unknown, kl_rejected=unknown), **values)
        return bool(jnp.isnan(jnp.asarray(found)).any())


def reads_reference(loss: Loss, settings: Mapping[str, Any]) -> bool:
    """Whether a loss reads the reference: log-probs that are not numbers then make it none."""
    return bool(jnp.isnan(values_of(loss, settings, _without_reference())).any())


def rewards_read_reference(loss: Loss, settings: Mapping[str, Any]) -> bool:
    """Whether the implicit rewards of a loss are relative to the reference."""
    chosen, _ = loss.rewards_of(_without_reference(), settings)
    return bool(jnp.isnan(chosen).any())


def _without_reference() -> PairLogps:
    pairs = moved()
    unknown = jnp.full_like(pairs.logp_chosen, jnp.nan)
    return pairs._replace(ref_logp_chosen=unknown, ref_logp_rejected=unknown)


def check(loss: Loss, settings: Mapping[str, Any]) -> None:
    """Refuses a loss that training could not take at its word.

    Args:
        loss: the loss.
        settings: the value of each of its settings.

    Raises:
        UserError: it fails, is not pure, does not give `[P]` numbers, lets one pair change
            another's value, or has no gradient.
    """
    pairs = moved()
    with told(loss.name, "fails"):
        values = values_of(loss, settings, pairs)
    _check_shape(loss.name, values)
    _check_pure(loss, settings, pairs, values)
    alone = jax.tree.map(lambda column: column[:1], pairs)
    _refuse_unless(
        _close(values_of(loss, settings, alone), values[:1]),
        loss.name,
        "the value of a pair depends on the other pairs of its batch",
    )
    check_start(loss, settings)


def check_start(loss: Loss, settings: Mapping[str, Any]) -> None:
    """Refuses a loss that cannot begin with these settings.

    Args: as for `check`.

    Raises:
        UserError: it is not finite where the policy is the reference, or has no gradient.
    """
    name, start = loss.name, at_start()
    values = values_of(loss, settings, start)
    found = np.asarray(values)[~np.isfinite(values)][:1].tolist()
    _refuse_unless(
        not found, name, f"is not finite where the policy is the reference, but {found[:1]}"
    )
    with told(name, "has no gradient"):
        first, later = (gradient(loss, settings, pairs) for pairs in (start, moved()))
    _refuse_unless(
        np.isfinite(first).all(),
        name,
        "its gradient is not finite where the policy is the reference",
    )
    _refuse_unless(
        np.any([first, later]),
        name,
        "its gradient is zero everywhere, so there is nothing to learn",
    )


def gradient(loss: Loss, settings: Mapping[str, Any], pairs: PairLogps) -> tuple[Any, Any]:
    """The gradient of the sum of the values in the policy's log-probs, chosen and rejected, [P]."""

    def total(chosen: Any, rejected: Any) -> Any:
        moved = pairs._replace(logp_chosen=chosen, logp_rejected=rejected)
        return jnp.sum(values_of(loss, settings, moved))

    return jax.grad(total, argnums=(0, 1))(pairs.logp_chosen, pairs.logp_rejected)


def values_of(loss: Loss, settings: Mapping[str, Any], pairs: PairLogps) -> Any:
    """What the function gives, with its numbers as arrays, as training passes them."""
    return loss.function(pairs, **_numbers(loss, settings, pairs), **loss.texts(settings))


def traced(loss: Loss, settings: Mapping[str, Any], pairs: PairLogps) -> Any:
    """What a fresh compiled program gives, in which every number is an argument."""

    def values(pairs: PairLogps, numbers: Mapping[str, Any]) -> Any:
        return loss.function(pairs, **numbers, **loss.texts(settings))

    return jax.jit(values)(pairs, _numbers(loss, settings, pairs))


def _numbers(loss: Loss, settings: Mapping[str, Any], pairs: PairLogps) -> dict[str, Any]:
    dtype = pairs.logp_chosen.dtype
    known, texts = {**settings, **FACTS}, loss.texts(settings)
    names = [name for name in keywords_of(loss.function) if name not in texts]
    return {name: jnp.asarray(known[name], dtype) for name in names}


@contextlib.contextmanager
def told(name: str, what: str) -> Iterator[None]:
    """Turns any error of a user's function, and its exit, into one line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        first = one_line(str(error).strip().partition("\n")[0])
        raise UserError(f"loss.name: {name}: {what}: {type(error).__name__}: {first}") from None


def _check_shape(name: str, values: Any) -> None:
    if isinstance(values, jax.Array):
        found = f"{values.dtype} of the shape {list(values.shape)}"
        right = values.shape == (5,) and jnp.issubdtype(values.dtype, jnp.floating)
    else:
        # An array of numpy comes from mathematics that JAX could not differentiate.
        found, right = type(values).__name__, isinstance(values, np.ndarray)
    _refuse_unless(
        right, name, f"must give one number per pair, float [P]; for 5 pairs it gives {found}"
    )


def _check_pure(loss: Loss, settings: Mapping[str, Any], pairs: PairLogps, values: Any) -> None:
    try:
        with jax.checking_leaks():
            compiled = traced(loss, settings, pairs)
    except Exception as error:
        if "Leaked" in str(error):
            raise UserError(
                f"loss.name: {loss.name}: is not pure: it keeps a value of its call, "
                "which JAX knows only while it compiles"
            ) from None
        with told(loss.name, "cannot be compiled"):
            raise
    same = (
        np.array_equal(values, values_of(loss, settings, pairs), equal_nan=True)
        and np.array_equal(compiled, traced(loss, settings, pairs), equal_nan=True)
        and _close(values, compiled)
    )
    _refuse_unless(
        same, loss.name, "is not pure: for the same pairs it gives another value the second time"
    )


def _close(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.allclose(
        one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
    )


def _refuse_unless(right: Any, name: str, problem: str) -> None:
    if not right:
        raise UserError(f"loss.name: {name}: {problem}")
