"""The loss of the routers beside that of transformers, which TRL uses."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_models
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tddpo_jax.models.experts.routing import load, softmax_of_best
from tddpo_jax.models.experts.usage import Balance, balance_loss, usage

EXPERTS, CHOSEN, LAYERS = 5, 2, 3


def test_the_loss_is_that_of_transformers_on_separate_rows():
    """A stream of two chosen tokens, three of the prompt, one rejected and two of padding.
    transformers gets a row for each branch, so it reads the prompt twice, and a mask of padding.
    The gradients are compared as well: both add those of the prompt's two copies."""
    logits = np.random.default_rng(0).normal(size=(LAYERS, 1, 8, EXPERTS)).astype(np.float32)
    uses = jnp.array([[1, 1, 2, 2, 2, 1, 0, 0]])

    def ours(logits):
        layers = [
            usage(softmax_of_best(layer, CHOSEN), uses, with_balance=True) for layer in logits
        ]
        stacked = jax.tree.map(lambda *each: jnp.concatenate(each), *layers)  # each has one row
        return balance_loss(stacked.balance), stacked.choices

    both = tiny_models.quick_jit(jax.value_and_grad(ours, has_aux=True))
    (value, choices), gradient = both(jnp.asarray(logits))
    given = torch.from_numpy(logits).requires_grad_()
    branches = torch.tensor([[2, 3, 4, 1, 0], [2, 3, 4, 5, 6]])
    rows = tuple(layer[0, branches].reshape(-1, EXPERTS) for layer in given)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    wanted = load_balancing_loss_func(rows, EXPERTS, CHOSEN, mask)
    wanted.backward()
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, given.grad.numpy(), atol=1e-7)
    # Six tokens are real, and each of them chooses twice.
    np.testing.assert_array_equal(choices.sum(axis=1), [12.0] * LAYERS)


def test_the_choices_count_tokens_that_are_real():
    """Three real tokens with two choices each, of four experts: 3, 2, 1, 0; the mean is 1.5."""
    logits = jnp.array([[[9.0, 8, 0, 0], [9, 8, 0, 0], [9, 0, 8, 0], [0, 0, 8, 9]]])
    found = usage(softmax_of_best(logits, 2), jnp.array([[1, 2, 1, 0]]), with_balance=False)
    np.testing.assert_array_equal(found.choices, [[3, 2, 1, 0]])
    assert load(found.choices[0]) == 2


def test_the_loss_of_an_even_use_is_the_number_of_chosen_experts():
    """Four tokens choose two of four experts each, with equal probabilities."""
    even = Balance(jnp.full((1, 4), 2.0), jnp.full((1, 4), 1.0))
    assert balance_loss(even) == 2
