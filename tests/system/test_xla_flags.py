"""What XLA is told: our flags, and never over what a user has set."""

import os

import pytest

from tddpo_jax.system.xla_flags import (
    FLAGS,
    MEMORY_SHARE,
    MEMORY_VARIABLES,
    flags_left_to_us,
    set_flags,
)

OURS = ["--xla_gpu_enable_latency_hiding_scheduler=true"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Whatever a test sets is gone after it."""
    for name in ("XLA_FLAGS", *MEMORY_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def environment(monkeypatch, **given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    set_flags()
    return os.environ


def test_nothing_set(monkeypatch):
    assert flags_left_to_us() == FLAGS
    after = environment(monkeypatch)
    assert after["XLA_FLAGS"].split() == OURS
    assert flags_left_to_us() == {}
    assert after[MEMORY_VARIABLES[0]] == MEMORY_SHARE


def test_other_flags_stay(monkeypatch):
    after = environment(monkeypatch, XLA_FLAGS="--xla_dump_to=dump")
    assert after["XLA_FLAGS"].split() == [*OURS, "--xla_dump_to=dump"]


def test_a_users_own_value_stays(monkeypatch):
    name = next(iter(FLAGS))
    after = environment(monkeypatch, XLA_FLAGS=f"--{name}=false")
    assert after["XLA_FLAGS"] == f"--{name}=false"


@pytest.mark.parametrize("variable", MEMORY_VARIABLES)
def test_a_users_own_share_of_memory_stays(variable, monkeypatch):
    """Both names given at once would be an error of JAX's."""
    after = environment(monkeypatch, **{variable: "0.5"})
    assert [name for name in MEMORY_VARIABLES if name in after] == [variable]
    assert after[variable] == "0.5"


def test_setting_them_twice_changes_nothing(monkeypatch):
    once = dict(environment(monkeypatch))
    assert dict(environment(monkeypatch)) == once
