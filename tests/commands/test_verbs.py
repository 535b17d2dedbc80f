"""What the verbs do, from a command to its files: runs that end or diverge, exports, log-probs."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import tiny_runs
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.numpy import load_file, save_file
from tiny_commands import run, trained_run, training_options
from transformers import AutoModelForCausalLM, AutoTokenizer

from tddpo_jax.data.templates import encode_prompt

pytestmark = pytest.mark.usefixtures("one_device")


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
    options = training_options(inputs, tmp_path / "run", steps=4, data=train)
    assert run("train", *options, "--model", poisoned) == 1
    divergence = json.loads((tmp_path / "run" / "summary.json").read_text())["divergence"]
    # Of the step's five pairs those that share a row of 64 with the poisoned one are named too.
    assert 11 in divergence["rows"]
    assert f"at step {divergence['step']}; rows of the data: " in capsys.readouterr().out


# ---- training and its modes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """The directory of a finished run of all weights."""
    return trained_run(inputs, tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module", params=["lora", "qlora"])
def adapted(request, inputs, tmp_path_factory):
    """The directory of a finished DPO run of adapters, and its mode."""
    output = tmp_path_factory.mktemp("runs") / request.param
    mode = ("--train.mode", request.param, "--lora.rank", 2, "--lora.dropout", 0.3)
    return trained_run(inputs, output, *mode, "--loss", "dpo", "--beta", 0.1), request.param


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
    for_chats = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert files == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "base.json"),
        *quantized,
        *for_chats,
    }
    # Readers of other accounts may read what the creator of an ordinary file lets them read.
    ordinary = directory / "config.yaml"
    modes = {path.stat().st_mode for path in (directory / "best").iterdir()}
    assert modes == {ordinary.stat().st_mode}


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


def test_a_kept_policy_is_exported_by_its_step(trained, inputs, tmp_path, capsys):
    check_export_of_another_step(trained, inputs, tmp_path)
    assert run("export", "--run", trained, "--output", tmp_path / "none", "--step", 7) == 2
    told = capsys.readouterr().err
    assert re.search(
        r"^error: step: .* keeps the policies of step .*\(best\).*, not of 7$", told, re.M
    )
    assert not (tmp_path / "none").exists()


def check_export_of_another_step(directory, inputs, folder):
    """Of two steps the one that is not the best, against its own validation."""
    other = 3 - json.loads((directory / "summary.json").read_text())["best"]["step"]
    assert run("export", "--run", directory, "--output", folder / "other", "--step", other) == 0
    lines = log_probs(folder / "other", inputs.validation, folder / "other.jsonl")
    stored = np.load(directory / "evaluations" / f"{other:06d}.npy")
    np.testing.assert_allclose([line["logp_chosen"] for line in lines], stored[:, 0], rtol=1e-5)
    assert f"at step {other}" in (folder / "other" / "README.md").read_text()


# PEFT asks transformers for an attribute that it has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("always:the adapter was trained")
def test_adapters_are_exported_merged_or_for_peft(adapted, inputs, tmp_path, capsys):
    """transformers on the merged folder and peft on the adapter's agree with the validation."""
    directory, mode = adapted
    assert run("export", "--run", directory, "--output", tmp_path / "merged") == 0
    assert run("export", "--run", directory, "--output", tmp_path / "peft", "--adapter") == 0
    told = "warning: the adapter was trained beside a four-bit base" in capsys.readouterr().err
    assert told == (mode == "qlora")
    best = json.loads((directory / "summary.json").read_text())["best"]["step"]
    stored = np.load(directory / "evaluations" / f"{best:06d}.npy")
    rows = [json.loads(line) for line in inputs.validation.read_text().splitlines()]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    found = [[transformers_log_prob(merged, row, branch) for branch in BRANCHES] for row in rows]
    np.testing.assert_allclose(found, stored, rtol=1e-5, atol=1e-3)
    check_export_of_another_step(directory, inputs, tmp_path)
    scored = log_probs(tmp_path / "merged", inputs.validation, tmp_path / "logps.jsonl")
    np.testing.assert_allclose([line["logp_chosen"] for line in scored], stored[:, 0], rtol=1e-5)
    if mode == "lora":  # peft puts it onto the base as it is stored, which is not quantised
        base = AutoModelForCausalLM.from_pretrained(inputs.model)
        theirs = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
        found = [transformers_log_prob(theirs, row, "chosen_ids") for row in rows]
        np.testing.assert_allclose(found, stored[:, 0], rtol=1e-5, atol=1e-3)


