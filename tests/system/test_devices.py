"""The devices that a plan knows, and how a user names them."""

import pytest

from tddpo_jax.errors import UserError
from tddpo_jax.system.devices import DEVICES, GIB, find_device, target_config


def test_every_device_has_a_rate_and_a_description():
    for device in DEVICES.values():
        assert device.rate > 5e13
        assert str(device.memory) in target_config(device)


@pytest.mark.parametrize(
    ("name", "near"),
    [("h200", "h200-141"), ("4090", "rtx-4090"), ("L40S", "l40s"), ("a100", "a100-40 or a100-80")],
)
def test_an_unknown_device_is_told_with_one_like_it(name, near):
    with pytest.raises(
        UserError, match=rf"^device: there is no device '{name}'; did you mean {near}"
    ):
        find_device(name)


def test_a_device_may_have_other_numbers():
    name, device = find_device("l4", memory=48.0, tflops=150.0)
    assert name == "l4 with 48 GiB and 150 TFLOP/s"
    assert (device.memory, device.rate) == (48 * GIB, 150e12)
    assert device.bandwidth == DEVICES["l4"].bandwidth
    assert find_device("l4") == ("l4", DEVICES["l4"])
    for number in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"^device-memory: must be a number above 0, got "):
            find_device("l4", memory=number)
        with pytest.raises(UserError, match=r"^device-tflops: must be a number above 0, got "):
            find_device("l4", tflops=number)
