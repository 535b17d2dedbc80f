"""Mixtures in the settings: how they are named, what their weights are, and what is refused."""

import pytest

from tddpo_jax.config.cells import cell_name, expand, ignored_settings, varying_axes
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError


def cells(**loss):
    return [resolve(cell) for cell in expand({"loss": loss})]


def names(**loss):
    grid = cells(**loss)
    return [cell_name(cell, varying_axes(grid)) for cell in grid]


def test_weights_name_the_mixture_and_may_be_axes():
    assert names(mix={"dpo": 1, "sft": 0.2}) == ["dpo+sft-beta0.05-seed0"]
    assert names(mix={"dpo": 1, "sft": [0.1, 0.2]}, beta=0.1) == [
        "dpo+sft-beta0.1-sft0.1-seed0",
        "dpo+sft-beta0.1-sft0.2-seed0",
    ]
    assert names(mix={"td_dpo": 1, "sft": 1}, tau=2) == ["td_dpo+sft-beta0.05-tau2.0-seed0"]


def test_beside_other_losses_a_mixture_is_named_like_them():
    grid = cells(name=["dpo", "dpo+sft"], mix={"sft": [0.1, 0.2]})
    assert [cell.loss.mix for cell in grid] == [
        {},
        {"dpo": 1.0, "sft": 0.1},
        {"dpo": 1.0, "sft": 0.2},
    ]
    assert [cell.loss.title for cell in grid] == ["dpo", "dpo+sft", "dpo+sft"]


def test_its_numbers_are_those_of_its_parts():
    (config,) = cells(name="dpo+sft", label_smoothing=0.1, tau=2)
    expected = {"name": "dpo+sft", "dpo": 1.0, "sft": 1.0, "label_smoothing": 0.1}
    assert config.loss.settings.items() >= expected.items()
    assert ignored_settings(config) == ["loss.tau"]


def test_written_settings_are_read_again():
    (config,) = cells(mix={"dpo": 1, "sft": "0.2"})
    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"mix": {"dpo": 1, "sfx": 1}}, r"loss\.name: dpo\+sfx: there is no loss 'sfx'; .*sft\?"),
        ({"name": "dpo+dpo"}, r"loss\.name: dpo\+dpo: names dpo twice"),
        ({"mix": {"dpo": 1}}, r"loss\.mix: must weigh two losses or more"),
        ({"mix": 3}, r"loss\.mix: must be a group of weights, got 3"),
        ({"mix": {"a.py:f": 1, "sft": 1}}, r"loss\.mix: a\.py:f is a loss of your own; add"),
        (
            {"name": "dpo", "mix": {"sft": 1}},
            r"loss\.mix\.sft: dpo is no sum .* --loss dpo\+sft$",
        ),
        ({"mix": {"dpo": 0, "sft": 0}}, r"loss\.mix: every weight of dpo\+sft is 0"),
        ({"mix": {"dpo": 1, "sft": -1}}, r"loss\.mix\.sft: must be at least 0, got -1"),
        ({"name": "dpo+sft", "beta": 0}, r"loss\.beta: must be above 0 for dpo\+sft, got 0"),
    ],
)
def test_mistakes_are_told_in_one_line(loss, message):
    with pytest.raises(UserError, match=f"^{message}"):
        cells(**loss)
