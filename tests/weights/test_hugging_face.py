"""Hugging Face folder to our tree and back, bit for bit, and what is refused by name."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from flax import nnx
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers import LlamaConfig as HuggingFaceConfig

from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.models.rope import RopeScaling
from tddpo_jax.models.tensor_table import hub_tensors, parameter_count
from tddpo_jax.placement.shardings import path_name
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.tensor_files import WEIGHT_FILES, write_tensors

SINGLE, INDEX = WEIGHT_FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in one file, float32, embeddings not tied; tests change copies of it."""
    return tiny_models.save(
        tmp_path_factory.mktemp("convert") / "model", tiny_models.hugging_face()
    )


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory):
    model = tiny_models.hugging_face(tie_word_embeddings=True)
    return tiny_models.save(tmp_path_factory.mktemp("convert") / "tied", model)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def assert_same_tensors(actual, expected):
    """The same names, shapes, dtypes and bits."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (tensor.dtype, tensor.shape), name
        assert actual[name].tobytes() == tensor.tobytes(), name


# ---- config.json ---------------------------------------------------------------------------------


def test_the_config_is_read(folder):
    """Expected: the attributes that `tiny_models.hugging_face` wrote."""
    assert hugging_face.read_config(folder) == tiny_models.CONFIG


LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # As transformers 4 wrote it; Llama-1 and Llama-2 left theta out, which meant 10,000.
        ({"rope_parameters": None, "rope_theta": 777.5}, {"rope_theta": 777.5}),
        ({"rope_parameters": None, "rope_scaling": None}, {"rope_theta": 10000.0}),
        (
            {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": LLAMA_3},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
        ),
        (
            {"rope_parameters": {**LLAMA_3, "rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
        ),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0}, {"rope_theta": 5.0}),
        (
            {"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0, "rope_scaling": LLAMA_3},
            {"rope_theta": 7.0, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
        ),
        ({"head_dim": None}, {"head_size": 4}),
        ({"num_key_value_heads": None}, {"key_value_heads": 6}),
        ({"tie_word_embeddings": None}, {"tied": False}),
        ({"attention_bias": False, "pretraining_tp": 1, "hidden_act": "silu"}, {}),
        ({"torch_dtype": "bfloat16", "max_sequence_length": 4096, "bos_token_id": 7}, {}),
        ({"is_llama_config": True, "rope_interleaved": False}, {}),
        ({"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}, {}),
        ({"unsloth_version": "2024.9", "unsloth_fixed": True, "_flash_attn_2_enabled": True}, {}),
        ({"model_type": "mistral"}, {"window": 4096}),
        ({"model_type": "mistral", "sliding_window": 7}, {"window": 7}),
        ({"model_type": "qwen2", "use_sliding_window": False}, {"biases": True}),
        ({"model_type": "qwen3"}, {"head_norms": True}),
        ({"model_type": "qwen3", "head_dim": None}, {"head_norms": True, "head_size": 128}),
        (
            {"model_type": "qwen2", "sliding_window": 7, "max_window_layers": 1},
            {"biases": True},
        ),
        ({"temperature": 0.6, "pruned_heads": {}, "add_cross_attention": False}, {}),
    ],
)
def test_older_and_shorter_configs_are_understood(changes, expected, copy):
    """Expected: what transformers takes for an absent attribute."""
    tiny_models.change_config(copy, **changes)
    assert hugging_face.read_config(copy) == dataclasses.replace(tiny_models.CONFIG, **expected)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"logit_soft_cap": 30}, "logit_soft_cap is not understood"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"model_type": "gpt2"}, "model_type = 'gpt2' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"sliding_window": 4096}, "sliding_window = 4096 is not supported"),
        (
            {"model_type": "qwen2", "use_sliding_window": True},
            "use_sliding_window = True is not supported",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types = 'sliding_attention' is not supported",
        ),
        ({"model_type": "mistral", "sliding_window": "7"}, "sliding_window must be a whole number"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number"),
        ({"pretraining_tp": 2}, "pretraining_tp = 2 is not supported"),
        ({"rope_interleaved": True}, "rope_interleaved = True is not supported"),
        ({"pruned_heads": {"1": [0]}}, "pruned_heads = {'1': "),
        ({"hidden_size": "24"}, "hidden_size must be a whole number from 1 to .*, got '24'"),
        ({"hidden_size": 2**31}, "hidden_size must be a whole number"),
        ({"head_dim": 0}, "head_dim must be a whole number from 1 to .*, got 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads must be a whole number"),
        ({"num_attention_heads": -6}, "num_attention_heads must be a whole number"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10000"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be a positive number, got -1e-05"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, got nan"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' is neither true nor false"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be a positive number, got 0"),
        ({"rope_parameters": "llama3"}, "rope_scaling = 'llama3' is not an object"),
        ({"rope_parameters": {**LLAMA_3, "factor": "8"}}, "factor must be a positive number"),
        ({"rope_parameters": {**LLAMA_3, "low_freq_factor": 5}}, "low_freq_factor must be at most"),
        ({"model_type": ["llama"]}, r"model_type = \['llama'\] is not supported"),
        (
            {"num_key_value_heads": 5},
            r"num_attention_heads \(6\) must be a multiple of num_key_value_heads \(5\)",
        ),
        ({"quantization_config": {"bits": 4}}, r"quantization_config = \{'bits': 4\}"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'"),
        *(
            ({name: None}, f"{name} is missing")
            for name in (
                "model_type",
                "hidden_size",
                "rms_norm_eps",
                "vocab_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "max_position_embeddings",
            )
        ),
    ],
)
def test_a_config_that_is_not_understood_is_refused(changes, problem, copy):
    tiny_models.change_config(copy, **changes)
    with pytest.raises(ValueError, match=rf"copy/config\.json: .*{problem}"):
        hugging_face.read_config(copy)


def test_a_models_own_code_is_never_run(copy):
    """A known type is computed by us; of an unknown one the refusal says what it asks for."""
    asked = r"auto_map asks to run code of its own \(own\.OwnModel\), which is never run"
    tiny_models.change_config(copy, auto_map={"AutoModelForCausalLM": "own.OwnModel"})
    with pytest.warns(UserWarning, match=rf"config\.json: {asked}"):
        assert hugging_face.read_config(copy) == tiny_models.CONFIG
    tiny_models.change_config(copy, model_type="own")
    with pytest.raises(ValueError, match=rf"model_type = 'own' is not supported .*; {asked}"):
        hugging_face.read_config(copy)


@pytest.mark.parametrize(
    ("text", "problem"), [("{", "not JSON"), ("[]", "must hold a JSON object"), (None, "No such")]
)
def test_a_config_that_is_no_object_is_refused(text, problem, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json: {problem}"):
        hugging_face.read_config(tmp_path)


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_there_and_back_bit_for_bit(dtype, sharded, tmp_path, monkeypatch):
    """Expected: the tensors as transformers wrote them; our shards have its names and index."""
    settings = {"max_shard_size": "6KB"} if sharded else {}
    if sharded:
        monkeypatch.setattr(hugging_face, "SHARD_BYTES", 6000)
    theirs = tiny_models.hugging_face(dtype=getattr(torch, dtype))
    source = tiny_models.save(tmp_path / "source", theirs, **settings)
    model = tiny_models.load(source)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(dtype)}
    assert checkpoint_dtype(source) == jnp.dtype(dtype)
    hugging_face.export(model, source, tmp_path / "output")
    assert_same_tensors(tiny_models.tensors_of(tmp_path / "output"), tiny_models.tensors_of(source))
    assert_transformers_agrees(tmp_path / "output", source)
    files = sorted(file.name for file in (tmp_path / "output").glob("*.safetensors"))
    if not sharded:
        assert files == [SINGLE]
        return
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "output" / INDEX).read_text())
    total = sum(tensor.nbytes for tensor in tiny_models.tensors_of(source).values())
    assert index["metadata"]["total_size"] == total
    for file in files:
        held = load_file(tmp_path / "output" / file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 6000
        assert {index["weight_map"][name] for name in held} == {file}


def assert_transformers_agrees(folder, source):
    """transformers loads both folders and computes the very same logits."""
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (folder, source)]
    assert models[0].dtype == models[1].dtype
    with torch.no_grad():
        logits = [model(torch.arange(1, 20)[None]).logits for model in models]
    assert torch.equal(*logits)


def test_tied_embeddings_there_and_back(tied_folder, tmp_path):
    """No head is made, none is written."""
    model = tiny_models.load(tied_folder)
    assert not hasattr(model, "head")
    hugging_face.export(model, tied_folder, tmp_path / "output")
    assert_same_tensors(
        tiny_models.tensors_of(tmp_path / "output"), tiny_models.tensors_of(tied_folder)
    )
    assert "lm_head.weight" not in tiny_models.tensors_of(tmp_path / "output")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "output").config.tie_word_embeddings


def test_another_dtype_is_rounded_once(folder, tmp_path):
    """Expected: numpy's rounding of the float32 tensors, on the way in and on the way out."""
    expected = {name: t.astype(jnp.bfloat16) for name, t in tiny_models.tensors_of(folder).items()}
    model = tiny_models.load(folder, jnp.bfloat16)
    hugging_face.export(model, folder, tmp_path / "in")
    assert_same_tensors(tiny_models.tensors_of(tmp_path / "in"), expected)
    hugging_face.export(tiny_models.load(folder), folder, tmp_path / "out", jnp.bfloat16)
    assert_same_tensors(tiny_models.tensors_of(tmp_path / "out"), expected)


