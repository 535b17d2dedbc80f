"""The order of the data: every pair once an epoch, and a pure function of seed and step."""

import math

import numpy as np
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from tddpo_jax.config.schema import Config, TrainConfig
from tddpo_jax.training.step_order import Order, make_order

COUNTS = st.integers(1, 60)


@given(pairs=COUNTS, batch_pairs=COUNTS, seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_an_epoch_takes_every_pair_once(pairs, batch_pairs, seed, epoch):
    """In as few steps as possible, whose sizes differ by at most one."""
    config = Config(seed=seed, train=TrainConfig(batch_pairs=batch_pairs))
    order = make_order(config, pairs)
    first = epoch * order.steps_per_epoch
    steps = [order.numbers(first + step) for step in range(order.steps_per_epoch)]
    assert sorted(np.concatenate(steps)) == list(range(pairs))
    assert len(steps) == math.ceil(pairs / batch_pairs)
    sizes = {len(step) for step in steps}
    assert max(sizes) <= batch_pairs
    assert max(sizes) - min(sizes) <= 1
    assert order.per_step == " or ".join(map(str, sorted(sizes)))
    assert order.ends_epoch(first + order.steps_per_epoch)
    assert order.epoch(first) == epoch


def test_steps_depend_on_seed_and_step_alone():
    """Another object, asked in another order, gives the same steps; other seeds and epochs do not
    (two of 97! orders are equal by chance once in 10^152)."""
    order = Order(97, 10, 30, seed=3)
    forward = [order.numbers(step).tolist() for step in range(30)]
    again = Order(97, 10, 12345, seed=3)
    backward = [again.numbers(step).tolist() for step in reversed(range(30))]
    assert forward == backward[::-1]
    other = Order(97, 10, 30, seed=4)
    assert forward != [other.numbers(step).tolist() for step in range(30)]
    assert forward[:10] != forward[10:20]


def test_pairs_of_a_step():
    order = Order(5, 3, 3, seed=0)
    pairs = tiny_models.random_examples([(1, 1, 1)] * 5)
    for step in range(3):
        taken = [pair[0] for pair in order.examples_of(pairs, step)]
        assert taken == order.numbers(step).tolist()


def test_the_number_of_steps():
    """6,750 pairs in steps of 128 are 52.7, so 53 an epoch, of 6,750 / 53 = 127.4 pairs."""
    order = make_order(Config(), 6750)
    assert (order.steps_per_epoch, order.total_steps) == (53, 159)
    assert {len(order.numbers(step)) for step in range(53)} == {127, 128}
    for steps in (7, 1000):
        limited = make_order(Config(train=TrainConfig(max_steps=steps)), 6750)
        assert limited.total_steps == steps
