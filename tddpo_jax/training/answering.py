"""At every validation, each policy answers the same few validation prompts, for people to read.

Nothing of training depends on the answers. The random numbers of an answer depend on its prompt
alone: with those of another step or cell it shares them, and differs by the policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.batches.layout import Example
from tddpo_jax.generation.decode import generate_rows
from tddpo_jax.generation.generator import Generator, configured_stops
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.runs.sampled_answers import SampledAnswer
from tddpo_jax.training.population import Population
from tddpo_jax.training.shared import Shared
from tddpo_jax.training.state import TrainState

# Answers are short, so that they cost little beside the validation.
NEW_TOKENS = 64
# The policy's own distribution.
TEMPERATURE = 1.0


def answer_prompts(population: Population, state: TrainState, step: int) -> None:
    """Samples and keeps the answers of all members; `train.sample_prompts` says how many.

    Args:
        population: the runs.
        state: the state of all members.
        step: optimiser steps so far.
    """
    experiment = population.experiment
    shared, policy = experiment.shared, experiment.policy
    examples = spread(shared.dataset.validation, population.config.train.sample_prompts)
    if not examples:
        return
    experiment.programs.say_if_new(generate_rows, "the sampling of answers", population.screen)
    for number, run in enumerate(population.members):
        if not run.diverged:
            model = policy.model(population.state_of(state.trainable, number))
            run.show_answers(step, _answers(model, shared, examples, step))


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples whose prompts differ, spread evenly over all."""
    first: dict[bytes, Example] = {}
    for example in examples:
        if len(example.prompt):
            first.setdefault(example.prompt.tobytes(), example)
    distinct = list(first.values())
    count = min(count, len(distinct))
    return [distinct[number * len(distinct) // count] for number in range(count)]


def _answers(
    model: Decoder, shared: Shared, examples: Sequence[Example], step: int
) -> list[SampledAnswer]:
    generator = Generator(
        adapter_set([model]),
        shared.tokenizer,
        stop_ids=_stops(shared),
        mesh=shared.mesh,
        dtype=shared.how.dtype,
    )
    # No prompt is cut: each leaves room for a token at least, because its responses fit as well.
    rooms = [generator.context - len(example.prompt) for example in examples]
    completions = generator.generate(
        [example.prompt for example in examples],
        [Sampling(TEMPERATURE, max_new_tokens=min(NEW_TOKENS, room)) for room in rooms],
        [(number,) for number in range(len(examples))],
    )

    def text(prompt: Sequence[int], ids: Sequence[int] | Int[np.ndarray, " T"]) -> str:
        if shared.tokenizer is None:
            return " ".join(map(str, ids))
        return generator.text_after(prompt, list(ids)).strip()

    answers = []
    for example, completion in zip(examples, completions, strict=True):
        prompt = example.prompt.tolist()
        chosen, *rejected = [text(prompt, ids.tolist()) for ids in example.responses]
        answers.append(
            SampledAnswer(
                step=step,
                row=example.place,
                prompt=text([], prompt),
                answer=text(prompt, completion.token_ids),
                finish_reason=completion.finish_reason,
                chosen=chosen,
                rejected=rejected[0] if rejected else None,
            )
        )
    return answers


def _stops(shared: Shared) -> list[int]:
    """The tokens that end an answer; rows of token ids bring no template."""
    of_template = () if shared.chat is None else shared.chat.stop_ids
    return sorted({*configured_stops(shared.files), *of_template})
