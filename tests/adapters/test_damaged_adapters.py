"""Damaged files of an adapter: its settings, or one line that says what is wrong."""

import itertools
import json

import numpy as np
import pytest
import tiny_models
from damage import flips, odd_json, read_damaged, truncations
from safetensors.numpy import load_file, save_file
from tiny_adapters import adapted

from tddpo_jax.adapters.peft_files import export_adapter, load_adapter, read_peft_config
from tddpo_jax.errors import UserError
from tddpo_jax.weights import locate

SETTINGS = {
    "peft_type": "LORA",
    "base_model_name_or_path": "embedded",
    "r": 4,
    "lora_alpha": 8.0,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj"],
    "rank_pattern": {},
    "init_lora_weights": True,
}


def test_settings_of_an_adapter(tmp_path, monkeypatch):
    def nothing_there(hub_id):
        raise UserError(hub_id)

    monkeypatch.setattr(locate, "_fetched", nothing_there)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(SETTINGS))
    content = file.read_bytes()

    def read():
        assert locate.resolve(str(tmp_path)).adapter == tmp_path
        config = read_peft_config(tmp_path)
        assert config.rank >= 1
        assert config.scale > 0
        assert 0 <= config.dropout < 1

    read()
    contents = itertools.chain(truncations(content), flips(content, 7), odd_json(content))
    usable, tried = read_damaged(file, contents, read)
    assert 0 < usable < tried


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base in memory and the folder of an adapter on one of its layers."""
    base = tiny_models.save(tmp_path_factory.mktemp("base"), tiny_models.hugging_face())
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    ours = adapted(tiny_models.load(base), 1, rank=2, alpha=4.0, targets=("k_proj",))
    export_adapter(ours, folder, str(base))
    return tiny_models.load(base), folder


def test_factors_of_an_adapter(trained):
    """Factors that are used are numbers of the right shape; the header is what gets damaged."""
    model, folder = trained
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")

    def read():
        load_adapter(model, folder, tiny_models.one_device())
        adapter = model.layers.k_proj.adapter
        assert adapter.a.shape == (tiny_models.CONFIG.layers, 2, tiny_models.CONFIG.width)
        assert adapter.a[...].dtype == adapter.b[...].dtype == np.float32

    read()
    heads = (head + content[size:] for head in flips(content[:size], 11))
    values = (
        len(head).to_bytes(8, "little") + head + content[size:]
        for head in odd_json(content[8:size])
    )
    for contents in (truncations(content, 5), heads, values):
        usable, tried = read_damaged(file, contents, read)
        assert usable < tried


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float64])
def test_factors_of_another_dtype_are_named(trained, tmp_path, dtype):
    model, folder = trained
    tensors = load_file(folder / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    changed = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(changed, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_model.safetensors: .* is stored as"):
        load_adapter(model, tmp_path, tiny_models.one_device())
