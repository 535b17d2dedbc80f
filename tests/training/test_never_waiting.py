"""The device is never waited for on the way, and nothing that fails on the way is lost."""

from __future__ import annotations

import dataclasses
import threading

import jax
import pytest
import tiny_runs

from tddpo_jax.scoring import data_sets
from tddpo_jax.scoring.data_sets import ahead
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.training.loop import STEPS_IN_FLIGHT, STEPS_PACKED_AHEAD
from tddpo_jax.training.population import Population
from tddpo_jax.training.step import Programs
from tddpo_jax.training.step_log import StepLog

STEPS = 8
VALIDATED = {3, 4, 6, 8}

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def events(inputs, tmp_path, monkeypatch):
    """What a run does with each step, in order: packs it, starts it, reads its metrics."""
    seen = []
    program, read, packed = Programs.of, StepLog.read, Population.batches_of
    device_get = jax.device_get

    def watched_program(self, members):
        original, started = program(self, members), iter(range(STEPS))

        def update(*arguments):
            seen.append(("start", next(started)))
            return original.update(*arguments)

        return dataclasses.replace(original, update=update)

    def watched_read(self, step, *arguments):
        seen.append(("read", step))
        with monkeypatch.context() as patch:
            patch.setattr(jax, "device_get", device_get)
            return read(self, step, *arguments)

    def waiting(wait):
        def watched(*arguments):
            seen.append(("wait", threading.current_thread().name))
            return wait(*arguments)

        return watched

    def watched_packed(self, step):
        seen.append(("pack", step))
        return packed(self, step)

    monkeypatch.setattr(Programs, "of", watched_program)
    monkeypatch.setattr(StepLog, "read", watched_read)
    monkeypatch.setattr(Population, "batches_of", watched_packed)
    for name in ("block_until_ready", "device_get"):
        monkeypatch.setattr(jax, name, waiting(getattr(jax, name)))
    tiny_runs.run(inputs, tmp_path / "run")
    return seen


def of(events, *kinds):
    return [event for event in events if event[0] in kinds]


def test_metrics_are_read_a_step_late(events):
    """A step is read when the next has started; before a validation all of them are."""
    expected = []
    for step in range(STEPS):
        expected.append(("start", step))
        late = step - 1
        if late >= 0 and late + 1 not in VALIDATED:
            expected.append(("read", late))
        if step + 1 in VALIDATED:
            expected.append(("read", step))
    assert of(events, "start", "read") == expected


def test_nothing_else_waits_for_the_device(events):
    """Beside reading a step's metrics, and what validates and saves."""
    for step in set(range(STEPS - 1)) - {validated - 1 for validated in VALIDATED}:
        between = events[events.index(("start", step)) : events.index(("start", step + 1))]
        assert of(between, "wait") == []


def test_no_more_steps_are_in_flight_than_allowed(events):
    in_flight = most = 0
    for kind, _ in of(events, "start", "read"):
        in_flight += 1 if kind == "start" else -1
        most = max(most, in_flight)
    assert most == STEPS_IN_FLIGHT


def test_steps_are_packed_before_they_are_started(events):
    """In order, once each, and never further ahead than allowed: the thread was given them."""
    assert of(events, "pack") == [("pack", step) for step in range(STEPS)]
    for number, (kind, step) in enumerate(events):
        if kind == "pack":
            started = len(of(events[:number], "start"))
            assert 0 <= step - started <= STEPS_PACKED_AHEAD


def test_what_fails_in_the_background_ends_the_run(inputs, tmp_path, monkeypatch):
    packed = Population.batches_of

    def failing(self, step):
        if step == 5:
            raise RuntimeError("step 5 cannot be packed")
        return packed(self, step)

    monkeypatch.setattr(Population, "batches_of", failing)
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="step 5 cannot be packed"):
        tiny_runs.run(inputs, tmp_path / "run")
    assert threading.active_count() <= threads
    # What was done before is not lost: the same command resumes.
    assert tiny_runs.training_lines(tmp_path / "run")[-1]["step"] >= 3
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_reference_is_packed_ahead_too(inputs, tmp_path, monkeypatch):
    """Groups of 4 pairs, of 18 and of 7, in a thread of its own; the same log-probs to rounding."""
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "cache"))
    changes = {"train.max_steps": 1, "train.eval_every": None}
    tiny_runs.run(inputs, tmp_path / "whole", changes)
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(data_sets, "GROUP_EXAMPLES", 4)
    pack, packed = data_sets.pack, []

    def watched(pairs, *arguments, **named):
        packed.append((len(pairs), threading.current_thread() is threading.main_thread()))
        return pack(pairs, *arguments, **named)

    monkeypatch.setattr(data_sets, "pack", watched)
    tiny_runs.run(inputs, tmp_path / "groups", changes)
    assert packed[:7] == [*[(4, False)] * 4, (2, False), (4, False), (3, False)]
    found, expected = (tiny_runs.validation_lines(tmp_path / name) for name in ("groups", "whole"))
    for line, same in zip(found, expected, strict=True):
        assert line == pytest.approx(same, rel=1e-5, abs=3e-5)


def test_a_thread_keeps_results_ready_and_no_more():
    """Of ten items, with three ahead: when the first is taken, at most four are computed."""
    computed, waiting = [], threading.Event()

    def compute(item):
        computed.append(item)
        if item == 3:
            waiting.set()
        return item * item

    with ahead(compute, range(10), 3) as results:
        assert next(results) == 0
        assert waiting.wait(10)
        assert len(computed) == 4
        assert [0, *results] == [item * item for item in range(10)]
    with pytest.raises(ZeroDivisionError), ahead(lambda item: 1 / item, [1, 0], 3) as results:
        list(results)


def test_compiled_programs_are_kept_by_default(inputs, tmp_path, monkeypatch):
    """Those of a small model too; where and which is the user's to say."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path))
    seconds = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    try:
        monkeypatch.setenv(seconds, "7")
        jax.config.update(names[1], 7.0)
        use_compilation_cache()
        assert [getattr(jax.config, name) for name in names] == [before[names[0]], 7.0]
        monkeypatch.delenv(seconds)
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        with pytest.raises(ValueError, match=r"model\.path"):  # a run that ends soon
            tiny_runs.run(inputs, tmp_path / "run", {"model.path": "no/such/model"})
        assert [getattr(jax.config, name) for name in names] == [str(tmp_path / "xla"), 0.1]
        assert jax.config.jax_enable_compilation_cache
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
