"""How several hosts agree on a value, and which one of them writes."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from tddpo_jax.errors import UserError

P = ParamSpec("P")


T = TypeVar("T")


def whose() -> str:
    """The beginning of a message about this host: `host 1 of 4:`."""
    import jax

    return f"host {jax.process_index()} of {jax.process_count()}:"


def check_same(settings: dict[str, Any]) -> None:
    """Checks that every host was given the same settings; here the hosts meet for the first time.

    Call it soon after `hosts.join`: gloo waits half a minute for hosts to meet, and if one comes
    later, it waits for ever.

    Raises:
        UserError: the settings of this host differ from those of the first.
    """
    mine = {name: value for name, value in settings.items() if name != "hosts"}
    check_alike("hosts", "its settings differ from the first host's", lambda: mine)


def check_alike(field: str, problem: str, compute: Callable[[], Any]) -> None:
    """Checks that every host computed the same value; every host must call it.

    Args:
        field: the setting that the message names.
        problem: the message if this host's value differs.
        compute: gives this host's value.

    Raises:
        UserError: `compute` returns another value here than on the first host.
    """
    if not several():
        return
    mine = compute()
    if agree(lambda: mine) != mine:
        raise UserError(f"{field}: {whose()} {problem}")


def several() -> bool:
    """Whether other processes work on this job too."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    if not several():
        return True
    import jax

    return jax.process_index() == 0


def first_only(function: Callable[P, None]) -> Callable[P, None]:
    """The function, which does nothing on all hosts but the first."""

    @functools.wraps(function)
    def on_first(*arguments: P.args, **named: P.kwargs) -> None:
        if is_first():
            function(*arguments, **named)

    return on_first


def agree(compute: Callable[[], T]) -> T:
    """Gives every host what `compute` returns on the first; every host must call it.

    Raises:
        UserError: `compute` raised it on the first host; every host then raises it.
    """
    if not several():
        return compute()
    value: Any = None
    problem: UserError | None = None
    if is_first():
        try:
            value = compute()
        except UserError as error:
            problem = error
    value, problem = pickle.loads(_broadcast(pickle.dumps((value, problem))))
    if problem is not None:
        raise UserError(str(problem))
    return value


def _broadcast(message: bytes) -> bytes:
    """The first host's message.

    Its length is sent first, because all hosts must offer the same number of bytes.
    """
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    # XLA compiles a program for every length. Powers of two keep these programs few.
    room = np.zeros(max(1024, 1 << (size - 1).bit_length()), np.uint8)
    room[: min(size, len(message))] = np.frombuffer(message[:size], np.uint8)
    return multihost_utils.broadcast_one_to_all(room)[:size].tobytes()


def first_before_others(load: Callable[[], T]) -> T:
    """Runs `load` on the first host, then on the others, which may find what the first cached."""
    loaded: list[T] = []
    agree(lambda: loaded.append(load()))
    return loaded[0] if loaded else load()


def whole(array: Any) -> np.ndarray:
    """The values of an array that may be spread over several hosts; every host must call it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)
