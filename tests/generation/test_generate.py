"""Generation against transformers, token for token, and against itself in other company."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
from tiny_adapters import adapted

from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.adapters.lora import merged
from tddpo_jax.adapters.peft_files import export_adapter
from tddpo_jax.generation.batching import continue_prompts
from tddpo_jax.generation.decode import Prompts, cache_slots, generate_rows
from tddpo_jax.generation.generator import Completion, Generator, generate_text
from tddpo_jax.generation.sampling import Sampler, Sampling, row_keys
from tddpo_jax.placement.shardings import replicated
from tddpo_jax.weights import hugging_face

# Tests share shapes where they can, for a program takes seconds to compile.
EVEN = {"vocab_size": 62, "intermediate_size": 40}
SHAPES = {
    "grouped heads": EVEN,
    "as many key/value heads": {"num_key_value_heads": 6, "head_dim": 14},
    "one key/value head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}
LENGTHS = (1, 2, 7, 31, 32, 33, 90, 129)
STOPS = (3, 17, 40)
# One kind of sampling each.
SETTINGS = (
    Sampling(max_new_tokens=20),
    Sampling(temperature=0.9, max_new_tokens=17),
    Sampling(temperature=1.5, top_k=7, max_new_tokens=20),
    Sampling(temperature=1.1, top_p=0.8, max_new_tokens=11),
)


def prompts_of(lengths) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, tiny_models.CONFIG.vocabulary, length).astype(np.int32)
        for length in lengths
    ]


def llama(**changes):
    return tiny_models.llama(vocabulary=62, feed_forward=38, **changes)


def on_one_device(model):
    return jax.device_put(model, replicated(tiny_models.one_device()))


@functools.cache
def plain():
    return adapter_set([on_one_device(llama())])


def continued(models, prompts, sampling=None, keys=None, adapters=None, **changes):
    """Greedy, 40 new tokens, unless said otherwise."""
    sampling = sampling or [Sampling(max_new_tokens=40)] * len(prompts)
    keys = keys or [(0,)] * len(prompts)
    settings = {"stop_ids": STOPS, "bos": 1, "mesh": tiny_models.one_device(), "dtype": jnp.float32}
    return continue_prompts(models, prompts, sampling, keys, adapters, **{**settings, **changes})


# ---- against transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_tokens_are_those_of_transformers(name, tmp_path):
    """Mixed lengths in one batch, rows that end early and rows that do not; the longest prompt and
    its answer take two blocks of the cache. Expected: transformers, padded on the left."""
    theirs = tiny_models.hugging_face(**SHAPES[name])
    ours = adapter_set([tiny_models.load(tiny_models.save(tmp_path / "model", theirs))])
    prompts = prompts_of(LENGTHS)
    found = continued(ours, prompts)
    padded = [np.pad(prompt, (129 - len(prompt), 0)) for prompt in prompts]
    mask = [np.pad(np.ones_like(prompt), (129 - len(prompt), 0)) for prompt in prompts]
    expected = theirs.generate(
        torch.from_numpy(np.stack(padded)),
        attention_mask=torch.from_numpy(np.stack(mask)),
        do_sample=False,
        max_new_tokens=40,
        eos_token_id=list(STOPS),
        pad_token_id=0,
    )
    for answer, row in zip(found, expected[:, 129:].tolist(), strict=True):
        assert answer.token_ids == row[: len(answer.token_ids)]
        # Behind an end of turn they go on with padding.
        assert not any(row[len(answer.token_ids) :])
    assert {answer.finish_reason for answer in found} == {"stop", "length"}
    assert len({token for answer in found for token in answer.token_ids}) > 20


# ---- independence --------------------------------------------------------------------------------


def test_a_batch_of_80_mixed_prompts_is_what_they_are_one_by_one():
    """Also in another order: a row depends on its prompt, its settings and its key alone."""
    prompts = prompts_of(np.random.default_rng(1).integers(1, 33, 80))
    sampling = [SETTINGS[number % 4] for number in range(80)]
    keys = [(5, number, 1) for number in range(80)]
    together = continued(plain(), prompts, sampling, keys)
    backwards = continued(plain(), prompts[::-1], sampling[::-1], keys[::-1])
    assert backwards[::-1] == together
    alone = [
        continued(plain(), [prompt], [settings], [key])[0]
        for prompt, settings, key in zip(prompts, sampling, keys, strict=True)
    ]
    assert alone == together
    assert {answer.finish_reason for answer in together} == {"stop", "length"}


def test_batches_that_the_memory_forces_change_nothing(monkeypatch):
    """Prompts are batched by length and answered in the order they were asked."""
    short, long = prompts_of(range(129, 137)), prompts_of(range(137, 145))
    expected = [*continued(plain(), long), *continued(plain(), short)]
    # 3 layers x 2 heads x 10 features x 256 slots x (keys, values) x 4 bytes a row; room for 15.
    monkeypatch.setattr("tddpo_jax.generation.batching.CPU_CACHE_BYTES", 15 * 122_880)
    shapes = []

    def watched(model, prompts, *rest, **named):
        shapes.append(prompts.tokens.shape)
        return generate_rows(model, prompts, *rest, **named)

    monkeypatch.setattr("tddpo_jax.generation.batching.generate_rows", watched)
    assert continued(plain(), [*long, *short]) == expected
    assert shapes == [(8, 192), (8, 192)]


def test_more_padding_changes_nothing(monkeypatch):
    """At least 161 empty slots before each prompt, so that a whole block of 128 is not visited."""
    expected = continued(plain(), prompts_of(LENGTHS))[:4]
    monkeypatch.setattr("tddpo_jax.generation.batching._shape", lambda batch: (192, 48))
    assert continued(plain(), prompts_of(LENGTHS)[:4] * 2) == expected * 2


def test_the_devices_change_nothing(tmp_path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.hugging_face(**EVEN))
    sampling = [settings._replace(max_new_tokens=40) for settings in SETTINGS * 2]
    keys = [(0, number) for number in range(8)]
    ask = functools.partial(continued, prompts=prompts_of(LENGTHS), sampling=sampling, keys=keys)
    mesh = tiny_models.mesh_of(2, 2, 2)
    eight = ask(adapter_set([hugging_face.load(folder, mesh)]), mesh=mesh)
    assert eight == ask(adapter_set([tiny_models.load(folder)]))


def test_settings_compile_nothing():
    """Temperature, top-k, top-p, limits, keys and adapters are arguments of one program."""
    prompts = prompts_of(LENGTHS)
    continued(plain(), prompts)
    programs = generate_rows._cache_size()
    varied = [settings._replace(max_new_tokens=33 + n) for n, settings in enumerate(SETTINGS * 2)]
    continued(plain(), prompts[::-1], varied, [(9, n) for n in range(8)])
    assert generate_rows._cache_size() == programs


def test_keys_settle_the_randomness():
    prompts = prompts_of([129]) * 8
    sampling = [Sampling(temperature=1.0, max_new_tokens=40)] * 8
    keys = [(0, 81, 1), (0, 81, 1), (1, 81, 1), (0, 82, 1), (0, 81, 2), (1, 81, 0), (81, 0, 1)]
    keys.append((0, 1, 81))
    found = continued(plain(), prompts, sampling, keys, stop_ids=(-1,))
    assert found[0] == found[1]
    assert len({tuple(answer.token_ids) for answer in found}) == 7


# ---- what does not fit, and mistakes -------------------------------------------------------------


def test_a_prompt_that_does_not_fit_keeps_its_beginning_of_sequence_and_its_end():
    """Context 256 and 40 new tokens leave room for 216."""
    long = prompts_of([300])[0]
    with_bos = np.concatenate([[1], long]).astype(np.int32)
    fitting = prompts_of([216])[0]
    answers = continued(plain(), [long, with_bos, fitting])
    assert [answer.prompt_cut for answer in answers] == [True, True, False]
    ends = [long[-216:], np.concatenate([[1], long[-215:]]).astype(np.int32), fitting]
    assert [a._replace(prompt_cut=False) for a in answers] == continued(plain(), ends)


@pytest.mark.parametrize(
    ("prompt", "sampling", "adapter", "message"),
    [
        ([], {}, 0, "prompt 1 is empty"),
        ([62], {}, 0, "prompt 1 holds the id 62, but the model's ids are 0 to 61"),
        ([5], {"max_new_tokens": 256}, 0, "max_new_tokens: 256 leaves no room .* context of 256"),
        ([5], {"max_new_tokens": 0}, 0, "max_new_tokens: 0"),
        ([5], {"temperature": -0.1}, 0, "temperature: -0.1"),
        ([5], {"temperature": float("nan")}, 0, "temperature: nan"),
        ([5], {"top_k": -1}, 0, "top_k: -1"),
        ([5], {"top_p": 0.0}, 0, "top_p: 0"),
        ([5], {"top_p": 1.1}, 0, "top_p: 1.1"),
        ([5], {}, 1, "prompt 1: there is no adapter 1"),
    ],
)
def test_mistakes_are_named(prompt, sampling, adapter, message):
    prompts = [np.array([5]), np.array(prompt, int)]
    settings = [Sampling(max_new_tokens=9), Sampling(**{"max_new_tokens": 9, **sampling})]
    with pytest.raises(ValueError, match=message):
        continued(plain(), prompts, settings, adapters=[0, adapter])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([(1,), (1, 2)], "keys: every row"),
        ([(1,), (-1,)], "seed: must be at least 0 .* got -1"),
        ([(1,), (2**32,)], "seed: must be at least 0 and below"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        continued(plain(), prompts_of([1, 1]), keys=keys)


def test_nothing_asked_is_nothing_answered():
    assert continued(plain(), []) == []


# ---- adapters ------------------------------------------------------------------------------------


def test_several_adapters_in_one_batch_are_each_merged_alone():
    """Different ranks, scales and targets; -1 is the base."""
    base = on_one_device(llama())
    models = [
        adapted(base, 1, rank=3, alpha=5.0),
        adapted(base, 2, rank=2, alpha=7.0, targets=("q_proj", "down_proj")),
        adapted(base, 3, rank=5, alpha=2.0, targets=("v_proj", "o_proj", "up_proj")),
    ]
    index = [0, 1, 2, -1, 2, 0, -1, 1]
    found = continued(adapter_set(models), prompts_of(LENGTHS), adapters=index)
    single = [merged(model, jnp.float32) for model in [*models, base]]
    answers = [continued(adapter_set([model]), prompts_of(LENGTHS)) for model in single]
    assert found == [answers[number][row] for row, number in enumerate(index)]
    assert len({str(rows) for rows in answers}) == 4


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "length", "new", "slots"),
    [("cpu", 128, 1, 256), ("gpu", 128, 128, 256), ("gpu", 128, 384, 512), ("gpu", 128, 385, 1024)],
)
def test_a_cache_is_blocks_of_128_or_many_of_512(backend, length, new, slots, monkeypatch):
    """On GPUs attention reads up to 512 slots at once, and a shorter cache whole."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert cache_slots(length, new) == slots


