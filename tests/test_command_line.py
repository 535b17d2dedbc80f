"""What a user types and what comes back: options, mistakes, warnings, exit status, the verbs."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
import yaml
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tddpo_jax.__main__ import COMMANDS
from tddpo_jax.command_line import Parser, add_settings, run_command, settings_of
from tddpo_jax.config import Config, get

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("one_device")


def run(verb, *arguments):
    """The exit status of a command, run in this process."""
    try:
        return run_command(COMMANDS[verb], [str(argument) for argument in arguments])
    except SystemExit as exit:  # argparse's way to end
        return exit.code


def training_options(inputs, output, steps=1):
    return (
        *("--model", inputs.model, "--data", inputs.train, "--data.row-length", 64),
        *("--data.validation", inputs.validation, "--train.batch-pairs", 5),
        *("--train.learning-rate", 1e-3, "--train.max-steps", steps, "--output", output),
        # Not the defaults, for programs that other tests have compiled.
        *("--model.remat", "none", "--train.adam-eps", 1e-2),
    )


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# ---- options -------------------------------------------------------------------------------------


def parsed(*arguments):
    parser = Parser()
    add_settings(parser)
    return settings_of(parser.parse_args([str(argument) for argument in arguments]))


def settings_in(section, prefix=""):
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from settings_in(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def test_help_lists_every_setting_with_its_default(capsys):
    assert run("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in settings_in(Config):
        assert re.search(rf"--{re.escape(name).replace('_', '-')}\b", text), name
        assert f"(default {field.default})" in text, name
    for short in ("--loss", "--beta", "--tau", "--model", "--data", "--seed", "--output"):
        assert f"{short} " in text or f"{short}," in text


def test_options_are_short_or_dotted():
    short = parsed("--model", "m", "--data", "d", "--loss", "dpo", "--beta", "0.1", "--tau", "2")
    dotted = parsed(
        *("--model.path", "m", "--data.path", "d", "--loss.name", "dpo"),
        *("--loss.beta", "0.1", "--loss.tau", "2"),
    )
    assert short == dotted
    assert get(short, "loss.beta") == "0.1"


def test_several_values_are_an_axis_and_one_is_not():
    settings = parsed("--model", "m", "--beta", "0.1", "0.2", "--seed", "3", "--tau", "1")
    assert get(settings, "loss.beta") == ["0.1", "0.2"]
    assert (get(settings, "seed"), get(settings, "loss.tau")) == ("3", "1")


def test_a_switch_needs_no_value():
    assert get(parsed("--model", "m", "--train.population"), "train.population") is True
    assert get(parsed("--model", "m", "--train.population", "no"), "train.population") == "no"


def test_options_change_what_the_file_says(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("loss: {beta: 0.5, tau: 2.0}\ntrain: {epochs: 7}\n")
    settings = parsed("--config", file, "--beta", "0.1", "--train.max-steps", "4")
    assert settings == {
        "loss": {"beta": "0.1", "tau": 2.0},
        "train": {"epochs": 7, "max_steps": "4"},
    }


def test_without_config_model_and_data_the_embedded_default_is_meant():
    embedded = yaml.safe_load((REPOSITORY / "configs" / "embedded.yaml").read_text())
    assert parsed() == embedded
    assert parsed("--data", "d.jsonl") == {"data": {"path": "d.jsonl"}}


# ---- mistakes ------------------------------------------------------------------------------------

MISTAKES = {
    # the data
    "no such file": ("--data {folder}/none.jsonl", r"data \S+none\.jsonl: no such file"),
    "an empty file": ("--data {empty}", r"data \S+empty\.jsonl: holds no rows"),
    "a row of the wrong shape": ("--data {shape}", r"shape\.jsonl row 1: lacks the column"),
    "a row that is no object": ("--data {list}", r"list\.jsonl row 0: must be an object"),
    "half a line": ("--data {torn}", r"torn\.jsonl line 2: not JSON"),
    "no usable row": ("--data {same}", r"same\.jsonl: none .* 1 x identical branches"),
    "an id beyond the vocabulary": ("--data {id}", r"row 0: 'chosen' holds the id 448"),
    "an unknown template": ("--data {chat} --data.template nope", r"template 'nope': no such"),
    "no such split": ("--data.validation nope", r"data\.validation: 'nope' is no file"),
    "a fraction of one": ("--data.validation 1.0", r"data\.validation: a fraction must be in"),
    "a row too short": ("--data.row-length 8", r"data\.row_length: 8 is less than the longest"),
    "a prompt without room": ("--data.max-prompt-length 256", r"data\.max_prompt_length: must be"),
    # the numbers
    "a negative tau": ("--tau -1", r"loss\.tau: .* greater than 0, got '-1'"),
    "a beta in words": ("--beta much", r"loss\.beta: .*valid number.* got 'much'"),
    "a beta that is no number": ("--beta nan", r"loss\.beta: .*finite.* got 'nan'"),
    "one bad cell of a grid": ("--beta 0.1 0.2 -3", r"loss\.beta: .* got '-3'"),
    "no steps": ("--train.max-steps 0", r"train\.max_steps: "),
    "a seed in words": ("--seed one", r"seed: .* got 'one'"),
    # the names
    "an unknown loss": ("--loss ppo", r"loss\.name: .* got 'ppo'"),
    "an unknown option": ("--train.epoch 3", r"unrecognized arguments: --train\.epoch 3"),
    "an option cut short": ("--bet 3", r"unrecognized arguments: --bet 3"),
    "an option without its value": ("--beta", r"--beta\S* expected at least one argument"),
    "a word too many": ("beta=3", r"unrecognized arguments: beta=3"),
    "an unknown best metric": ("--train.best-metric eval_f1", r"train\.best_metric: .*'eval_f1'"),
    "a beta of zero": ("--loss dpo --beta 0", r"loss\.beta: must be above 0 for dpo"),
    "a back-end that is not here": ("--model.attention cudnn", r"model\.attention: .*cudnn"),
    "wandb, which is not installed": ("--train.wandb", r"train\.wandb: .*not installed"),
    # the file of settings
    "an unknown key": ("--config {unknown_key}", r"train\.epoch: no such setting"),
    "a file that is no mapping": (
        "--config {no_mapping}",
        r"no_mapping\.yaml: must hold a mapping",
    ),
    "a file that is no YAML": ("--config {no_yaml}", r"no_yaml\.yaml: not YAML"),
    "no such config": ("--config {folder}/none.yaml", r"config \S+none\.yaml: No such file"),
    "a group that is none": ("--config {no_group} --beta 1", r"loss: must be a group .* 'dpo'"),
    # the mesh
    "devices that are not there": ("--mesh.fsdp 3", r"mesh: .*fsdp 3.* does not divide 1 devices"),
    "two open axes": ("--mesh.data -1", r"mesh\.fsdp: only one axis may be -1"),
    # the model
    "no such folder": ("--model {folder}/none", r"model\.path: '\S+none' is no folder"),
    "a file": ("--model {train}", r"model\.path: \S+ is a file"),
    "an empty folder": ("--model {nothing}", r"model\.path: .*nothing holds no config\.json"),
    "another architecture": ("--model {mistral}", r"config\.json: model_type = 'mistral'"),
    "other weights than its config": ("--model {wide}", r"has shape \[448, 64\], config.json says"),
    "half of the weights": ("--model {truncated}", r"not a whole safetensors file"),
    "no tokenizer for texts": ("--model {mute} --data {chat}", r"holds texts, .* no tokenizer"),
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
    turn = [{"role": "user", "content": "hello"}]
    answers = ([*turn, {"role": "assistant", "content": text}] for text in ("the ball", "a river"))
    rows = {
        "empty": "",
        "shape": json.dumps(good) + '\n{"question": "?"}\n',
        "list": "[1, 2]\n",
        "torn": json.dumps(good) + '\n{"prompt_ids": [1,\n',
        "same": json.dumps({**good, "rejected_ids": good["chosen_ids"]}),
        "id": json.dumps({**good, "chosen_ids": [448, 2]}),
        "chat": json.dumps(dict(zip(("chosen", "rejected"), answers, strict=True))),
    }
    settings = {
        "unknown_key": "train: {epoch: 3}",
        "no_mapping": "- train",
        "no_yaml": "train: [",
        "no_group": "loss: dpo",
    }
    paths = {"folder": folder, "train": inputs.train, "nothing": folder / "nothing"}
    paths["nothing"].mkdir()
    for suffix, contents in ((".jsonl", rows), (".yaml", settings)):
        for name, content in contents.items():
            paths[name] = folder / f"{name}{suffix}"
            paths[name].write_text(content)
    changed = {"mistral": {"model_type": "mistral"}, "wide": {"hidden_size": 128}}
    for name in (*changed, "truncated", "mute"):
        paths[name] = folder / name
        shutil.copytree(inputs.model, paths[name])
        config = json.loads((inputs.model / "config.json").read_text())
        (paths[name] / "config.json").write_text(json.dumps({**config, **changed.get(name, {})}))
    weights = paths["truncated"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for file in paths["mute"].glob("tokenizer*"):
        file.unlink()
    small = {"hidden_size": 32, "head_dim": 8, "intermediate_size": 32}
    narrow = tiny_runs.tiny.hugging_face(**{**tiny_runs.SHAPE, **small})
    paths["narrow"] = tiny_runs.tiny.save(folder / "narrow", narrow)
    return paths


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(name, inputs, files, tmp_path, capsys):
    words, message = MISTAKES[name]
    given = [word.format(**files) for word in words.split()]
    output = tmp_path / "output"
    status = run("train", *training_options(inputs, output), "--data.row-length", 128, *given)
    errors = capsys.readouterr().err
    assert (status, errors.count("\n"), output.exists()) == (2, 1, False), errors
    assert re.search(rf"^error: .*{message}", errors)


def test_outputs_that_are_not_ours_are_refused(inputs, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    before = tiny_runs.times(tmp_path), tiny_runs.times(trained)
    for output, several, message in (
        (tmp_path / "file", (), "is no directory"),
        (tmp_path / "file", (0.1, 0.2), "is no directory"),
        (tmp_path / "file" / "below", (), "is no directory"),
        (tmp_path / "folder", (), "holds no run"),
        (tmp_path / "folder", (0.1, 0.2), "holds no grid"),
        (trained, (), "loss.beta is 0.05, asked for 0.3"),
        (trained, (0.1, 0.2), "holds no grid"),
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
    "no such model": ("logps", "{all} --model {folder}/none", r"model\.path: '\S+none' is no"),
    "an unknown template": ("logps", "{all} --data {chat} --template nope", r"template 'nope'"),
    "an id beyond the vocabulary": ("logps", "{all} --data {id}", r"id\.jsonl row 0: .* id 448"),
    "a folder to write to": ("logps", "{all} --output {folder}", r"output: \S+ is a directory"),
    "a place below a file": ("logps", "{all} --output {train}/x", r"output: .* is no directory"),
    "no such run": ("export", "--run runs/none --output {new}", r"run: runs/none: no such"),
    "no run": ("export", "--run {nothing} --output {new}", r"model\.path: .* no config\.json"),
    "no adapters": ("export", "--run {run} --output {new} --adapter", r"trained no adapters"),
    "an output that exists": ("export", "--run {run} --output {nothing}", r"output: \S+ exists"),
}


@pytest.mark.parametrize("name", VERB_MISTAKES)
def test_a_mistake_of_another_verb_is_one_line_too(name, inputs, files, trained, tmp_path, capsys):
    verb, words, message = VERB_MISTAKES[name]
    new = tmp_path / "new"
    whole = f"--model {inputs.model} --data {inputs.train} --output {new}"
    given = words.format(**files, all=whole, new=new, run=trained).split()
    assert run(verb, *given) == 2
    printed = capsys.readouterr()
    assert re.search(rf"^error: .*{message}", printed.err)
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_process_tells_a_mistake_in_one_line(inputs, tmp_path):
    output = tmp_path / "output"
    options = (*training_options(inputs, output), "--data", tmp_path / "none.jsonl")
    ended = python("run.py", *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: data {tmp_path / 'none.jsonl'}: no such file\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.py", "--no-such-option"], "error: unrecognized arguments: --no-such-option\n"),
        (["-m", "tddpo_jax"], "error: the following arguments are required: verb\n"),
        (["-m", "tddpo_jax", "trian"], "error: argument verb: invalid choice: 'trian' "),
    ],
)
def test_a_mistake_in_the_words_is_told_at_once(arguments, message):
    ended = python("-X", "importtime", *arguments)
    *imports, last = ended.stderr.splitlines(keepends=True)
    assert ended.returncode == 2
    assert last.startswith(message)
    assert not any(re.search(r"\bjax$", line) for line in imports)  # no wait for JAX to start


def test_an_error_that_is_not_the_users_is_no_mistake_of_theirs():
    """A ValueError out of a library keeps its traceback; a bug must not look like bad input."""

    def command(_):
        return int(np.zeros(3).reshape(2, 2)[0, 0])

    with pytest.raises(ValueError, match="reshape"):
        run_command(command, [])


def test_an_interrupted_command_says_how_to_go_on(capsys):
    def command(_):
        raise KeyboardInterrupt

    assert run_command(command, []) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes\n"


# ---- warnings ------------------------------------------------------------------------------------

WARNINGS = {
    "smoothing with td_dpo": ("--loss.label-smoothing 0.1", "loss.label_smoothing is set"),
    "tau with dpo": ("--loss dpo --tau 2", "loss.tau is set"),
    "adapters without adapters": ("--lora.rank 4", "lora.rank is set"),
    "an evaluation that never comes": (
        "--train.eval-every 50",
        "train.eval_every is 50 and the run has 1 steps",
    ),
}


def test_settings_that_change_nothing_are_told(inputs, tmp_path, capsys):
    for number, (words, message) in enumerate(WARNINGS.values()):
        options = training_options(inputs, tmp_path / str(number))
        assert run("train", *options, *words.split()) == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
        assert len(told) == 1
        assert told[0].startswith(f"warning: {message}")
    assert run("train", *training_options(inputs, tmp_path / "plain")) == 0
    assert "warning" not in capsys.readouterr().out


# ---- divergence ----------------------------------------------------------------------------------


def test_an_absurd_learning_rate_diverges_and_keeps_the_last_good_state(inputs, tmp_path, capsys):
    """The first step leaves weights of 1e30, finite and saved; the second has no gradient there."""
    output = tmp_path / "run"
    options = (*training_options(inputs, output, steps=8), "--train.learning-rate", "1e30")
    assert run("train", *options, "--train.eval-every", 1) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if "diverged:" in line]
    assert len(told) == 1
    assert re.search(r"run diverged: (loss|gradient) is not finite at step \d; rows of", told[0])
    summary = json.loads((output / "summary.json").read_text())
    assert summary["state"] == "diverged"
    assert summary["steps"] == summary["divergence"]["step"] == 1
    # Beside the failure stand the metrics of the last step that was none.
    (before_it,) = tiny_runs.training_lines(output)
    assert summary["divergence"]["metrics"] == before_it
    state = tiny_runs.last_state(output)
    assert all(np.isfinite(value).all() for value in state.values())
    assert all(np.isfinite(weight).all() for weight in tiny_runs.weights(output).values())
    # The same command again says the same and does nothing.
    before = tiny_runs.times(output)
    assert run("train", *options, "--train.eval-every", 1) == 1
    assert tiny_runs.times(output) == before


def test_a_poisoned_model_names_the_rows_behind_it(inputs, tmp_path, capsys):
    """An infinite embedding of one token: the pairs that hold it have no log-probs."""
    poisoned, token = tmp_path / "poisoned", 300
    shutil.copytree(inputs.model, poisoned)
    weights = load_file(poisoned / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"].copy()
    embedding[token, 3] = np.inf
    save_file({**weights, "model.embed_tokens.weight": embedding}, poisoned / "model.safetensors")
    rows = [json.loads(line) for line in inputs.train.read_text().splitlines()]
    rows = [
        {name: [i if i != token else 7 for i in ids] for name, ids in row.items()} for row in rows
    ]
    rows[11]["prompt_ids"][0] = token
    train = tiny_runs.write_rows(tmp_path / "train.jsonl", rows)
    options = training_options(inputs, tmp_path / "run", steps=4)
    assert run("train", *options, "--model", poisoned, "--data", train) == 1
    divergence = json.loads((tmp_path / "run" / "summary.json").read_text())["divergence"]
    # Of the step's five pairs those that share a row of 64 with the poisoned one are named too.
    assert 11 in divergence["rows"]
    assert f"at step {divergence['step']}; rows of the data: " in capsys.readouterr().out


# ---- training and its modes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """The directory of a finished run of all weights."""
    return _trained(inputs, tmp_path_factory.mktemp("runs") / "full")


def _trained(inputs, output, *more):
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        assert run("train", *training_options(inputs, output, steps=2), *more) == 0
    return output


@pytest.fixture(scope="module", params=["lora", "qlora"])
def adapted(request, inputs, tmp_path_factory):
    """The directory of a finished DPO run of adapters, and its mode."""
    output = tmp_path_factory.mktemp("runs") / request.param
    mode = ("--train.mode", request.param, "--lora.rank", 2, "--lora.dropout", 0.3)
    return _trained(inputs, output, *mode, "--loss", "dpo", "--beta", 0.1), request.param


def test_adapters_start_as_the_reference_and_learn(adapted):
    """In every mode the reference is the (quantised) base itself: DPO starts at log 2."""
    directory, mode = adapted
    first, second = tiny_runs.training_lines(directory)
    for line, prefix in ((first, ""), (tiny_runs.validation_lines(directory)[0], "eval_")):
        assert line[f"{prefix}loss"] == pytest.approx(math.log(2), rel=1e-5)
        assert line[f"{prefix}kl"] == pytest.approx(0, abs=1e-8)
    assert second["kl"] > 0
    files = {path.name for path in (directory / "best").iterdir()}
    quantized = {"quantized_base.json"} if mode == "qlora" else set()
    assert files == {"adapter_config.json", "adapter_model.safetensors", *quantized}


def log_probs(model, data, output):
    assert run("logps", "--model", model, "--data", data, "--output", output) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_run_is_scored_as_it_was_validated(trained, inputs, tmp_path):
    """`logps --model RUN` on the validation pairs gives the log-probs of the best step."""
    best = json.loads((trained / "summary.json").read_text())["best"]["step"]
    stored = np.load(trained / "evaluations" / f"{best:06d}.npy")
    lines = log_probs(trained, inputs.validation, tmp_path / "logps.jsonl")
    found = [[line["logp_chosen"], line["logp_rejected"]] for line in lines]
    np.testing.assert_allclose(found, stored, rtol=1e-5)


def test_an_exported_run_is_the_same_policy(trained, inputs, tmp_path):
    assert run("export", "--run", trained, "--output", tmp_path / "export") == 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (trained / "best").iterdir()}


# PEFT asks transformers for an attribute that it has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_are_exported_merged_or_for_peft(adapted, inputs, tmp_path):
    """transformers on the merged folder and peft on the adapter's agree with the validation."""
    directory, mode = adapted
    assert run("export", "--run", directory, "--output", tmp_path / "merged") == 0
    assert run("export", "--run", directory, "--output", tmp_path / "peft", "--adapter") == 0
    best = json.loads((directory / "summary.json").read_text())["best"]["step"]
    stored = np.load(directory / "evaluations" / f"{best:06d}.npy")
    rows = [json.loads(line) for line in inputs.validation.read_text().splitlines()]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    found = [[transformers_log_prob(merged, row, branch) for branch in BRANCHES] for row in rows]
    np.testing.assert_allclose(found, stored, rtol=1e-5, atol=1e-3)
    scored = log_probs(tmp_path / "merged", inputs.validation, tmp_path / "logps.jsonl")
    np.testing.assert_allclose([line["logp_chosen"] for line in scored], stored[:, 0], rtol=1e-5)
    if mode == "lora":  # peft puts it onto the base as it is stored, which is not quantised
        base = AutoModelForCausalLM.from_pretrained(inputs.model)
        theirs = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
        found = [transformers_log_prob(theirs, row, "chosen_ids") for row in rows]
        np.testing.assert_allclose(found, stored[:, 0], rtol=1e-5, atol=1e-3)


