"""Several processes as one job: real processes over gloo, against one process.

The oracle is this process with as many devices. Sums over devices are taken in another order
between processes than within one, so losses agree to float32's rounding; with the same processes
they agree to the last bit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_models
import tiny_runs
import yaml
from places import HELPERS, ROOT
from tiny_interruptions import assert_same_run, before_save, killed_run

from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import HostsConfig
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system import agreement, hosts
from tddpo_jax.training import checkpoints

DEVICES_EACH = 2
# Long enough to be killed on the way, with a checkpoint after 3, 4, 6 and 8 steps.
LINES_BEFORE_THE_KILL = 8


@pytest.fixture(autouse=True, scope="module")
def reference_of_their_own(tmp_path_factory):
    """Theirs is rounded otherwise than one process rounds, and other tests must not find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDDPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def in_vain(runs):
    """Two hosts that wait for others; with the first run, for the runtime takes its time."""
    output = runs / "in_vain"
    command = ["run.py", "--hosts.count", "2", "--hosts.meet-within", "1", "--output", str(output)]
    processes = [
        process([*command, "--hosts.coordinator", free_address(), "--hosts.index", index])
        for index in "01"
    ]
    yield output, processes
    if not processes[0].stdout.closed:  # their test was left out
        ended(processes)


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(inputs, output, count, changes=None, devices=DEVICES_EACH):
    """The processes of a job; their settings, but for the hosts, are those of `tiny_runs`."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tiny_runs.settings(inputs, output, changes)))
    command = ["run.py", "--config", str(file), "--hosts.count", str(count)]
    command += ["--hosts.coordinator", free_address(), "--hosts.lost-after", "10"]
    return [
        process([*command, "--hosts.index", str(index)], devices=devices) for index in range(count)
    ]


def process(command, folder=ROOT, devices=DEVICES_EACH):
    """A host with devices of its own."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
        # Each process compiles on its own, and these programs run for moments.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes, seconds=300):
    """(status, output, errors) of every process."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]


def run_on_hosts(inputs, output, count, changes=None):
    """What each of the processes printed, after all ended well."""
    results = ended(start(inputs, output, count, changes))
    assert [status for status, _, _ in results] == [0] * count, results
    return [output for _, output, _ in results]


def run_here(inputs, output, devices, changes=None):
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, devices)
        tiny_runs.run(inputs, output, changes)
    return output


def assert_same_losses(directory, expected):
    """Every loss of training and validation, within 1e-5 of its size.

    One near 0 within 1e-7: log-probs of a hundred nats are rounded to 8e-6, four make a margin, and
    a loss of 1e-3 changes by 1e-3 of what its margin does.
    """
    found, wanted = (tiny_runs.lines(run) for run in (directory, expected))
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for line, other in zip(found, wanted, strict=True):
        name = "loss" if "loss" in line else "eval_loss"
        np.testing.assert_allclose(
            line[name], other[name], rtol=1e-5, atol=1e-7, err_msg=str(line["step"])
        )


@pytest.fixture(scope="module")
def by_two(inputs, runs, in_vain):
    """The directory of a run of two processes, and what they printed."""
    return runs / "by_two", run_on_hosts(inputs, runs / "by_two", 2)


@pytest.fixture(scope="module")
def by_one(inputs, runs):
    """The directory of a run of one process, killed and resumed; `by_four` is as it was killed."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 2 * DEVICES_EACH)
        killed_run(inputs, runs / "by_one", patch, before_save(4))
        shutil.copytree(runs / "by_one", runs / "by_four")
        tiny_runs.run(inputs, runs / "by_one")
    return runs / "by_one"


def wait_for_lines(process, output):
    """Until a run has its first checkpoints, or is over."""
    metrics = output / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text().count("\n") >= LINES_BEFORE_THE_KILL
    ):
        time.sleep(0.002)


def killed_on_its_way(inputs, output, count, victim):
    """Kills one process of a run; (status, output, errors) of all, within a minute."""
    processes = start(inputs, output, count)
    wait_for_lines(processes[0], output)
    processes[victim].kill()
    results = ended(processes, seconds=60)
    assert results[victim][0] == -signal.SIGKILL
    assert not (output / "summary.json").exists()
    return results


@pytest.fixture(scope="module")
def killed(inputs, runs):
    """A run whose second process was killed on its way: its directory, and the first's end."""
    output = runs / "killed"
    results = killed_on_its_way(inputs, output, 2, victim=1)
    shutil.copytree(output, runs / "killed_too")
    return output, results[0]


# ---- the same as one process ---------------------------------------------------------------------


def test_two_processes_train_as_one(by_two, by_one):
    assert_same_losses(by_two[0], by_one)


def test_one_process_speaks_and_all_are_counted(by_two):
    directory, (first, second) = by_two
    assert "hosts    2, joined by 127.0.0.1" in first
    assert "2 of 4 devices" in first
    assert "finished after 8 steps" in first
    # Gloo's threads print into each other's lines.
    assert [line for line in second.splitlines() if "peer ranks" not in line] == []
    facts = json.loads((directory / "run.json").read_text())
    assert (facts["hosts"], facts["device"]["count"]) == (2, 4)
    assert len(list((directory / "tensorboard").iterdir())) == 1
    assert not list(directory.rglob("*.partial"))


