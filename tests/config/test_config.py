"""The schema: what resolves, what is refused in which words, and how lists become cells."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CONFIGS, ROOT

from tddpo_jax.config.cells import (
    cell_name,
    expand,
    grid_axes,
    ignored_settings,
    varying_axes,
)
from tddpo_jax.config.dotted import get, with_value, without_value
from tddpo_jax.config.reading import read_yaml, resolve, setting_fields
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES

CONFIG_FILES = sorted(CONFIGS.glob("*.yaml"))


# ---- YAML files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CONFIG_FILES, ids=lambda file: file.name)
def test_every_config_of_the_repository_resolves(file):
    configs = [resolve(cell) for cell in expand(read_yaml(file))]
    assert configs
    for config in configs:
        assert not ignored_settings(config), "a config that ships sets something nobody reads"


def test_the_embedded_config_is_there():
    assert "embedded.yaml" in [file.name for file in CONFIG_FILES]


@pytest.mark.parametrize("text", ["5e-7", "5.0e-7", "0.0000005", "'5e-7'"])
def test_a_number_without_a_dot_is_a_number(text, tmp_path):
    """PyYAML reads 5e-7 as a text."""
    file = tmp_path / "config.yaml"
    file.write_text(f"train:\n  learning_rate: {text}\n")
    assert resolve(read_yaml(file)).train.learning_rate == 5e-7


YAML_MISTAKES = {
    "a list": ("- loss\n", "must hold a mapping"),
    "a text": ("td_dpo", "must hold a mapping"),
    "nothing": ("", "must hold a mapping"),
    "half a list": ("loss: [", "not YAML"),
    "a tab": ("loss:\n\tbeta: 1\n", "not YAML"),
    "bytes": (b"\xff\xfe\xfa", "not YAML"),
}


@pytest.mark.parametrize("name", YAML_MISTAKES)
def test_what_is_no_mapping_is_refused_by_the_files_name(name, tmp_path):
    content, message = YAML_MISTAKES[name]
    file = tmp_path / "config.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"config .*config\.yaml: {message}"):
        read_yaml(file)


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match=f"config {path}: "):
            read_yaml(path)


# ---- validation ----------------------------------------------------------------------------------


def test_the_defaults_are_the_experiments_numbers():
    config = resolve({})
    assert (config.loss.name, config.loss.beta, config.loss.tau) == ("td_dpo", 0.05, 1.0)
    assert (config.train.learning_rate, config.train.weight_decay) == (1e-5, 0.01)
    assert (config.train.batch_pairs, config.train.epochs) == (128, 3)
    assert config.train.best_metric is None
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (16, 32, None)


@pytest.mark.parametrize(("mode", "rate"), [("full", 1e-5), ("lora", 1e-4), ("qlora", 1e-4)])
def test_the_default_learning_rate_is_that_of_the_mode(mode, rate):
    assert resolve({"train": {"mode": mode}}).train.learning_rate == rate
    given = {"mode": mode, "learning_rate": 3e-6}
    assert resolve({"train": given}).train.learning_rate == 3e-6
    described = dict(setting_fields())["train.learning_rate"].description
    assert f"{rate:g} for {mode}" in described


def test_an_unknown_mode_is_the_only_problem_told():
    with pytest.raises(ValueError, match=r"^train\.mode: [^;]*$"):
        resolve({"train": {"mode": "half"}})


REFUSED = {
    "loss.tau": [-1, 0, "cold", float("nan"), float("inf"), None, [1, 2]],
    "loss.beta": [-0.1, "much", float("nan"), float("-inf"), None],
    "loss.name": ["ppo", 3, None, {"a": 1}, [["dpo"]]],
    "loss.label_smoothing": [0.5, -0.1],
    "loss.kl": ["k3"],
    "loss.tao": [1.0],
    "model.path": [None, 3],
    "model.dtype": ["float16"],
    "data.max_length": [0, -5, "long", 1.5],
    "data.layout": ["packd"],
    "train.epochs": [0, 1.5, "three"],
    "train.batch_pairs": [0],
    "train.warmup_ratio": [1.5],
    "train.adam_b1": [1.0],
    "train.max_grad_norm": [0],
    "train.epoch": [3],
    "lora.rank": [0],
    "mesh.fsdp": [0, -2, 1.5],
    "seed": [-1, "a", 0.5],
    "loss": ["dpo", None, 3],
    "train": [[1, 2]],
    "sed": [1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_by_its_dotted_name(name):
    for value in REFUSED[name]:
        mapping = with_value({}, name, value)
        with pytest.raises(ValueError, match=rf"^{name}[:.]") as error:
            resolve(mapping)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lora.targets"])
def test_a_wrong_part_of_a_list_is_refused(name):
    for value in (["q_proj", 3], [], "q_proj"):
        with pytest.raises(ValueError, match=rf"^{name}"):
            resolve(with_value({}, name, value))


def test_every_problem_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"loss\.beta.*train\.epochs") as error:
        resolve({"loss": {"beta": "much"}, "train": {"epochs": 0}})
    assert "\n" not in str(error.value)


def test_a_beta_of_zero_is_td_dpos_alone():
    """Without its KL term TD-DPO still prefers; a DPO-like loss of beta 0 is constant."""
    assert resolve({"loss": {"beta": 0}}).loss.beta == 0
    with pytest.raises(ValueError, match=r"^loss\.beta: must be above 0 for dpo, got 0$"):
        resolve({"loss": {"name": "dpo", "beta": 0}})


def test_a_population_needs_adapters():
    assert resolve({"train": {"population": True, "mode": "lora"}}).train.population
    with pytest.raises(ValueError, match=r"^train\.population: needs train\.mode lora or qlora"):
        resolve({"train": {"population": True}})


@pytest.mark.parametrize(
    ("given", "meant"), [("no", False), (True, True), ("yes", True), ("1", 1), (4, 4), ("4", 4)]
)
def test_a_population_is_a_switch_or_a_largest_size(given, meant):
    population = resolve({"train": {"population": given, "mode": "lora"}}).train.population
    assert (population, type(population)) == (meant, type(meant))


@pytest.mark.parametrize("given", [-1, 2.5, "many"])
def test_a_population_of_another_size_is_refused(given):
    with pytest.raises(ValueError, match=r"^train\.population: must be yes or no, or "):
        resolve({"train": {"population": given, "mode": "lora"}})


@pytest.mark.parametrize(
    ("given_value", "resolved"),
    [(0, 0.0), ("0", 0.0), ("0.1", 0.1), ("test", "test"), ("held.jsonl", "held.jsonl")],
)
def test_validation_is_a_number_wherever_it_can_be(given_value, resolved):
    assert resolve({"data": {"validation": given_value}}).data.validation == resolved


def test_a_configuration_cannot_be_changed():
    config = resolve({})
    with pytest.raises(ValueError, match="frozen"):
        config.loss.beta = 1.0


# ---- settings that nobody reads ------------------------------------------------------------------


def test_each_loss_names_the_settings_it_reads():
    """And a configuration has each of them once, with its default: config.yaml is whole."""
    fields = [name for name, _ in setting_fields() if name.startswith("loss.")]
    read = {f"loss.{name}" for loss in LOSSES.values() for name in loss.settings}
    assert len(fields) == len(set(fields))
    assert {"loss.name", "loss.set", "loss.mix", *read} == set(fields)
    defaults = {
        name: setting.default for loss in LOSSES.values() for name, setting in loss.settings.items()
    }
    beside = {"name": "td_dpo", "set": {}, "mix": {}}
    assert dict(resolve({}).loss) == beside | defaults
    assert resolve({}).loss.settings == {"name": "td_dpo", **defaults}


def test_an_unknown_loss_is_refused_with_the_names_of_all():
    with pytest.raises(ValueError, match=r"^loss\.name: .* got 'ppo'") as error:
        resolve({"loss": {"name": "ppo"}})
    assert all(repr(name) in str(error.value) for name in LOSSES)


def test_configurations_are_equal_if_their_settings_are():
    """Grids drop cells that occur twice."""
    one, same, other = (resolve({"loss": {"beta": beta}}) for beta in (0.1, "1e-1", 0.2))
    assert one == same != other
    assert len({one.loss, same.loss, other.loss}) == 2


def test_the_schema_does_not_wait_for_jax():
    """`--help` and mistakes are told at once; jaxtyping too would be a third of that time."""
    code = "import sys, tddpo_jax.config.reading as r; r.resolve({}); print(*sys.modules)"
    names = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert "tddpo_jax.losses.dpo" in names
    assert not {"jax", "jaxtyping"} & set(names)


IGNORED = {
    "smoothing with td_dpo": ({"loss": {"label_smoothing": 0.1}}, ["loss.label_smoothing"]),
    "tau with dpo": ({"loss": {"name": "dpo", "tau": 2}}, ["loss.tau"]),
    "td_dpo's variants with discopop": (
        {"loss": {"name": "discopop", "margin": "log_ratio", "kl": "full"}},
        ["loss.kl", "loss.margin"],
    ),
    "beta with sft": ({"loss": {"name": "sft", "beta": 0.1}}, ["loss.beta"]),
    "a rank without adapters": ({"lora": {"rank": 4, "alpha": 8}}, ["lora.alpha", "lora.rank"]),
    "a rank with adapters": ({"lora": {"rank": 4}, "train": {"mode": "lora"}}, []),
    "routers with adapters": (
        {"train": {"mode": "lora", "router": "trained"}},
        ["train.router"],
    ),
    "a weight for frozen routers": ({"train": {"router_aux": 0.1}}, ["train.router_aux"]),
    "a weight for trained routers": ({"train": {"router": "trained", "router_aux": 0.1}}, []),
    "routers without adapters": ({"train": {"router": "trained"}}, []),
    "what td_dpo reads": ({"loss": {"beta": 1, "tau": 2, "margin": "log_ratio"}}, []),
}


@pytest.mark.parametrize("name", IGNORED)
def test_settings_that_are_given_and_not_read_are_named(name):
    mapping, ignored = IGNORED[name]
    assert ignored_settings(resolve(mapping)) == ignored


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"name": "ipo", "dpo_margin": "policy"},
            r"loss\.dpo_margin: has no effect on ipo; .* dpo",
        ),
        ({"name": "dpo", "margin": "log_ratio"}, r"loss\.margin: has no effect on dpo; .* td_dpo"),
        ({"name": ["dpo", "sft"], "kl": "full"}, r"loss\.kl: has no effect on dpo, sft; .* td_dpo"),
    ],
)
def test_a_form_that_no_loss_has_is_refused(loss, message):
    """A grid may have losses with it and losses without. Written settings hold every default."""
    with pytest.raises(UserError, match=f"^{message}"):
        expand({"loss": loss})
    both = {**loss, "name": ["td_dpo", "dpo"]}
    assert expand({"loss": both})
    rates = {"td_dpo": [1e-4, 3e-4], "dpo": [1e-5, 2e-5]}
    assert len(expand({"loss": both, "train": {"learning_rate": rates}})) == 4
    assert expand(resolve({"loss": {"name": "dpo"}}).model_dump())


# ---- grids ---------------------------------------------------------------------------------------


def test_lists_make_a_cell_for_every_combination():
    mapping = {"loss": {"beta": [0.1, 0.2], "tau": [1, 2]}, "seed": [0, 1], "train": {"epochs": 1}}
    cells = [resolve(cell) for cell in expand(mapping)]
    points = [(cell.loss.beta, cell.loss.tau, cell.seed) for cell in cells]
    assert points == [(b, t, s) for b in (0.1, 0.2) for t in (1, 2) for s in (0, 1)]
    assert all(cell.train.epochs == 1 for cell in cells)


def test_no_list_makes_one_cell_and_changes_nothing():
    mapping = {"loss": {"beta": 0.1}, "output": "runs/x"}
    assert expand(mapping) == [mapping]
    assert expand({}) == [{}]


def test_every_number_that_a_step_takes_may_be_an_axis():
    numbers = {
        f"loss.{name}"
        for loss in LOSSES.values()
        for name, setting in loss.settings.items()
        if not setting.choices
    }
    others = {"loss.name", "train.learning_rate", "train.weight_decay", "seed"}
    assert set(grid_axes()) == numbers | others
    for axis in numbers - {"loss.beta", "loss.tau", "loss.ld_alpha"}:
        reader = next(
            name for name, x in LOSSES.items() if axis.removeprefix("loss.") in x.settings
        )
        mapping = with_value({"loss": {"name": ["td_dpo", reader]}}, axis, [0.1, 0.2])
        cells = [resolve(cell) for cell in expand(mapping)]
        assert [cell.loss.name for cell in cells] == ["td_dpo", reader, reader]
        assert varying_axes(cells) == [axis]
    train = {"learning_rate": ["1e-4", 3e-4], "weight_decay": [0.0, 0.1]}
    cells = [resolve(cell) for cell in expand({"train": train, "seed": [0, 1]})]
    assert varying_axes(cells) == ["train.learning_rate", "train.weight_decay"]
    points = [(cell.train.learning_rate, cell.train.weight_decay, cell.seed) for cell in cells]
    assert points == [(r, d, s) for r in (1e-4, 3e-4) for d in (0, 0.1) for s in (0, 1)]


def test_a_name_has_a_part_for_every_axis_that_its_loss_reads():
    loss = {"name": ["td_dpo", "dpo"], "label_smoothing": [0.0, 0.1]}
    cells = [resolve(cell) for cell in expand({"loss": loss, "train": {"learning_rate": [1, 2]}})]
    axes = varying_axes(cells)
    assert [cell_name(cell, axes) for cell in cells] == [
        "td_dpo-beta0.05-tau1.0-learning_rate1.0-seed0",
        "td_dpo-beta0.05-tau1.0-learning_rate2.0-seed0",
        "dpo-beta0.05-label_smoothing0.0-learning_rate1.0-seed0",
        "dpo-beta0.05-label_smoothing0.0-learning_rate2.0-seed0",
        "dpo-beta0.05-label_smoothing0.1-learning_rate1.0-seed0",
        "dpo-beta0.05-label_smoothing0.1-learning_rate2.0-seed0",
    ]


def test_each_loss_may_have_rates_of_its_own():
    rates = {"td_dpo": [1e-3, 2e-3], "dpo": 1e-4}
    mapping = {"loss": {"name": ["td_dpo", "dpo"]}, "train": {"learning_rate": rates}}
    cells = [resolve(cell) for cell in expand(mapping)]
    found = [(cell.loss.name, cell.train.learning_rate) for cell in cells]
    assert found == [("td_dpo", 1e-3), ("td_dpo", 2e-3), ("dpo", 1e-4)]
    one_each = [cells[0], cells[2]]
    assert varying_axes(one_each) == []


def test_a_loss_without_tau_has_no_tau_axis():
    cells = expand({"loss": {"name": ["td_dpo", "dpo"], "tau": [0.5, 1, 2], "beta": [0.1]}})
    names = [cell_name(resolve(cell)) for cell in cells]
    td_dpo = [f"td_dpo-beta0.1-tau{tau}-seed0" for tau in (0.5, 1.0, 2.0)]
    assert names == [*td_dpo, "dpo-beta0.1-seed0"]
    assert ignored_settings(resolve(cells[-1])) == []


def test_an_empty_axis_is_refused():
    with pytest.raises(ValueError, match=r"loss\.beta: the list of values is empty"):
        expand({"loss": {"beta": []}})


def test_each_loss_may_have_its_learning_rate():
    mapping = {"loss": {"name": ["td_dpo", "dpo"]}, "train": {"learning_rate": {"td_dpo": 0.1}}}
    with pytest.raises(ValueError, match=r"^train\.learning_rate: gives no rate for dpo$"):
        expand(mapping)
    mapping["train"]["learning_rate"]["dpo"] = 0.2
    assert [resolve(cell).train.learning_rate for cell in expand(mapping)] == [0.1, 0.2]


def test_cells_are_named_by_their_point():
    named = {"loss": {"name": "discopop", "beta": "5e-2"}, "seed": 3}
    assert cell_name(resolve(named)) == "discopop-beta0.05-seed3"
    assert cell_name(resolve({"loss": {"tau": 2}})) == "td_dpo-beta0.05-tau2.0-seed0"


# ---- dotted names --------------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


@given(st.lists(st.tuples(NAMES, st.integers())))
def test_a_value_is_where_it_was_put(pairs):
    """Unless a name is the beginning of another, which is refused and not overwritten."""
    mapping = {}
    for name, value in pairs:
        beginnings = [name[:at] for at, letter in enumerate(name) if letter == "."]
        if any(isinstance(get(mapping, part), int) for part in beginnings):
            with pytest.raises(ValueError, match="must be a group of settings"):
                with_value(mapping, name, value)
            continue
        before = repr(mapping)
        changed = with_value(mapping, name, value)
        assert repr(mapping) == before
        assert get(changed, name) == value
        assert get(without_value(changed, name), name) is None
        mapping = changed


def test_an_option_does_not_replace_a_group_that_is_none():
    """`loss: dpo` in a file and `--beta` beside it: losing the file's word would be silent."""
    with pytest.raises(ValueError, match=r"^loss: must be a group of settings, got 'dpo'"):
        with_value({"loss": "dpo"}, "loss.beta", 0.1)


def test_configurations_are_equal_and_hashed_by_their_settings():
    """Cells of a grid are told apart so, also where a setting is a mapping."""
    settings = {"data": {"columns": {"prompt": "instruction"}}}
    one, same, other = resolve(settings), resolve(settings), resolve({})
    assert one == same
    assert len({one, same, other}) == 2
