"""The verb `sample`: answers with scores, the pairs that they make, and how it goes on."""

from __future__ import annotations

import json

import jax
import pytest
import tiny_models
import tiny_runs
from tiny_commands import run

import tddpo_jax
from tddpo_jax.commands.sample import Asked, sample_pairs
from tddpo_jax.config.schema import DataSource
from tddpo_jax.data.dataset import load_uncut_examples
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.row_prompts import load_prompts
from tddpo_jax.data.tokenizer import load_tokenizer
from tddpo_jax.generation import generator, samples
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.system.console import Screen

# Six tokens end no answer, and a command says so.
pytestmark = pytest.mark.filterwarnings("ignore:max_new_tokens. \\d+ of \\d+ answers were cut at 6")

REWARD = '''
def letters(prompt, answer, row):
    """How many of the letters that the row wants the answer has."""
    return sum(answer.count(letter) for letter in row["wanted"])

def tokens(prompt, answer, row):
    return sum(answer) if isinstance(answer, list) else len(answer)
'''
PROMPTS = [
    {"prompt": "the red ball"},
    {"prompt": [{"role": "user", "content": "the river"}]},
    {"question": "a boat?", "answer": "#### 2"},
    {"prompt": ""},
    {"messages": [{"role": "user", "content": "a dog"}, {"role": "assistant", "content": "yes"}]},
    {"prompt": "what"},
]
NEW = 6