def test_sharded_and_single_files_are_the_same_model(folder, tmp_path):
    sharded = tiny_models.save(
        tmp_path / "sharded", tiny_models.hugging_face(), max_shard_size="6KB"
    )
    jax.tree.map(np.testing.assert_array_equal, tiny_models.load(folder), tiny_models.load(sharded))


def test_weights_go_straight_to_their_places(tmp_path):
    """On a mesh every device holds its part: of 72 outputs an eighth."""
    even = {"vocab_size": 62, "intermediate_size": 40, "head_dim": 12}
    folder = tiny_models.save(tmp_path / "model", tiny_models.hugging_face(**even))
    mesh = tiny_models.mesh_of(1, 4, 2)
    model = hugging_face.load(folder, mesh)
    shards = model.layers.q_proj.weight.get_value().addressable_shards
    assert {shard.data.shape for shard in shards} == {(3, 9, 24)}
    assert len({str(shard.index) for shard in shards}) == 8
    hugging_face.export(model, folder, tmp_path / "output")
    assert_same_tensors(tiny_models.tensors_of(tmp_path / "output"), tiny_models.tensors_of(folder))


def test_other_files_are_kept_bit_for_bit(copy, tmp_path):
    """Config, generation settings, tokenizer and template; not weights, nor their index."""
    kept = {
        "generation_config.json": '{"eos_token_id":  [2, 7]}',
        "tokenizer.model": "\x00pieces",
        "chat_template.jinja": "{{ messages }}\n",
        "merges.txt": "a b\n",
    }
    for name, text in kept.items():
        (copy / name).write_text(text)
    (copy / "pytorch_model.bin.index.json").write_text("{}")
    kept["config.json"] = (copy / "config.json").read_text()
    hugging_face.export(tiny_models.load(copy), copy, tmp_path / "output")
    written = {file.name for file in (tmp_path / "output").iterdir()}
    assert written == {*kept, SINGLE}
    for name, text in kept.items():
        assert (tmp_path / "output" / name).read_text() == text


