"""Damaged files of an adapter: its settings, or one line that says what is wrong."""

import itertools
import json

from damage import flips, odd_json, read_damaged, truncations

from tddpo_jax.adapters.peft_files import read_peft_config
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
