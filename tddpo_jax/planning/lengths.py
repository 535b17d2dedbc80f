"""The lengths of the examples to plan for: those of the data, or else those stated here."""

from __future__ import annotations

import contextlib

import numpy as np
from transformers import PreTrainedTokenizerBase

from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import Config
from tddpo_jax.data.dataset import branch_limits, load_dataset
from tddpo_jax.data.examples import Dataset
from tddpo_jax.data.mixture import read_mixture
from tddpo_jax.data.named_templates import check_name
from tddpo_jax.data.tokenizer import load_tokenizer, load_tokenizer_if_any
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.system import hub
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.weights.locate import is_local, resolve

# The stated lengths are those of argilla/dpo-mix-7k in Llama-2 tokens. STATED_MEANS are the means
# of prompt, chosen and rejected, from a sample of the same families of data. Gamma distributions
# with STATED_SHAPES have the same spread.
STATED_PAIRS, STATED_MEANS, STATED_SHAPES = 6750, (431, 313, 339), (0.8, 2.0, 2.0)
STATED_VALIDATION_PAIRS = 750


def dataset_or_stated(config: Config, model: DecoderConfig) -> tuple[Dataset, str]:
    """The run's examples, or pairs of the stated lengths if the hub cannot be reached.

    Returns:
        The data set, and a line for the user that describes it.

    Raises:
        UserError: the data or the model is wrong; the stated lengths replace only files on a hub
            that cannot be reached.
    """
    try:
        tokenizer = tokenizer_of(config.model.path)
        dataset = load_dataset(config.data, tokenizer, context=model.context, cache=cache_folder())
    except hub.NotAtHand as error:
        if hub.answers():
            raise
        with contextlib.suppress(hub.NotAtHand):
            read_mixture(config.data)
        missing = str(error).partition(":")[0]
        stated = f"stated lengths of dpo-mix-7k in place of {config.data.names}"
        because = f"because the hub cannot be reached: no {missing}"
        return stated_dataset(config, model), f"{stated}, {because}"
    return dataset, f"{config.data.names}, template {dataset.template}"


def tokenizer_of(model: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model, if it has one; of a hub id, no weights are loaded.

    Raises:
        UserError: there is no such model (`NotAtHand` of a hub id).
    """
    if is_local(model):
        return load_tokenizer_if_any(resolve(model).tokenizer)
    return load_tokenizer(model)


def stated_dataset(config: Config, model: DecoderConfig) -> Dataset:
    """A data set with as many pairs as argilla/dpo-mix-7k, and of its lengths; every token is 0.

    Raises:
        UserError: a setting of the data would be wrong for any data.
    """
    if config.data.template is not None:
        check_name(config.data.template)
    validated = config.data.validation != 0
    validation = stated_pairs(config, model, STATED_VALIDATION_PAIRS, seed=1) if validated else []
    return Dataset(
        train=stated_pairs(config, model, STATED_PAIRS),
        validation=validation,
        dropped={},
        cut_prompts=0,
        cut_responses=0,
        template=config.data.template or "tokenizer",
        content_hash="stated",
    )


def stated_pairs(
    config: Config, model: DecoderConfig, count: int = STATED_PAIRS, seed: int = 0
) -> list[Example]:
    """Pairs with the lengths of argilla/dpo-mix-7k; every token is 0."""
    limits = branch_limits(config.data, model.context)
    response = limits.max_length - limits.max_prompt_length
    rng = np.random.default_rng(seed)
    lengths = []
    for mean, shape, limit in zip(
        STATED_MEANS, STATED_SHAPES, (limits.max_prompt_length, response, response), strict=True
    ):
        drawn = rng.gamma(shape, mean / shape, count)
        # Truncation lowers the mean, so scale the lengths back to the stated mean first.
        drawn *= mean / np.minimum(drawn, limit).mean()
        lengths.append(np.clip(drawn.astype(int), min(2, limit), limit))
    tokens = np.zeros(limits.max_length, np.int32)
    return [
        Example(row, tokens[:prompt], (tokens[:chosen], tokens[:rejected]))
        for row, (prompt, chosen, rejected) in enumerate(zip(*lengths, strict=True))
    ]