def test_a_population_on_two_hosts(inputs, runs):
    """Each of them saves both members' states, one after another; one process does the same.

    Saves in the background would meet each other: some runs fail then, and some wait for ever.
    Betas so small that no loss comes near 0, where rounding in a margin would be seen.
    """
    lora = {"train.mode": "lora", "lora.rank": 2, "train.population": 2}
    lora |= {"train.epochs": 1, "train.eval_every": 1}
    lora |= {"mesh.data": 2, "mesh.fsdp": 2, "loss.name": "dpo", "loss.beta": [0.01, 0.05]}
    processes = start(inputs, runs / "members", 2, lora)
    processes += start(inputs, runs / "members_alone", 1, lora, devices=2 * DEVICES_EACH)
    results = ended(processes, seconds=120)
    assert [status for status, _, _ in results] == [0, 0, 0], results
    for beta in lora["loss.beta"]:
        cell = f"dpo-beta{beta}-seed0"
        assert_same_losses(runs / "members" / cell, runs / "members_alone" / cell)


def test_several_hosts_save_in_the_foreground(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        checkpoints.ocp, "CheckpointManager", lambda _, options: seen.append(options)
    )
    for several in (True, False):
        monkeypatch.setattr(checkpoints, "several", lambda several=several: several)
        checkpoints.Checkpoints(tmp_path)
    assert [options.enable_async_checkpointing for options in seen] == [False, True]


# ---- a lost host ---------------------------------------------------------------------------------


def test_a_lost_host_ends_the_others_with_one_line(killed):
    assert_told(killed[1], "host 0 of 2")


def assert_told(result, whose):
    status, _, errors = result
    assert status == 1, errors
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: {whose}: another host was lost")
    assert "the same command resumes" in last


def test_the_first_host_may_be_the_lost_one(inputs, runs):
    """It holds the service by which hosts find each other, and writes; the other ends as well."""
    results = killed_on_its_way(inputs, runs / "headless", 2, victim=0)
    assert_told(results[1], "host 1 of 2")


def test_a_job_that_is_asked_to_end_ends(inputs, runs):
    """SIGTERM, as of scancel: JAX's own service for several hosts would wait for a later step."""
    (host,) = start(inputs, runs / "terminated", 1)
    wait_for_lines(host, runs / "terminated")
    host.terminate()
    ((status, _, errors),) = ended([host], seconds=30)
    assert status == -signal.SIGTERM, errors
    assert not (runs / "terminated" / "summary.json").exists()


def test_the_restarted_job_is_an_uninterrupted_one(killed, by_two, inputs):
    outputs = run_on_hosts(inputs, killed[0], 2)
    assert "resuming after step" in outputs[0]
    assert_same_run(killed[0], by_two[0])


def test_a_restart_on_another_number_of_hosts_and_devices(killed, by_two, inputs, runs):
    """What two processes of two devices began, one process of eight ends."""
    assert_same_losses(run_here(inputs, runs / "killed_too", 8), by_two[0])
    facts = json.loads((runs / "killed_too" / "run.json").read_text())
    assert (facts["hosts"], facts["device"]["count"]) == (1, 8)


def test_four_processes_end_what_one_began(by_one, inputs, runs):
    """They have three of the eight steps from it, and train the rest as one process does."""
    outputs = run_on_hosts(inputs, runs / "by_four", 4)
    assert "resuming after step 3" in outputs[0]
    assert_same_losses(runs / "by_four", by_one)
    for name, tensor in tiny_runs.weights(runs / "by_four").items():
        expected = tiny_runs.weights(by_one)[name]
        np.testing.assert_allclose(tensor, expected, atol=1e-6, err_msg=name)


def test_devices_and_hosts_are_no_part_of_what_a_run_is(tmp_path):
    began = resolve({"mesh": {"fsdp": 8}})
    text = yaml.safe_dump(began.model_dump(mode="json", exclude={"output", "hosts"}))
    (tmp_path / "config.yaml").write_text(text)
    elsewhere = {"coordinator": "a:1", "count": 2, "index": 1}
    RunDirectory(tmp_path, resolve({"mesh": {"fsdp": 4}, "hosts": elsewhere}))
    with pytest.raises(ValueError, match=r"configuration: seed is 0, asked for 1$"):
        RunDirectory(tmp_path, resolve({"mesh": {"fsdp": 4}, "seed": 1}))


# ---- hosts that do not go together ---------------------------------------------------------------