@pytest.fixture(scope="module", autouse=True)
def small():
    """Answers two prompts at a time, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        one = jax.devices()[:1]
        patch.setattr(generator, "make_mesh", lambda config: make_mesh(config, one))
        patch.setattr(samples, "ANSWERS_AT_ONCE", 6)
        tiny_runs.use_devices(patch, 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    (folder / "mine.py").write_text(REWARD)
    rows = [{**row, "wanted": "aei"} for row in PROMPTS]
    tiny_runs.write_rows(folder / "prompts.jsonl", rows)
    return folder


def options(inputs, folder, output, **changes):
    given = {
        "--model": inputs.model,
        "--data": folder / "prompts.jsonl",
        "--samples": 3,
        "--reward": f"{folder}/mine.py:letters",
        "--max-new-tokens": NEW,
        "--output": output,
        **{f"--{name.replace('_', '-')}": value for name, value in changes.items()},
    }
    return [word for pair in given.items() for word in pair]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(inputs, folder):
    """The file of pairs, beside that of all answers."""
    file = folder / "pairs.jsonl"
    assert run("sample", *options(inputs, folder, file)) == 0
    return file


def test_every_answer_is_kept_with_its_score(sampled):
    kept = lines(sampled.with_name("pairs.samples.jsonl"))
    assert [line["index"] for line in kept] == [0, 1, 2, 4, 5]  # row 3 asks nothing
    for line in kept:
        assert len(line["answers"]) == len(line["finished"]) == 3
        assert line["scores"] == [sum(map(text.count, "aei")) for text in line["answers"]]
    assert len({text for line in kept for text in line["answers"]}) > 5
    for pair in lines(sampled):
        line = next(line for line in kept if line["index"] == pair["index"])
        assert pair["prompt"] == line["prompt"]
        assert pair["score_chosen"] == max(line["scores"])
        assert pair["score_rejected"] == min(line["scores"])
        for name in ("chosen", "rejected"):
            number = line["scores"].index(pair[f"score_{name}"])
            assert pair[name] == [{"role": "assistant", "content": line["answers"][number]}]
    with_pairs = {line["index"] for line in kept if len(set(line["scores"])) > 1}
    assert {pair["index"] for pair in lines(sampled)} == with_pairs != set()


def test_the_pairs_train_on_the_prompts_that_were_answered(sampled, inputs, folder):
    tokenizer = load_tokenizer(inputs.model)
    asked, _ = load_prompts(
        DataSource(path=str(folder / "prompts.jsonl")),
        tokenizer,
        None,
        most=99,
        vocabulary=Vocabulary(len(tokenizer)),
    )
    ids = {prompt.row: prompt.ids.tolist() for prompt in asked}
    pairs = load_uncut_examples(DataSource(path=str(sampled)), tokenizer, None)
    rows = [pair["index"] for pair in lines(sampled)]
    assert [pair.prompt.tolist() for pair in pairs] == [ids[row] for row in rows]


@pytest.mark.filterwarnings("ignore:.*last line")
def test_a_stopped_command_goes_on_to_the_same_files(sampled, inputs, folder):
    """It was stopped within the second of three batches, in the middle of a line."""
    whole = sampled.with_name("pairs.samples.jsonl").read_bytes()
    file = folder / "stopped.jsonl"
    kept = file.with_name("stopped.samples.jsonl")
    kept.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + whole.splitlines()[3][:40])
    assert run("sample", *options(inputs, folder, file)) == 0
    assert kept.read_bytes() == whole
    assert file.read_bytes() == sampled.read_bytes()


def test_all_pairs_of_the_same_answers_need_no_model(sampled, inputs, folder, monkeypatch):
    monkeypatch.setattr(generator.Generator, "from_path", None)
    file = folder / "all.jsonl"
    kept = sampled.with_name("pairs.samples.jsonl")
    file.with_name("all.samples.jsonl").write_bytes(kept.read_bytes())
    assert run("sample", *options(inputs, folder, file, pairs="all")) == 0
    expected = sum(a > b for line in lines(kept) for a in line["scores"] for b in line["scores"])
    assert len(lines(file)) == expected > len(lines(sampled))
    assert all(pair["score_chosen"] > pair["score_rejected"] for pair in lines(file))


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.7}, {"samples": 4}])
def test_other_answers_do_not_go_into_the_same_file(sampled, inputs, folder, capsys, change):
    before = sampled.read_bytes()
    assert run("sample", *options(inputs, folder, sampled, **change)) == 2
    (name,) = change
    assert capsys.readouterr().err == (
        f"error: output: {sampled.with_name('pairs.samples.jsonl')} was made with another {name}; "
        "remove it, or choose another --output\n"
    )
    assert sampled.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"samples": 1}, "samples: a pair needs at least 2 answers, got 1"),
        ({"temperature": 0}, "temperature: 0 makes all answers to a prompt alike"),
        ({"top_p": 0}, "top_p: 0.0 is out of range"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"max_new_tokens": 256}, "max_new_tokens: 256 leaves no room for a prompt"),
        ({"reward": "none"}, "reward: 'none' is not answer, embedded or FILE.py:FUNCTION"),
        ({"data": "none.jsonl"}, "data none.jsonl: no such file"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(inputs, folder, capsys, change, problem):
    given = options(inputs, folder, folder / "new.jsonl", **change)
    assert run("sample", *given) == 2
    assert capsys.readouterr().err.startswith(f"error: {problem}")
    assert not (folder / "new.samples.jsonl").exists()


def test_only_known_pairs_are_made(inputs, folder):
    asked = Asked(
        model=str(inputs.model),
        data=DataSource(path=str(folder / "prompts.jsonl")),
        samples=2,
        reward="embedded",
        pairs="All",
        sampling=Sampling(temperature=1.0),
        max_new_tokens=None,
        seed=0,
        template=None,
        raw=False,
        dtype="auto",
    )
    with pytest.raises(tddpo_jax.UserError, match=r"^pairs: 'All' is not best or all$"):
        sample_pairs(asked, folder / "none.jsonl", Screen(quiet=True))


def test_a_file_of_pairs_that_was_not_sampled_is_left_alone(inputs, folder, capsys):
    assert run("sample", *options(inputs, folder, ".")) == 2
    assert capsys.readouterr().err.startswith("error: output: . is a directory")
    mine = tiny_runs.write_rows(folder / "theirs.jsonl", [{"a": 1}])
    assert run("sample", *options(inputs, folder, mine)) == 2
    assert "theirs.jsonl exists, and theirs.samples.jsonl with its" in capsys.readouterr().err
    assert lines(mine) == [{"a": 1}]


def test_token_ids_need_no_tokenizer(inputs, folder, tmp_path):
    model = tiny_models.save(tmp_path / "model", tiny_models.hugging_face(**tiny_runs.SHAPE), None)
    rows = [{"prompt_ids": row["prompt_ids"]} for row in tiny_runs.random_rows(2, seed=1)]
    pairs = tddpo_jax.sample(
        model,
        rows,
        samples=3,
        reward=f"{folder}/mine.py:tokens",
        output=tmp_path / "ids.jsonl",
        max_new_tokens=NEW,
        quiet=True,
    )
    assert [pair["prompt_ids"] for pair in pairs] == [row["prompt_ids"] for row in rows]
    for pair in pairs:
        assert pair["score_chosen"] == sum(pair["chosen_ids"]) > sum(pair["rejected_ids"])
    assert lines(tmp_path / "ids.jsonl") == pairs
