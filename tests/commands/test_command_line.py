"""What a user types and what comes back: mistakes, warnings, exit status."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import tiny_runs
from places import ROOT
from tiny_commands import run, trained_run, training_options

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """The directory of a finished run of all weights."""
    return trained_run(inputs, tmp_path_factory.mktemp("runs") / "full")


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# ---- mistakes ------------------------------------------------------------------------------------

MISTAKES = {
    # the data
    "no such file": ("--data {folder}/none.jsonl", r"data \S+none\.jsonl: no such file"),
    "an empty file": ("--data {empty}", r"data \S+empty\.jsonl: holds no rows"),
    "a row of the wrong shape": (
        "--data {shape}",
        r"shape\.jsonl: none .* row 0 has question \(text",
    ),
    "a row that is no object": ("--data {list}", r"list\.jsonl row 0: must be an object"),
    "half a line": ("--data {torn}", r"torn\.jsonl line 2: not JSON"),
    "no usable row": ("--data {same}", r"same\.jsonl: none .* 1 x identical branches"),
    "an id beyond the vocabulary": ("--data {id}", r"row 0: 'chosen' holds the id 448"),
    "a loss of pairs on single responses": (
        "--data {single} --data.validation 0 --loss dpo",
        r"loss\.name: dpo compares two responses, but \S+single\.jsonl has one per prompt",
    ),
    "a metric of pairs on single responses": (
        "--data {single} --data.validation 0 --loss sft --train.best-metric eval_logps/rejected",
        r"train\.best_metric: .*'eval_logps/rejected' for data with one response",
    ),
    "two data sets of different kinds": (
        "--data {single} --data {chat} --data.validation 0",
        r"data\.path: a row of \S+chat\.jsonl has 2 responses, one of \S+single\.jsonl has 1 resp",
    ),
    "a data set that is named twice": (
        "--data {chat} --data {chat}",
        r"data\.path: names a data set twice",
    ),
    "a pattern that nothing matches": ("--data {folder}/*.csv", r"\*\.csv: no file matches"),
    "nesting beyond measure": ("--data {deep}", r"deep\.jsonl line 1: .* nested too deeply"),
    "validation of another kind": (
        "--data {single} --data.validation {train} --loss sft",
        r"data\.validation: a row of \S+train\.jsonl has 2 responses, one of \S+ has 1 response",
    ),
    "an unknown template": ("--data {chat} --data.template nope", r"template 'nope': no such"),
    "no such split": ("--data.validation nope", r"data\.validation: 'nope' is no file"),
    "a fraction of one": ("--data.validation 1.0", r"data\.validation: a fraction must be in"),
    "a row too short": ("--data.row-length 8", r"data\.row_length: 8 is less than the longest"),
    "a prompt without room": ("--data.max-prompt-length 256", r"data\.max_prompt_length: must be"),
    # the numbers
    "a negative tau": ("--tau -1", r"loss\.tau: must be above 0, got '-1'"),
    "a beta in words": ("--beta much", r"loss\.beta: must be a number, got 'much'"),
    "a beta that is no number": ("--beta nan", r"loss\.beta: must be a finite number, got 'nan'"),
    "one bad cell of a grid": ("--beta 0.1 0.2 -3", r"loss\.beta: .* got '-3'"),
    "no steps": ("--train.max-steps 0", r"train\.max_steps: "),
    "a seed in words": ("--seed one", r"seed: .* got 'one'"),
    # the names
    "an unknown loss": ("--loss ppo", r"loss\.name: .* got 'ppo'"),
    "a loss with another hyphen": ("--loss td-dpo", r"got 'td-dpo'; did you mean td_dpo\?"),
    "an unknown option": (
        "--train.epoch 3",
        r"unrecognized arguments: --train\.epoch 3; did you mean --train\.epochs\?",
    ),
    "an option cut short": ("--bet 3", r"arguments: --bet 3; did you mean --beta\?"),
    "an option without its group": (
        "--learning_rate 1",
        r"arguments: --learning-rate 1; did you mean --train\.learning-rate\?",
    ),
    "a name and its short form": (
        "--model x --model.path y",
        r"--model(\.path)? is given more than once; only one value can count",
    ),
    "an option without its value": ("--beta", r"--beta\S* expected at least one argument"),
    "a word too many": ("beta=3", r"unrecognized arguments: beta=3"),
    "an unknown best metric": ("--train.best-metric eval_f1", r"train\.best_metric: .*'eval_f1'"),
    "a beta of zero": ("--loss dpo --beta 0", r"loss\.beta: must be above 0 for dpo"),
    "a back-end that is not here": ("--model.attention cudnn", r"model\.attention: .*cudnn"),
    "wandb, which is not installed": ("--train.wandb", r"train\.wandb: .*not installed"),
    # the file of settings
    "an unknown key": (
        "--config {unknown_key}",
        r"train\.epoch: no such setting; did you mean train\.epochs\?",
    ),
    "a key given twice": (
        "--config {key_twice}",
        r"config \S+key_twice\.yaml: line 3: the key 'log_every' is given twice",
    ),
    "a switch in place of a number": (
        "--config {switch}",
        r"train\.log_every: must not be yes or no, got True",
    ),
    "a file that is not a mapping": (
        "--config {no_mapping}",
        r"no_mapping\.yaml: must hold a mapping",
    ),
    "a file that is no YAML": ("--config {no_yaml}", r"no_yaml\.yaml: not YAML"),
    "no such config": ("--config {folder}/none.yaml", r"config \S+none\.yaml: No such file"),
    "a group that is none": ("--config {no_group} --beta 1", r"loss: must be a group .* 'dpo'"),
    # the mesh
    "devices that are not there": (
        "--mesh.fsdp 3",
        r"mesh: .*fsdp 3.* needs 3 devices; available: 1",
    ),
    "two open axes": ("--mesh.data -1", r"mesh\.fsdp: only one axis may be -1"),
    # the model
    "no such folder": ("--model {folder}/none", r"model\.path: '\S+none' is neither a"),
    "a file": ("--model {train}", r"model\.path: \S+ is a file"),
    "an empty folder": ("--model {nothing}", r"model\.path: .*nothing holds no config\.json"),
    "another architecture": ("--model {gpt2}", r"config\.json: model_type = 'gpt2'"),
    "other weights than its config": ("--model {wide}", r"has shape \[448, 64\], but config\.json"),
    "half of the weights": ("--model {truncated}", r"not a whole safetensors file"),
    "no tokenizer for texts": ("--model {mute} --data {chat}", r"holds texts, .* no tokenizer"),
    "a tokenizer without its parts": (
        "--model {partless} --data {chat}",
        r"tokenizer \S+partless: damaged or incomplete",
    ),
    "a config without heads": ("--model {headless}", r"num_attention_heads must be .* got 0"),
    "layers that NF4 cannot block": (
        "--model {narrow} --train.mode qlora",
        r"train\.mode qlora: \w+ has 32 inputs",
    ),
}


@pytest.fixture(scope="module")
def files(inputs, tmp_path_factory):
    """Paths by name: what is wrong with them is what the name says."""
    folder = tmp_path_factory.mktemp("wrong")
    good = json.loads(inputs.train.read_text().splitlines()[0])
    single = {"prompt_ids": good["prompt_ids"], "response_ids": good["chosen_ids"]}
    turn = [{"role": "user", "content": "hello"}]
    answers = ([*turn, {"role": "assistant", "content": text}] for text in ("the ball", "a river"))
    rows = {
        "empty": "",
        "shape": '{"question": "?"}\n',
        "deep": "[" * 99999,
        "list": "[1, 2]\n",
        "torn": json.dumps(good) + '\n{"prompt_ids": [1,\n',
        "same": json.dumps({**good, "rejected_ids": good["chosen_ids"]}),
        "id": json.dumps({**good, "chosen_ids": [448, 2]}),
        "single": json.dumps(single),
        "chat": json.dumps(dict(zip(("chosen", "rejected"), answers, strict=True))),
    }
    settings = {
        "unknown_key": "train: {epoch: 3}",
        "no_mapping": "- train",
        "no_yaml": "train: [",
        "key_twice": "train:\n  log_every: 3\n  log_every: 5\n",
        "switch": "train: {log_every: on}",
        "no_group": "loss: dpo",
    }
    paths = {"folder": folder, "train": inputs.train, "nothing": folder / "nothing"}
    paths["nothing"].mkdir()
    for suffix, contents in ((".jsonl", rows), (".yaml", settings)):
        for name, content in contents.items():
            paths[name] = folder / f"{name}{suffix}"
            paths[name].write_text(content)
    changed = {
        "gpt2": {"model_type": "gpt2"},
        "wide": {"hidden_size": 128},
        "headless": {"num_attention_heads": 0},
    }
    for name in (*changed, "truncated", "mute", "partless"):
        paths[name] = folder / name
        shutil.copytree(inputs.model, paths[name])
        config = json.loads((inputs.model / "config.json").read_text())
        (paths[name] / "config.json").write_text(json.dumps({**config, **changed.get(name, {})}))
    weights = paths["truncated"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (paths["partless"] / "tokenizer.json").write_text("{}")
    for file in paths["mute"].glob("tokenizer*"):
        file.unlink()
    small = {"hidden_size": 32, "head_dim": 8, "intermediate_size": 32}
    narrow = tiny_models.hugging_face(**{**tiny_runs.SHAPE, **small})
    paths["narrow"] = tiny_models.save(folder / "narrow", narrow)
    return paths


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(name, inputs, files, tmp_path, capsys):
    words, message = MISTAKES[name]
    given = [word.format(**files) for word in words.split()]
    output = tmp_path / "output"
    data = None
    if "--data" in given:
        place = given.index("--data")
        _, data, *rest = given[place:]
        given = given[:place] + rest
    options = training_options(inputs, output, data=data)
    status = run("train", *options, "--data.row-length", 128, *given)
    errors = capsys.readouterr().err
    assert (status, errors.count("\n"), output.exists()) == (2, 1, False), errors
    assert re.search(rf"^error: .*{message}", errors)


def test_outputs_that_are_not_ours_are_refused(inputs, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    before = tiny_runs.times(tmp_path), tiny_runs.times(trained)
    for output, several, message in (
        (Path("/proc/run"), (), "/proc/run: cannot be made: No such file"),  # whoever asks
        (tmp_path / ("x" * 300), (0.1, 0.2), "File name too long"),
        (tmp_path / "file", (), "is not a writable directory"),
        (tmp_path / "file", (0.1, 0.2), "is not a writable directory"),
        (tmp_path / "file" / "below", (), "is not a writable directory"),
        (tmp_path / "folder", (), "does not hold a run"),
        (tmp_path / "folder", (0.1, 0.2), "does not hold a grid"),
        (trained, (), "loss.beta is 0.05, asked for 0.3"),
        (trained, (0.1, 0.2), "does not hold a grid"),
    ):
        options = training_options(inputs, output, steps=2)
        assert run("train", *options, "--beta", *(several or (0.3,))) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: output: ")
        assert errors.count("\n") == 1
        assert message in errors
    assert (tiny_runs.times(tmp_path), tiny_runs.times(trained)) == before


VERB_MISTAKES = {
    "nothing given": ("logps", "", r"required: --model, --data, --output"),
    "an unknown option": ("logps", "{all} --beta 3", r"unrecognized arguments: --beta 3"),
    "no such data": ("logps", "{all} --data {folder}/none.jsonl", r"none\.jsonl: no such file"),
    "an empty file": ("logps", "{all} --data {empty}", r"empty\.jsonl: holds no rows"),
    "two data sets": (
        "logps",
        "{all} --data {chat} --data {id}",
        r"data\.path: .* one data set",
    ),
    "a split of a file": (
        "logps",
        "{all} --data {chat} --data.split x",
        r"data\.split: \S+ is a",
    ),
    "columns that are no pairs": (
        "logps",
        "{all} --data {chat} --data.columns x",
        r"data\.columns: must be pairs such as",
    ),
    "no such model": ("logps", "{all} --model {folder}/none", r"model\.path: '\S+none' is neither"),
    "an unknown template": ("logps", "{all} --data {chat} --template nope", r"template 'nope'"),
    "an id beyond the vocabulary": ("logps", "{all} --data {id}", r"id\.jsonl row 0: .* id 448"),
    "a folder to write to": ("logps", "{all} --output {folder}", r"output: \S+ is a directory"),
    "a place where no folder can be": (
        "export",
        "--run {run} --output /proc/x/y",
        r"output: /proc/x: cannot be made: No such",
    ),
    "a place below a file": ("logps", "{all} --output {train}/x", r"output: .* is not a writable"),
    "no such run": ("export", "--run runs/none --output {new}", r"run: runs/none: there is no"),
    "no run": ("export", "--run {nothing} --output {new}", r"model\.path: .* no config\.json"),
    "no adapters": ("export", "--run {run} --output {new} --adapter", r"\S+ has no adapters"),
    "an output that exists": ("export", "--run {run} --output {nothing}", r"output: \S+ exists"),
}


@pytest.mark.parametrize("name", VERB_MISTAKES)
def test_a_mistake_of_another_verb_is_one_line_too(name, inputs, files, trained, tmp_path, capsys):
    verb, words, message = VERB_MISTAKES[name]
    new = tmp_path / "new"
    data = "" if "--data" in words else f"--data {inputs.train}"
    whole = f"--model {inputs.model} {data} --output {new}"
    given = words.format(**files, all=whole, new=new, run=trained).split()
    assert run(verb, *given) == 2
    printed = capsys.readouterr()
    assert re.search(rf"^error: .*{message}", printed.err)
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_process_tells_a_mistake_in_one_line(inputs, tmp_path):
    output = tmp_path / "output"
    options = training_options(inputs, output, data=tmp_path / "none.jsonl")
    ended = python("run.py", *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: data {tmp_path / 'none.jsonl'}: no such file\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.py", "--no-such-option"], "error: unrecognized arguments: --no-such-option\n"),
        (["-m", "tddpo_jax"], "error: name a verb; `tddpo --help` lists them\n"),
        (["-m", "tddpo_jax", "trian"], "error: verb 'trian': no such verb; did you mean train?\n"),
    ],
)
def test_a_mistake_in_the_words_is_told_at_once(arguments, message):
    ended = python("-X", "importtime", *arguments)
    *imports, last = ended.stderr.splitlines(keepends=True)
    assert ended.returncode == 2
    assert last.startswith(message)
    assert not any(re.search(r"\bjax$", line) for line in imports)  # no wait for JAX to start


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--beta abc", "loss.beta: must be a number, got 'abc'"),
        ("--beta 0.1 0.2 -3", "loss.beta: must be at least 0, got '-3'"),
        ("--loss dpoo", "; did you mean dpo?"),
        ("--seed -1", "seed: must be at least 0, got '-1'"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_wrong_value_is_told_before_jax_is_imported(verb, words, message, tmp_path, monkeypatch):
    for package in ("jax", "transformers"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not to be imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = python("-m", "tddpo_jax", verb, *words.split())
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.endswith(f"{message}\n")


# ---- warnings ------------------------------------------------------------------------------------

# Options, and the warnings that they give. A run takes seconds, so one run has several.
WARNINGS = {
    "--loss.label-smoothing 0.1 --lora.rank 4 --train.eval-every 50": [
        "loss.label_smoothing has no effect with loss.name=td_dpo",
        "lora.rank has no effect with train.mode=full",
        "train.eval_every is 50, but the run ends at step 1;",
    ],
    "--loss dpo --tau 2": ["loss.tau has no effect with loss.name=dpo"],
    "": [],
}


def test_settings_that_change_nothing_are_told(inputs, tmp_path, capsys):
    for number, (words, messages) in enumerate(WARNINGS.items()):
        options = training_options(inputs, tmp_path / str(number))
        assert run("train", *options, *words.split()) == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
        assert len(told) == len(messages)
        for message in messages:
            assert any(line.startswith(f"warning: {message}") for line in told), message