def test_an_adapter_knows_its_base_again(inputs, tmp_path, capsys):
    """Its base is trained on in place: shapes and names are as before, the policy is not."""
    base = shutil.copytree(inputs.model, tmp_path / "base")
    mode = ("--train.mode", "lora", "--lora.rank", 2, "--model", base)
    directory = trained_run(inputs, tmp_path / "run", *mode)
    weights = load_file(base / "model.safetensors")
    save_file({name: w + 1e-3 for name, w in weights.items()}, base / "model.safetensors")
    capsys.readouterr()
    for verb, *options in (("export", "--run"), ("logps", "--data", inputs.validation, "--model")):
        assert run(verb, *options, directory, "--output", tmp_path / "output") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            f"error: model.path: {directory / 'best'} was trained on other weigh"
        )
    assert not (tmp_path / "output").exists()


def test_a_peft_folder_and_a_run_of_adapters_are_models(adapted, inputs, tmp_path):
    directory, _ = adapted
    by_run = log_probs(directory, inputs.validation, tmp_path / "run.jsonl")
    by_folder = log_probs(directory / "best", inputs.validation, tmp_path / "folder.jsonl")
    assert by_run == by_folder
    best = json.loads((directory / "summary.json").read_text())["best"]["step"]
    stored = np.load(directory / "evaluations" / f"{best:06d}.npy")
    np.testing.assert_allclose([line["logp_chosen"] for line in by_run], stored[:, 0], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_conversations_train_with_the_tokenizers_words(mode, inputs, tmp_path):
    """Texts instead of ids: a named template, a split by fraction, one step.

    The policy's folder holds the template. transformers and peft load it, and make the same ids.
    """
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
    options = (*options, "--data.template", "zephyr", "--train.mode", mode, "--lora.rank", 2)
    assert run("train", *options, "--train.max-steps", 1) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert facts["template"] == "zephyr"
    assert (facts["train_rows"], facts["validation_rows"]) == (11, 1)
    best = tmp_path / "run" / "best"
    tokenizer, of_base = map(AutoTokenizer.from_pretrained, (best, inputs.model))
    assert tokenizer("the red ball").input_ids == of_base("the red ball").input_ids
    question = [{"role": "user", "content": "the red ball"}]
    theirs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert theirs == encode_prompt(of_base, question, "zephyr").tolist()
    if mode == "lora":
        assert AutoPeftModelForCausalLM.from_pretrained(best).active_adapter == "default"
        assert run("export", "--run", tmp_path / "run", "--output", tmp_path / "merged") == 0
        merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
        assert merged.chat_template == tokenizer.chat_template
        assert (tmp_path / "merged" / "README.md").is_file()
    # The same log-probs with and without the template's name.
    by_default = log_probs(tmp_path / "run", data, tmp_path / "default.jsonl")
    by_name = ("--template", "zephyr", "--output", tmp_path / "named.jsonl")
    assert run("logps", "--model", tmp_path / "run", "--data", data, *by_name) == 0
    named = [json.loads(line) for line in (tmp_path / "named.jsonl").read_text().splitlines()]
    assert by_default == named


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


def test_rows_of_one_response_have_one_sum(inputs, tmp_path):
    """The rejected responses of pairs as rows of their own, beside one that cannot be used."""
    pairs = tiny_runs.random_rows(5, seed=8)
    rows = [{"prompt_ids": p["prompt_ids"], "response_ids": p["rejected_ids"]} for p in pairs]
    data = tiny_runs.write_rows(tmp_path / "rows.jsonl", [*rows, {**rows[0], "prompt_ids": []}])
    *lines, last = log_probs(inputs.model, data, tmp_path / "logps.jsonl")
    theirs = AutoModelForCausalLM.from_pretrained(inputs.model).eval()
    for index, (line, row) in enumerate(zip(lines, rows, strict=True)):
        expected = transformers_log_prob(theirs, row, "response_ids")
        assert line == {
            "index": index,
            "logp": pytest.approx(expected, rel=1e-5),
            "prompt_tokens": len(row["prompt_ids"]),
            "response_tokens": len(row["response_ids"]),
        }
    assert last == {"index": 5, "unusable": "empty prompt"}


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