def test_a_host_with_other_data_is_told(inputs, tmp_path):
    """A relative path is not the same everywhere: the second host finds other pairs, as many."""
    lines = inputs.train.read_text().splitlines(keepends=True)
    for name, text in (("first", lines), ("second", [*lines[1:], lines[0]])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pairs.jsonl").write_text("".join(text))
    command = [str(ROOT / "run.py"), "--model", str(inputs.model), "--data", "pairs.jsonl"]
    command += ["--data.validation", "0", "--output", str(tmp_path / "run")]
    command += ["--hosts.coordinator", free_address(), "--hosts.count", "2", "--hosts.index"]
    processes = [
        process([*command, str(index)], tmp_path / folder)
        for index, folder in enumerate(("first", "second"))
    ]
    first, second = ended(processes, seconds=60)
    assert second[0] == 2, second
    last = "error: data.path: host 1 of 2: its data differ from the first host's"
    assert second[2].splitlines()[-1] == last
    assert_told(first, "host 0 of 2")


def test_what_differs_is_an_error_where_it_differs(monkeypatch):
    monkeypatch.setattr(agreement, "several", lambda: True)
    monkeypatch.setattr(agreement, "agree", lambda compute: compute() and "the first host's")
    agreement.check_alike("model.path", "another model", lambda: "the first host's")
    with pytest.raises(ValueError, match=r"model\.path: host 0 of 1: another model"):
        agreement.check_alike("model.path", "another model", lambda: "mine")


def test_hosts_that_do_not_meet_end(in_vain):
    output, processes = in_vain
    for status, _, errors in ended(processes, seconds=60):
        assert status == 1
        problem = "error: hosts: the processes did not meet within 1 s"
        assert errors.splitlines()[-1].startswith(problem)
    assert not output.exists()


def test_an_address_that_is_none_is_told():
    with pytest.raises(ValueError, match=r"hosts\.coordinator: no\.such\.host:1: "):
        hosts.join(HostsConfig(coordinator="no.such.host:1", count=2, index=1))


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"hosts\.coordinator: {address}: Address already in"):
            hosts.join(HostsConfig(coordinator=address, count=2, index=0))


# ---- one's own part ------------------------------------------------------------------------------


def test_a_host_reads_its_part_of_a_checkpoint(inputs):
    """Two hosts share every matrix by width: a half each; norms are whole on both."""
    command = [str(HELPERS / "host_reads.py"), str(inputs.model), free_address(), "2"]
    results = ended([process([*command, str(index)]) for index in range(2)])
    sizes = {name: array.size for name, array in tiny_runs.load_file(weights_of(inputs)).items()}
    expected = {
        name: size if name.endswith("norm.weight") else size // 2 for name, size in sizes.items()
    }
    for status, said, errors in results:
        assert status == 0, errors
        assert json.loads(said.splitlines()[-1]) == expected


def weights_of(inputs):
    (file,) = inputs.model.glob("*.safetensors")
    return file


def test_rows_of_other_hosts_are_not_filled_in():
    """Of them only the numbers of the pairs are known, so that their results can be told apart."""
    pairs = tiny_models.random_examples([(5, 4, 3)] * 6)
    shapes = (Shape(4, 24, 16, 4),)
    (whole,) = pack(pairs, shapes)
    (part,) = pack(pairs, shapes, here=lambda rows: {1, 2})
    np.testing.assert_array_equal(part.example, whole.example)
    for mine, all_rows in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(mine[1:3], all_rows[1:3])
    assert not part.tokens[0].any()
    assert not part.weight[[0, 3]].any()
    assert whole.tokens[0].any()


# ---- which processes are a job -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "settings", "launcher"),
    [
        ({}, {}, None),
        ({"SLURM_NTASKS": "4"}, {}, None),  # the batch script itself, or an interactive shell
        ({"SLURM_STEP_NUM_TASKS": "1"}, {}, None),
        ({"SLURM_STEP_NUM_TASKS": "2"}, {}, "slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, {}, "ompi"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, {"launcher": "none"}, None),
        ({}, {"launcher": "k8s"}, "k8s"),
    ],
)
def test_a_launcher_is_found_by_what_it_started(environment, settings, launcher, monkeypatch):
    for variable in hosts.TASKS.values():
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert hosts._launcher(HostsConfig(**settings)) == launcher


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"coordinator": "a:1"}, r"hosts\.count: required when"),
        ({"count": 2, "index": 0}, r"hosts\.coordinator: required when"),
        (
            {"coordinator": "a:1", "count": 2, "index": 2},
            r"hosts\.index: must be between 0 and 1, got 2",
        ),
        ({"coordinator": "a", "count": 1, "index": 0}, r"hosts\.coordinator: must be address:port"),
        ({"coordinator": "a:99999", "count": 1, "index": 0}, r"address:port, got 'a:99999'"),
        ({"launcher": "pbs"}, r"hosts\.launcher"),
    ],
)
def test_mistakes_are_named(settings, problem):
    with pytest.raises(ValueError, match=problem):
        resolve({"hosts": settings})


def test_a_launcher_that_is_not_there_is_told(tmp_path):
    """In a process of its own: a failed start leaves JAX half started."""
    command = [sys.executable, "run.py", "--hosts.launcher", "slurm", "--output", tmp_path / "run"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: hosts.launcher: JAX cannot join")


def test_alone_everything_is_agreed():
    assert agreement.agree(lambda: {"a": 1}) == {"a": 1}
    assert agreement.first_before_others(lambda: 3) == 3
    assert agreement.is_first()
    with pytest.raises(ValueError, match="wrong"):
        agreement.agree(lambda: int("wrong"))
