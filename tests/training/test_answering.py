"""Answers to validation prompts: those of the policy of the step."""

from __future__ import annotations

import shutil

import numpy as np
import tiny_runs

from tddpo_jax.batches.layout import Example
from tddpo_jax.generation.generator import Generator
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.runs.sampled_answers import read_answers
from tddpo_jax.training.answering import NEW_TOKENS, TEMPERATURE, spread

# Members of a population over a mesh of three axes, whose policies move far.
TOGETHER = {
    "train.mode": "lora",
    "train.population": True,
    "train.learning_rate": 0.05,
    "train.max_steps": 1,
    "train.sample_prompts": 3,
    "loss.beta": [0.1, 2.0],
    **{f"mesh.{axis}": 2 for axis in ("data", "fsdp", "tensor")},
}


def ids(text):
    return [int(word) for word in text.split()]


def test_members_on_a_mesh_answer_as_their_exports_do(inputs, tmp_path):
    """Without a tokenizer the answers are ids. One program serves members and validations."""
    model = shutil.copytree(inputs.model, tmp_path / "model")
    for file in model.glob("*token*"):
        file.unlink()
    with tiny_runs.compilations() as compiled:
        tiny_runs.run(inputs, tmp_path / "grid", {**TOGETHER, "model.path": str(model)})
    assert compiled["generate_rows"] == 1
    cells = sorted((tmp_path / "grid").glob("*-seed0"))
    found = [read_answers(cell) for cell in cells]
    assert [list(answers) for answers in found] == [[0, 1]] * 2
    assert found[0][0] == found[1][0]
    rows = tiny_runs.random_rows(7, seed=2)
    generator = Generator.from_path([str(cell) for cell in cells], by_ids=True)
    for number, answers in enumerate(found):
        best = answers[1]
        assert [answer.row for answer in best] == [0, 2, 4]
        for answer in best:
            texts = (answer.prompt, answer.chosen, answer.rejected)
            assert [ids(text) for text in texts] == list(rows[answer.row].values())
        expected = generator.generate(
            [np.array(ids(answer.prompt)) for answer in best],
            [Sampling(TEMPERATURE, max_new_tokens=NEW_TOKENS)] * 3,
            [(place,) for place in range(3)],
            [number] * 3,
        )
        assert [ids(answer.answer) for answer in best] == [each.token_ids for each in expected]
        assert [a.finish_reason for a in best] == [each.finish_reason for each in expected]
        assert [answer.answer for answer in best] != [answer.answer for answer in answers[0]]


def test_prompts_differ_and_are_spread_over_the_data():
    prompts = [[1], [1], [2], [], [3], [2], [4], [5]]
    examples = [Example(n, np.array(prompt, int), ()) for n, prompt in enumerate(prompts)]
    assert [example.row for example in spread(examples, 2)] == [0, 4]
    assert [example.row for example in spread(examples, 9)] == [0, 2, 4, 6, 7]
    assert spread(examples, 0) == spread([], 8) == []