def test_an_interrupted_export_leaves_the_old_folder(folder, tmp_path, monkeypatch):
    """The folder appears whole or not at all, and the next export works."""
    model, output = tiny_models.load(folder), tmp_path / "output"
    monkeypatch.setattr(hugging_face, "SHARD_BYTES", 6000)
    written = []

    def write_two_files(path, *tensors):
        if len(written) == 2:
            raise OSError("No space left on device")
        written.append(path)
        write_tensors(path, *tensors)

    with monkeypatch.context() as patch:
        patch.setattr(hugging_face, "write_tensors", write_two_files)
        with pytest.raises(OSError, match="No space"):
            hugging_face.export(model, folder, output)
        assert not output.exists()
        shutil.copytree(folder, output)
        written.clear()
        with pytest.raises(OSError, match="No space"):
            hugging_face.export(model, folder, output)
    assert_same_tensors(tiny_models.tensors_of(output), tiny_models.tensors_of(folder))
    assert not (output / INDEX).exists()
    hugging_face.export(model, folder, output)
    assert (output / INDEX).exists()
    assert_same_tensors(tiny_models.tensors_of(output), tiny_models.tensors_of(folder))
    assert list(tmp_path.iterdir()) == [output]


# ---- weights that are refused --------------------------------------------------------------------