def test_a_peft_folder_and_a_run_of_adapters_are_models(adapted, inputs, tmp_path):
    directory, _ = adapted
    by_run = log_probs(directory, inputs.validation, tmp_path / "run.jsonl")
    by_folder = log_probs(directory / "best", inputs.validation, tmp_path / "folder.jsonl")
    assert by_run == by_folder
    best = json.loads((directory / "summary.json").read_text())["best"]["step"]
    stored = np.load(directory / "evaluations" / f"{best:06d}.npy")
    np.testing.assert_allclose([line["logp_chosen"] for line in by_run], stored[:, 0], rtol=1e-5)


def test_conversations_train_with_the_tokenizers_words(inputs, tmp_path):
    """Texts instead of ids: a plain template, a split by fraction, one step."""
    rows = [
        {
            name: [
                {"role": "user", "content": f"what do you think about the river, {number}?"},
                {"role": "assistant", "content": answer},
            ]
            for name, answer in (("chosen", "I think it is red."), ("rejected", f"{number} balls"))
        }
        for number in range(12)
    ]
    data = tiny_runs.write_rows(tmp_path / "chat.jsonl", rows)
    options = ("--model", inputs.model, "--data", data, "--output", tmp_path / "run")
    assert run("train", *options, "--train.max-steps", 1) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert facts["template"] == "plain"
    assert (facts["train_rows"], facts["validation_rows"]) == (11, 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "best")
    assert tokenizer("the red ball").input_ids == (
        AutoTokenizer.from_pretrained(inputs.model)("the red ball").input_ids
    )