def test_the_loop_works_on_one_cache():
    """Beside the cache, 8 rows x 4,096 slots x 480 bytes, the program takes less than one more of
    its two halves: no step copies it."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (
            Prompts(np.zeros((8, 32), np.int32), np.zeros(8, np.int32)),
            Sampler(np.zeros(8, np.float32), np.zeros(8, np.int32), np.zeros(8, np.float32), None),
        ),
    )
    prompts, sampler = shapes
    sampler = sampler._replace(key=jax.eval_shape(row_keys, np.zeros((8, 1), np.uint32)))
    program = generate_rows.lower(
        plain().model,
        prompts,
        sampler,
        np.zeros(8, np.int32),
        np.asarray(STOPS, np.int32),
        new=4064,
        dtype=jnp.float32,
        mesh=tiny_models.one_device(),
    ).compile()
    cache = 8 * 4096 * 3 * 2 * 10 * 2 * 4
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * cache


# ---- from files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = tiny_tokenizers.sentencepiece()
    model = tiny_models.hugging_face(vocab_size=len(tokenizer), tie_word_embeddings=True)
    return tiny_models.save(tmp_path_factory.mktemp("files") / "model", model, tokenizer)


def test_text_continues_the_prompt_and_has_no_end_of_turn(folder):
    ask = functools.partial(generate_text, str(folder), "the red ball", raw=True, max_new_tokens=20)
    whole = ask()
    assert (len(whole.token_ids), whole.finish_reason) == (20, "length")
    tokenizer = Generator.from_path(str(folder)).tokenizer
    prompt = tokenizer("the red ball")["input_ids"]
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    assert decode(prompt) + whole.text == decode(prompt + whole.token_ids)

    # The checkpoint now names a later token as an end, beside the tokenizer's </s>.
    place = next(n for n in range(3, 20) if whole.token_ids[n] not in whole.token_ids[:n])
    file = folder / "generation_config.json"
    before = file.read_text()
    file.write_text(json.dumps({"eos_token_id": [2, whole.token_ids[place]]}))
    stopped = ask()
    file.write_text(before)
    assert (stopped.token_ids, stopped.finish_reason) == (whole.token_ids[: place + 1], "stop")
    assert decode(prompt) + stopped.text == decode(prompt + whole.token_ids[:place])


def test_what_the_checkpoint_cannot_mean_is_refused(folder):
    """Ids that no row of the embedding has, and ends of text that are no ids."""
    generator = Generator.from_path(str(folder))
    beyond = [np.array([1, generator.adapters.model.config.vocabulary])]
    with pytest.raises(ValueError, match=r"prompt 0 holds the id \d+, but the model's ids"):
        generator.generate(beyond, [Sampling(max_new_tokens=1)], [(0,)])
    with pytest.raises(ValueError, match="half a surrogate pair"):
        generate_text(str(folder), "\ud800", max_new_tokens=1)

    file = folder / "generation_config.json"
    before = file.read_text()
    for wrong in ("</s>", True, [2, None]):
        file.write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id must be"):
            Generator.from_path(str(folder))
    file.write_text(before)


def test_one_prompt_goes_through_the_template_with_its_settings(folder, monkeypatch):
    asked = []

    def generate(self, prompts, sampling, keys):
        asked.append((self.tokenizer.decode(prompts[0]), sampling, keys))
        return [Completion("", [], "stop", False)]

    monkeypatch.setattr(Generator, "generate", generate)
    generate_text(str(folder), "hello", template="llama-2", temperature=0.5, top_k=3, seed=7)
    generate_text(str(folder), "hello", raw=True, top_p=0.9, max_new_tokens=20)
    (chat, chat_sampling, keys), (raw, raw_sampling, _) = asked
    assert chat == "<s> [INST] hello [/INST]"
    # No limit given: 256, or half the context of 256 if that is less.
    assert chat_sampling == [Sampling(0.5, 3, 1.0, 128)]
    assert keys == [(7,)]
    assert raw == "<s> hello"
    assert raw_sampling == [Sampling(0.0, 0, 0.9, 20)]


def test_adapter_folders_and_run_directories_are_models(folder, tmp_path):
    """In one generator, unmerged: the best/ of a LoRA run, a PEFT folder and the base of both.
    Expected: each merged into a folder of its own."""
    base = tiny_models.load(folder)
    models = [adapted(base, seed, rank=2, targets=("q_proj", "up_proj")) for seed in (1, 2)]
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    export_adapter(models[0], run / "best", str(folder))
    export_adapter(models[1], other, str(folder))
    prompt, settings = prompts_of([9])[0], Sampling(max_new_tokens=20)
    generator = Generator.from_path([str(run), str(other), str(folder)])
    found = generator.generate([prompt] * 3, [settings] * 3, [(0,)] * 3, [0, 1, 2])
    for number, model in enumerate(models):
        hugging_face.export(merged(model, jnp.float32), folder, tmp_path / f"merged{number}")
    for path, answer in zip(
        [tmp_path / "merged0", tmp_path / "merged1", folder], found, strict=True
    ):
        assert Generator.from_path(str(path)).generate([prompt], [settings], [(0,)]) == [answer]
    assert len({answer.text for answer in found}) == 3


def test_adapters_that_need_different_forms_of_the_base_are_refused(folder, tmp_path):
    """The base serves all of them, and it is either in four bits or not."""
    adapter = adapted(tiny_models.load(folder), 1, rank=2, targets=("q_proj",))
    export_adapter(adapter, tmp_path / "plain", str(folder))
    shutil.copytree(tmp_path / "plain", tmp_path / "four")
    (tmp_path / "four" / "quantized_base.json").write_text("{}\n")
    for paths in (["plain", "four"], ["four", "plain"]):
        with pytest.raises(ValueError, match=r"model\.path: .* need a base in NF4, others do not"):
            Generator.from_path([str(tmp_path / path) for path in paths])


def test_adapters_of_different_bases_are_refused(folder, tmp_path):
    tiny_models.save(tmp_path / "second", tiny_models.hugging_face())
    with pytest.raises(ValueError, match=r"model\.path: .*second has another base than"):
        Generator.from_path([str(folder), str(tmp_path / "second")])
