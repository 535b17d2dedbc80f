"""The time of a run that moves and reads the weights of experts."""

import dataclasses

import pytest
from llama_plans import config_of

from tddpo_jax.batches.layout import Shape
from tddpo_jax.planning.duration import Work, expected_time
from tddpo_jax.planning.memory import arithmetic
from tddpo_jax.system.devices import DEVICES
from tddpo_jax.training.step_order import make_order
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import model_folder


def test_experts_are_read_where_they_are_and_never_move():
    """gpt-oss-20b in full training on eight devices, one micro-batch in each step.

    Three times, a layer moves seven eighths of the weights of its linear layers and router, in two
    bytes each. With 32 experts more, only their rows of the router move as well.

    Each device has an eighth of them. An update takes 36 bytes for each of their weights, and the
    micro-batch 8 for its sum. Each of two passes reads 4, writes a copy of 2 and reads that. Their
    biases are below 1 %.
    """
    config, device = config_of("llama2_7b", mesh={"fsdp": 8}), DEVICES["h100-80"]
    model = read_config(model_folder("openai/gpt-oss-20b"))
    order = make_order(config, 100)
    operations = {"forward": 1.0, "reference": 1.0, "flops": 1.0}
    work = Work(order, micro_batches=1.0, padding=0.0, positions=0.0, members=1, **operations)

    def seconds_of_a_step(model):
        memory = arithmetic(config, model, Shape(8, 1024, 512, 4))
        time = expected_time(config, model, device, work, memory)
        return time.memory / order.total_steps, time.moving / order.total_steps

    (few_read, few_moved), (many_read, many_moved) = (
        seconds_of_a_step(each) for each in (model, dataclasses.replace(model, experts=64))
    )
    # Every layer's tokens go to experts and back, twice; remat gathers them a third time.
    tokens_work = dataclasses.replace(work, positions=8 * 1000.0)
    memory = arithmetic(config, model, Shape(8, 1024, 512, 4))
    (without, with_tokens) = (
        expected_time(config, model, device, each, memory).moving for each in (work, tokens_work)
    )
    moved = 5 * 24 * 7 * 1000 * 2880 * 2 * order.total_steps / device.link
    assert with_tokens - without == pytest.approx(moved)
    linear, router = 2880 * 144 * 64, 32 * 2880
    of_weight = 3 * 2 * 7 / 8 / device.link
    assert few_moved == pytest.approx(24 * (linear + router) * of_weight)
    assert many_moved - few_moved == pytest.approx(24 * router * of_weight)
    read = (many_read - few_read) * device.bandwidth
    products = 24 * 32 * 3 * 2880 * 2880 // 8
    assert config.model.remat == "dots"
    assert read == pytest.approx((36 + 8 + 2 * (4 + 2 + 2)) * products, rel=0.01)