# ---- logps ---------------------------------------------------------------------------------------

BRANCHES = ("chosen_ids", "rejected_ids")


def transformers_log_prob(model, row, branch):
    """Sum over the response tokens, in nats."""
    ids = torch.tensor([row["prompt_ids"] + row[branch]])
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].float().log_softmax(-1)
    taken = logps.gather(1, ids[0, 1:, None])[:, 0]
    return float(taken[len(row["prompt_ids"]) - 1 :].sum())


def test_logps_are_transformers_sums_and_nothing_is_cut(inputs, tmp_path):
    """One branch is longer than the model's context of 256, where training would cut it."""
    rows = tiny_runs.random_rows(5, seed=8)
    rng = np.random.default_rng(9)
    rows[2]["chosen_ids"] = rng.integers(0, tiny_runs.SHAPE["vocab_size"], 281).tolist()
    data = tiny_runs.write_rows(tmp_path / "rows.jsonl", rows)
    lines = log_probs(inputs.model, data, tmp_path / "new" / "logps.jsonl")
    theirs = AutoModelForCausalLM.from_pretrained(inputs.model).eval()
    for index, (line, row) in enumerate(zip(lines, rows, strict=True)):
        assert line["index"] == index
        for branch in BRANCHES:
            name = branch.removesuffix("_ids")
            expected = transformers_log_prob(theirs, row, branch)
            assert line[f"logp_{name}"] == pytest.approx(expected, rel=1e-5)
            assert line[f"{name}_tokens"] == len(row[branch])
        assert line["prompt_tokens"] == len(row["prompt_ids"])


