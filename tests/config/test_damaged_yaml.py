"""Damaged config files: settings, or one line that says what is wrong."""

import json

import pytest
import yaml
from damage import flips, odd_values, read_damaged, truncations

from tddpo_jax.config.cells import expand
from tddpo_jax.config.reading import read_yaml, resolve

TEXT = """\
loss: {name: [dpo, td_dpo], beta: [0.1, 1], tau: 1.0}
seed: [0, 1]
data: {path: a.jsonl, columns: {prompt: p}, validation: 0.1}
train:
  learning_rate: {dpo: 1.0e-4, td_dpo: 2e-5}
lora: {targets: [q_proj]}
output: runs/x
"""
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12)
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    return path


def test_damaged_settings_are_refused_or_used(file):
    def read():
        return [resolve(cell) for cell in expand(read_yaml(file))]

    assert len(read()) == 8
    content = file.read_bytes()
    odd = (json.dumps(value).encode() for value in odd_values(yaml.safe_load(content)))
    for contents in (truncations(content, 3), flips(content, 17), odd):
        usable, tried = read_damaged(file, contents, read)
        assert 0 < usable < tried


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 400 + "]" * 400, "nested too deeply"),
        ("&a [*a]", "nested too deeply"),
        ("a: &a {b: *a}", "nested too deeply"),
        (LAUGHS, "nested too deeply"),
        ("seed: 2001-99-99", "not YAML: month must be in"),
        ("seed: !!python/object:os.system x", "not YAML"),
        ("seed: 1\n---\nseed: 2", "not YAML"),
    ],
)
def test_what_no_config_holds_is_refused_at_once(file, text, said):
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_yaml(file)


@pytest.mark.parametrize("section", ["model", "data"])
def test_an_empty_path_is_refused(section):
    with pytest.raises(ValueError, match=rf"{section}\.path: String should have at least 1 char"):
        resolve({section: {"path": ""}})