Q_PROJ = "model__layers__1__self_attn__q_proj__weight"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({Q_PROJ: None}, r"copy: tensor model\.layers\.1\.self_attn\.q_proj\.weight is missing"),
        ({"lm_head__weight": None}, r"copy: tensor lm_head\.weight is missing"),
        (
            {"model__layers__3__mlp__up_proj__weight": np.zeros((37, 24), np.float32)},
            r"model\.safetensors: tensor model\.layers\.3\.mlp\.up_proj\.weight is unknown",
        ),
        (
            {"model__layers__0__self_attn__q_proj__bias": np.zeros(60, np.float32)},
            r"tensor model\.layers\.0\.self_attn\.q_proj\.bias is unknown",
        ),
        (
            {Q_PROJ: np.zeros((24, 60), np.float32)},
            r"layers\.1\.self_attn\.q_proj\.weight has shape \[24, 60\].* requires \[60, 24\]",
        ),
        (
            {"model__norm__weight": np.zeros(23, np.float32)},
            r"model\.norm\.weight has shape \[23\], but config\.json requires \[24\]",
        ),
        (
            {Q_PROJ: np.zeros((60, 24), np.float16)},
            r"layers\.1\.self_attn\.q_proj\.weight is float16, but other layers are float32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, problem, copy):
    tiny_models.change_tensors(copy, **changes)
    with pytest.raises(ValueError, match=problem):
        tiny_models.load(copy)


def test_buffers_of_rotary_frequencies_are_passed_over(copy):
    """Checkpoints of Llama-1 and early Llama-2 hold one per layer; the config says the same."""
    buffer = np.ones(5, np.float32)
    tiny_models.change_tensors(copy, model__layers__0__self_attn__rotary_emb__inv_freq=buffer)
    found = tiny_models.count_parameters(tiny_models.load(copy))
    assert found == tiny_models.count_parameters(tiny_models.llama())


def test_a_tied_checkpoint_may_repeat_its_head(tied_folder, tmp_path):
    copy = shutil.copytree(tied_folder, tmp_path / "copy")
    embedding = tiny_models.tensors_of(copy)["model.embed_tokens.weight"]
    tiny_models.change_tensors(copy, lm_head__weight=embedding.copy())
    jax.tree.map(
        np.testing.assert_array_equal, tiny_models.load(copy), tiny_models.load(tied_folder)
    )
    tiny_models.change_tensors(copy, lm_head__weight=embedding + 1)
    problem = r"copy: lm_head\.weight must repeat model\.embed_tokens\.weight, but differs"
    with pytest.raises(ValueError, match=problem):
        tiny_models.load(copy)


# ---- Llama-2-7B ----------------------------------------------------------------------------------

LLAMA_2_7B = LlamaConfig(
    vocabulary=32000,
    width=4096,
    layers=32,
    heads=32,
    key_value_heads=32,
    head_size=128,
    feed_forward=11008,
    context=4096,
    rope_theta=10000.0,
    rope_scaling=None,
    norm_epsilon=1e-5,
    tied=False,
    biases=False,
    head_norms=False,
    window=None,
)


def test_llama_2_7b_has_exactly_the_tensors_of_transformers():
    """Expected: transformers' own model of that size, on the meta device, and the published count:

    2 x 32,000 x 4,096 + 32 x (4 x 4,096^2 + 3 x 4,096 x 11,008 + 2 x 4,096) + 4,096."""
    abstract = jax.eval_shape(lambda key: Decoder(LLAMA_2_7B, key), jax.random.key(0))
    assert tiny_models.count_parameters(abstract) == 6_738_415_616
    assert parameter_count(LLAMA_2_7B.parameters) == 6_738_415_616
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(abstract, nnx.Param))
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    ours = {
        name: shapes[parameter.path][layer is not None :]
        for name, (parameter, layer) in hub_tensors(LLAMA_2_7B.parameters).items()
    }
    with torch.device("meta"):
        theirs = LlamaForCausalLM(HuggingFaceConfig())
    assert ours == {name: tuple(weight.shape) for name, weight in theirs.named_parameters()}