def test_rows_without_log_probs_stand_in_their_place(inputs, tmp_path):
    """Texts beside ids; a row that cannot be used keeps its line, and says why."""
    good = tiny_runs.random_rows(1, seed=8)[0]
    rows = [
        good,
        {**good, "prompt_ids": []},
        {"prompt": "the red", "chosen": " ball", "rejected": " river"},
        {"prompt": "the red", "chosen": "", "rejected": " river"},
        {**good, "rejected_ids": good["chosen_ids"]},
    ]
    data = tiny_runs.write_rows(tmp_path / "rows.jsonl", rows)
    lines = log_probs(inputs.model, data, tmp_path / "logps.jsonl")
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[1] == {"index": 1, "unusable": "empty prompt"}
    assert lines[3] == {"index": 3, "unusable": "empty response"}
    # Identical branches have sums too: over other columns of the mask, so equal up to rounding.
    assert lines[4]["logp_chosen"] == pytest.approx(lines[4]["logp_rejected"], rel=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(inputs.model)
    prompt = tokenizer("the red").input_ids
    whole = tokenizer("the red ball").input_ids
    ids = {"prompt_ids": prompt, "chosen_ids": [*whole[len(prompt) :], tokenizer.eos_token_id]}
    assert lines[2]["prompt_tokens"] == len(prompt)
    theirs = AutoModelForCausalLM.from_pretrained(inputs.model).eval()
    expected = transformers_log_prob(theirs, ids, "chosen_ids")
    assert lines[2]["logp_chosen"] == pytest.approx(expected, rel=1e-5)


def test_a_file_without_usable_rows_is_scored_too(inputs, tmp_path):
    row = {**tiny_runs.random_rows(1, seed=8)[0], "prompt_ids": []}
    data = tiny_runs.write_rows(tmp_path / "rows.jsonl", [row])
    lines = log_probs(inputs.model, data, tmp_path / "logps.jsonl")
    assert lines == [{"index": 0, "unusable": "empty prompt"}]
