"""Answer files: who said what under which settings, and that a resumed run asks nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from mt_bench_files import lines, write_data
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval.mt_bench.__main__ import main
from eval.mt_bench.answers import Settings, answers_folder, generate_answers, record
from eval.mt_bench.benchmark import Question, answer_files, load_data
from tddpo_jax.generation.generator import Completion, Generator
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.system.console import Screen

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {text: place for place, text in enumerate(["<s>", "</s>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@dataclass
class FakeGenerator:
    """Says which key it was called with; remembers the prompts; can be killed after some calls."""

    tokenizer: PreTrainedTokenizerFast = field(default_factory=character_tokenizer)
    dtype: type = np.float32
    context: int = 4096
    calls_left: int = 1000
    prompts: dict[tuple[int, ...], str] = field(default_factory=dict)
    sampling: dict[tuple[int, ...], Sampling] = field(default_factory=dict)

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sequence[Sampling],
        keys: Sequence[tuple[int, ...]],
    ) -> list[Completion]:
        if self.calls_left == 0:
            raise KeyboardInterrupt
        self.calls_left -= 1
        for prompt, settings, key in zip(prompts, sampling, keys, strict=True):
            assert key not in self.prompts, "asked twice"
            self.prompts[key] = "".join(self.tokenizer.convert_ids_to_tokens(prompt.tolist()))
            self.sampling[key] = settings
        return [Completion(f" said {key} ", [5, 6], "stop", key[1] == 121) for key in keys]


def answer(
    generator: FakeGenerator,
    folder: Path,
    questions: Sequence[Question],
    settings: Settings,
    seeds: Sequence[int] = (0, 3),
    batch_size: int = 3,
) -> int:
    return generate_answers(
        generator,
        questions,
        model_id="tiny",
        seeds=seeds,
        folder=folder,
        settings=settings,
        making=record(generator, settings, "w"),
        batch_size=batch_size,
        screen=Screen(quiet=True),
    )


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    return list(load_data(write_data(tmp_path / "data")).questions.values())


PLAIN = Settings(template="plain")


def test_fastchats_schema_with_everything_on_record(
    tmp_path: Path, questions: list[Question]
) -> None:
    generator = FakeGenerator()
    cut = answer(generator, tmp_path / "a", questions, Settings(template="plain", system="Hm."))
    assert cut == 2, "question 121 under both seeds"
    rows = lines(tmp_path / "a" / "tiny-seed3.jsonl")
    assert [row["question_id"] for row in rows] == [81, 111, 121, 141]
    row = rows[0]
    assert row["model_id"] == "tiny"
    assert row["choices"] == [{"index": 0, "turns": ["said (3, 81, 1)", "said (3, 81, 2)"]}]
    assert row["answer_id"] != rows[1]["answer_id"]
    assert {"question_id", "answer_id", "model_id", "choices", "tstamp"} <= row.keys()
    assert (row["seed"], row["temperature"]) == (3, 0.7)
    assert row["finish_reasons"] == ["stop", "stop"]
    assert row["new_tokens"] == [2, 2]
    making = row["generation"]
    assert len(making.pop("template_sha256")) == 64
    assert making == {
        "weights": "w",
        "dtype": "float32",
        "template": "plain",
        "system": "Hm.",
        "temperature": "by category",
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": 1024,
    }
    files = answer_files([tmp_path / "a"])
    assert [(file.model, file.model_id, file.seed) for file in files] == [
        ("tiny-seed0", "tiny", 0),
        ("tiny-seed3", "tiny", 3),
    ]


def test_the_second_question_stands_behind_the_first_answer(
    tmp_path: Path, questions: list[Question]
) -> None:
    generator = FakeGenerator()
    answer(generator, tmp_path, questions, PLAIN)
    assert generator.prompts[0, 111, 1] == "User: math 0 one?\nAssistant:"
    assert generator.prompts[0, 111, 2] == (
        "User: math 0 one?\nAssistant: said (0, 111, 1)\nUser: math 0 {two}?\nAssistant:"
    )
    system = Settings(template="plain", system="Hm.")
    answer(generator, tmp_path, questions, system, seeds=[1])
    assert generator.prompts[1, 81, 1].startswith("System: Hm.\nUser: writing")


def test_temperatures_by_category_and_by_hand(tmp_path: Path, questions: list[Question]) -> None:
    generator = FakeGenerator()
    answer(generator, tmp_path, questions, PLAIN, seeds=[0])
    found = {key[1]: sampling.temperature for key, sampling in generator.sampling.items()}
    assert found == {81: 0.7, 111: 0.0, 121: 0.0, 141: 0.1}
    named = questions[1].model_copy(update={"required_temperature": 0.3})
    answer(generator, tmp_path, [named], PLAIN, seeds=[1])
    assert generator.sampling[1, 111, 2].temperature == 0.3
    hot = Settings(template="plain", temperature=1.5, top_k=4, top_p=0.9, max_new_tokens=7)
    answer(generator, tmp_path, questions, hot, seeds=[2])
    assert set(list(generator.sampling.values())[-8:]) == {Sampling(1.5, 4, 0.9, 7)}


def test_a_killed_run_keeps_whole_batches_and_repeats_none(
    tmp_path: Path, questions: list[Question]
) -> None:
    """Eight answers in batches of three, two calls a batch; the third batch is under way."""
    killed = FakeGenerator(calls_left=5)
    with pytest.raises(KeyboardInterrupt):
        answer(killed, tmp_path, questions, PLAIN)
    first, second = tmp_path / "tiny-seed0.jsonl", tmp_path / "tiny-seed3.jsonl"
    kept = lines(first) + lines(second)
    assert len(kept) == 6
    with second.open("a") as file:
        file.write('{"question_id": 1')
    resumed = FakeGenerator()
    with pytest.warns(UserWarning, match="cut-off last line"):
        answer(resumed, tmp_path, questions, PLAIN)
    assert sorted(resumed.prompts) == [(3, q, turn) for q in (121, 141) for turn in (1, 2)]
    rows = lines(first) + lines(second)
    assert [row for row in rows if row in kept] == kept
    assert len(rows) == 8
    answer(FakeGenerator(calls_left=0), tmp_path, questions, PLAIN)
    assert lines(first) + lines(second) == rows


def test_answers_of_another_making_are_not_continued(
    tmp_path: Path, questions: list[Question]
) -> None:
    answer(FakeGenerator(), tmp_path, questions[:2], PLAIN)
    other = Settings(template="plain", top_p=0.5, system="Hm.")
    with pytest.raises(ValueError, match=r"tiny-seed0.jsonl: .* another system and top_p"):
        answer(FakeGenerator(), tmp_path, questions, other)


def test_the_command_generates_under_the_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run directory in a grid; only the loading of its weights is replaced."""
    data = write_data(tmp_path / "data")
    run = tmp_path / "grid" / "dpo-beta0.05-seed0"
    (run / "best").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run.parent / "grid.json").write_text("{}")
    (run / "best" / "config.json").write_text("{}")
    save_file({"w": np.zeros(3, np.float32)}, run / "best" / "model.safetensors")
    generator = FakeGenerator(context=100)
    loaded: list[tuple[str, str, str | None]] = []

    def from_path(path: str, dtype: str, *, template: str | None) -> FakeGenerator:
        loaded.append((path, dtype, template))
        return generator

    monkeypatch.setattr(Generator, "from_path", from_path)
    command = (
        f"generate --model {run} --data-dir {data} --seed 0 1 --template plain --system Hm. "
        "--temperature 0.4 --top-k 3 --top-p 0.8 --max-new-tokens 9 --dtype float32 --first 3"
    )
    assert main(command.split()) == 0
    assert loaded == [(str(run), "float32", "plain")]
    folder = run.parent / "mt_bench" / "model_answer"
    said = capsys.readouterr().out
    for seed in (0, 1):
        path = folder / f"dpo-beta0.05-seed0-seed{seed}.jsonl"
        assert str(path) in said
        assert [row["question_id"] for row in lines(path)] == [81, 111, 121]
    assert "template plain, a system prompt, 9 new tokens a turn" in said
    assert set(generator.sampling.values()) == {Sampling(0.4, 3, 0.8, 9)}
    making = lines(path)[0]["generation"]
    save_file({"w": np.ones(3, np.float32)}, run / "best" / "model.safetensors")
    assert main(command.split()) == 2
    assert "was generated with another weights" in capsys.readouterr().err
    assert len(making["weights"]) == 64
    assert main([*command.split(), "--model-id", "a/b"]) == 2
    assert answers_folder(str(run / "best")) == Path("mt_bench/model_answer")
    (run.parent / "grid.json").unlink()
    assert answers_folder(str(run)) == run / "mt_bench" / "model_answer"


def test_what_the_context_allows() -> None:
    short = FakeGenerator(context=512)
    assert record(short, PLAIN, "w")["max_new_tokens"] == 256
    with pytest.raises(ValueError, match="--max-new-tokens 512: the model's context has 512"):
        record(short, Settings(template="plain", max_new_tokens=512), "w")


def test_a_template_is_never_guessed_silently() -> None:
    generator = FakeGenerator()
    with pytest.warns(UserWarning, match="no chat template; 'plain' is used"):
        assert record(generator, Settings(), "w")["template"] == "plain"
    with pytest.raises(ValueError, match="'vicuna'"):
        record(generator, Settings(template="vicuna"), "w")
    generator.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    assert record(generator, Settings(), "w")["template"] == "tokenizer"
