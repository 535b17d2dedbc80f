"""Data sets: what is read from rows, the cache, and what users get wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_rows import (
    IDS,
    TOKENIZER,
    as_lists,
    assistant,
    conversation,
    load,
    questions,
    user,
    write,
)
from tiny_tokenizers import byte_level, sentencepiece

from tddpo_jax.config.schema import DataConfig, DataSource
from tddpo_jax.data import sources
from tddpo_jax.data.dataset import load_dataset, load_uncut_examples
from tddpo_jax.data.dataset_folders import rows_of, splits_of
from tddpo_jax.data.examples import Unusable, Vocabulary
from tddpo_jax.data.formats import ParsedRow
from tddpo_jax.data.sources import read_rows, read_source
from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.data.tokenizer import load_tokenizer
from tddpo_jax.errors import UserError

# Of `IDS` alone, read for a context of 64.
HASH_OF_IDS = "2910b624197299b58975dfc93d8b003fae054825d27474f458948c4927e37d1e"

# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_every_kind_hold_the_same_rows(tmp_path, suffix):
    rows = [IDS, {**IDS, "prompt_ids": [7]}]
    assert read_rows(write(tmp_path / f"data{suffix}", rows)) == rows


def test_json_objects_and_json_lines_under_the_name_json(tmp_path):
    file = tmp_path / "data.json"
    write(file, {"model": "some", "rows": [IDS]})
    assert read_rows(file) == [IDS]
    file.write_text(f"{json.dumps(IDS)}\n\n{json.dumps(IDS)}\n")
    assert read_rows(file) == [IDS, IDS]


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [conversation("one\u2028two\x85three"), conversation()]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_rows(file) == rows


SAME_CHAT = {
    "whole conversations": conversation(),
    "whole conversations beside a redundant prompt": {**conversation(), "prompt": "what is red?"},
    "an explicit conversation": {
        "prompt": [user("what is red?")],
        "chosen": [assistant("the ball")],
        "rejected": [assistant("the river")],
    },
    "an explicit conversation that is repeated": {
        **conversation(),
        "prompt": [user("what is red?")],
    },
    "a conversation and texts": {
        "prompt": [user("what is red?")],
        "chosen": "the ball",
        "rejected": "the river",
    },
    "a text and answers": {
        "prompt": "what is red?",
        "chosen": [assistant("the ball")],
        "rejected": [assistant("the river")],
    },
    "with columns that do not matter": {
        "chosen": [{**user("what is red?"), "id": 3}, assistant("the ball")],
        "rejected": conversation()["rejected"],
        "chosen_rating": 4.0,
        "rejected_rating": 4.0,
        "prompt_ids": None,
    },
}


@pytest.mark.parametrize("shape", SAME_CHAT)
def test_shapes_of_one_conversation(tmp_path, shape):
    (pair,) = load(tmp_path, [SAME_CHAT[shape]], template="llama-2").train
    ids = TOKENIZER(
        ["<s>[INST] what is red? [/INST] the ball </s>", "<s>[INST] what is red? [/INST]"],
        add_special_tokens=False,
    )["input_ids"]
    assert pair.prompt.tolist() == ids[1]
    assert pair.prompt.tolist() + pair.responses[0].tolist() == ids[0]
    assert TOKENIZER.decode(pair.responses[1]).strip() == "the river </s>"
    assert all(part.dtype == np.int32 for part in (pair.prompt, *pair.responses))


SAME_RESPONSE = {
    "messages": {"messages": [user("what is red?"), assistant("the ball")]},
    "messages beside a redundant prompt": {
        "messages": [user("what is red?"), assistant("the ball")],
        "prompt": "what is red?",
        "completion": "ignored",
    },
    "a conversation and its continuation": {
        "prompt": [user("what is red?")],
        "completion": [assistant("the ball")],
    },
    "a conversation and a text": {"prompt": [user("what is red?")], "completion": "the ball"},
    "a text and an answer": {"prompt": "what is red?", "completion": [assistant("the ball")]},
}


@pytest.mark.parametrize("shape", SAME_RESPONSE)
def test_shapes_of_one_response(tmp_path, shape):
    """The example is the pair's without its rejected response."""
    (single,) = load(tmp_path, [SAME_RESPONSE[shape]], template="llama-2").train
    (pair,) = load(tmp_path, [conversation()], template="llama-2").train
    assert as_lists([single]) == [as_lists([pair])[0][:-1]]


def test_texts_and_ids_of_one_response_are_verbatim(tmp_path):
    texts = load(tmp_path, [{"prompt": "what is red?", "completion": " the ball"}])
    (single,) = texts.train
    assert (texts.template, texts.responses) == ("verbatim", 1)
    whole = TOKENIZER("what is red? the ball")["input_ids"]
    assert [*single.prompt, *single.responses[0]] == [*whole, 2]
    ids = load(tmp_path, [{"prompt_ids": [1, 20], "response_ids": [30, 2]}], tokenizer=None)
    assert as_lists(ids.train) == [(0, [1, 20], [30, 2])]


def test_columns_of_a_pair_make_a_pair_whatever_else_is_there(tmp_path):
    """UltraFeedback's rows have `messages` too, and sampled pairs may keep their `response_ids`."""
    row = {**conversation(), "prompt": "what is red?", "messages": [user("a"), assistant("b")]}
    assert load(tmp_path, [row]).responses == 2
    assert as_lists(load(tmp_path, [{**IDS, "response_ids": [9]}]).train) == [(0, *IDS.values())]


def test_rows_of_one_response_that_cannot_be_used(tmp_path):
    rows = [
        {"messages": []},
        {"messages": [assistant("a")]},
        {"messages": [user("a"), assistant(" ")]},
        {"prompt": " ", "completion": "a"},
        {"prompt_ids": [1], "response_ids": []},
        {"messages": [user("the"), assistant("ball")]},
        {"messages": [user("the"), assistant("ball")]},
    ]
    dataset = load(tmp_path, rows)
    assert dataset.dropped == {"empty response": [0, 2, 4], "empty prompt": [1, 3]}
    assert [example.row for example in dataset.train] == [5, 6]


def test_rows_of_one_response_come_back_from_the_cache_and_are_cut(tmp_path):
    rows = [{"prompt_ids": [1, *range(20, 29)], "response_ids": [30, 31, 32, 2]}] * 2
    first, second = (load(tmp_path, rows, max_length=6, max_prompt_length=4) for _ in range(2))
    assert as_lists(first.train) == as_lists(second.train)
    assert as_lists(first.train)[1] == (1, [1, 26, 27, 28], [30, 31])
    assert (second.cut_prompts, second.cut_responses) == (2, 2)


def test_all_rows_have_the_same_number_of_responses(tmp_path):
    single = {"messages": [user("the"), assistant("ball")]}
    for rows, left in (([*questions(2), single], [0, 1]), ([IDS, single, single], [1, 2])):
        dataset = load(tmp_path, rows)
        (reason,) = dataset.dropped
        assert re.match(r"[12] responses?, where most rows have [21]", reason)
        assert [example.row for example in dataset.train] == left
    other = write(tmp_path / "other.jsonl", [single])
    with pytest.raises(ValueError, match=r"data\.validation: a row of \S+other\.jsonl has 1 respo"):
        load(tmp_path, questions(2), validation=other)


def test_the_content_hash_of_pairs_has_not_moved(tmp_path):
    """Runs and references that were made from these rows go by this hash."""
    dataset = load(tmp_path, [IDS], tokenizer=None, context=64)
    assert dataset.content_hash == HASH_OF_IDS


def test_texts_are_verbatim(tmp_path):
    row = {"prompt": "what is red?", "chosen": " the ball", "rejected": " the river"}
    dataset = load(tmp_path, [row])
    (pair,) = dataset.train
    assert dataset.template == "verbatim"
    assert pair.prompt.tolist() == encode_prompt(TOKENIZER, "what is red?").tolist()
    whole = TOKENIZER("what is red? the ball")["input_ids"]
    assert pair.prompt.tolist() + pair.responses[0].tolist() == [*whole, 2]


def test_ids_are_verbatim_and_need_no_tokenizer(tmp_path):
    dataset = load(tmp_path, [IDS], tokenizer=None)
    assert as_lists(dataset.train) == [(0, *IDS.values())]
    assert dataset.template == "verbatim"


REASONS = {
    "differing histories": {
        "chosen": [user("a"), assistant("x")],
        "rejected": [user("b"), assistant("y")],
    },
    "empty prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "empty response": conversation(rejected=" \n"),
    "identical branches": conversation("same", "a ", " a"),
    "half a surrogate pair": conversation("\ud83d"),
    "template: llama-2 wants user and assistant in turn, after at most one system message": {
        "chosen": [user("a"), user("b"), assistant("x")],
        "rejected": [user("a"), user("b"), assistant("y")],
    },
}


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    more = [
        conversation(question=""),
        {"chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"chosen": [], "rejected": []},
        {**IDS, "prompt_ids": []},
        {**IDS, "rejected_ids": []},
        {**IDS, "rejected_ids": IDS["chosen_ids"]},
    ]
    dataset = load(tmp_path, [*REASONS.values(), *more, conversation()], template="llama-2")
    expected = {reason: [number] for number, reason in enumerate(REASONS)}
    expected["empty prompt"] += [6, 7, 9]
    expected["empty response"] += [8, 10]
    expected["identical branches"] += [11]
    assert dataset.dropped == expected
    assert [pair.row for pair in dataset.train] == [12]


def test_uncut_pairs_are_every_row_in_order(tmp_path):
    long = conversation("what " * 3000)
    file = write(tmp_path / "data.jsonl", [long, *REASONS.values(), IDS])
    pairs = load_uncut_examples(DataSource(path=file), TOKENIZER, "llama-2")
    assert len(pairs) == len(REASONS) + 2
    assert len(pairs[0].prompt) > 3000
    unusable = [pair for pair in pairs if isinstance(pair, Unusable)]
    assert unusable == [
        (number, reason)
        for number, reason in enumerate(REASONS, 1)
        if reason != "identical branches"  # their log-probabilities exist
    ]
    assert as_lists(pairs[-1:]) == [(len(pairs) - 1, *IDS.values())]


# ---- the cache -----------------------------------------------------------------------------------


def test_the_cache_saves_the_encoding(tmp_path):
    config = DataConfig(path=write(tmp_path / "data.jsonl", questions(300)), validation=0.1)
    calls = []

    def loaded():
        return load_dataset(
            config,
            TOKENIZER,
            context=64,
            cache=tmp_path / "cache",
            progress=lambda done, total: calls.append((done, total)),
        )

    first = loaded()
    assert calls == [(256, 300), (300, 300)]
    second = loaded()
    assert len(calls) == 2
    assert as_lists(second.train + second.validation) == as_lists(first.train + first.validation)
    facts = [{**vars(each), "train": 0, "validation": 0} for each in (first, second)]
    assert facts[0] == facts[1]
    assert len(os.listdir(tmp_path / "cache")) == 1  # no unfinished file stays


@pytest.mark.parametrize("damage", ["cut", "emptied", "scratched", "another"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    first = load(tmp_path, questions(9))
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "emptied":
        content = b""
    elif damage == "scratched":
        content[200] ^= 255
    else:
        np.savez(file, something=np.arange(3))
        content = file.read_bytes()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"examples-.*npz is damaged"):
        second = load(tmp_path, questions(9))
    assert as_lists(second.train) == as_lists(first.train)
    assert as_lists(load(tmp_path, questions(9)).train) == as_lists(first.train)


def test_content_hash(tmp_path):
    """It moves with everything that determines the ids, and with nothing else."""
    base = load(tmp_path, questions(4)).content_hash
    renamed = write(tmp_path / "renamed.json", questions(4))
    TOKENIZER(["some", "thing longer"], padding=False, truncation=True, max_length=2)
    assert load(tmp_path, [], path=renamed).content_hash == base
    others = [
        load(tmp_path, questions(5)),
        load(tmp_path, questions(4), max_length=512),
        load(tmp_path, questions(4), max_prompt_length=512),
        load(tmp_path, questions(4), template="zephyr"),
        load(tmp_path, questions(4), validation=0.5),
        load(tmp_path, questions(4), validation=0.5, split_seed=1),
        load(tmp_path, questions(4), validation=renamed),
        load(tmp_path, questions(4), tokenizer=sentencepiece("first")),
        load(tmp_path, questions(4), tokenizer=byte_level()),
    ]
    assert len({base, *(dataset.content_hash for dataset in others)}) == len(others) + 1


# ---- what users get wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", "", "holds no rows"),
        ("data.json", " \n", "holds no rows"),
        ("data.json", "[]", "holds no rows"),
        ("data.jsonl", '{"a": 1}\n{"a": \n', "data.jsonl line 2: not JSON"),
        ("data.json", '[{"a": 1},\n{"a": ]', "data.json line 2: not JSON"),
        ("data.json", '{"a": 1}', "must be a list, or an object with one as `rows` or `data`"),
        ("data.json", '"text"', "must be a list"),
        ("data.jsonl", "[1]\n", "row 0: must be an object with columns"),
        ("data.csv", "a,b", "holds no rows"),
        ("data.csv", "a,b\n1,2,3\n", "data.csv line 2: has another number of cells than the first"),
        ("data.csv", "a,b\n1\n", "data.csv line 2: has another number of cells than the first"),
        ("data.csv", 'a,b\n1,"2\n', "data.csv line 2: not CSV: unexpected end of data"),
        ("data.txt", "a,b", "unknown suffix; known are .json, .jsonl, .csv, .parquet, and .gz beh"),
        ("data.jsonl.gz", "nothing", "data.jsonl.gz: Not a gzipped file"),
        (
            "data.jsonl.gz",
            gzip.compress(b'{"a": 1}', mtime=0)[:-9],
            "the compressed file is damaged",
        ),
        ("data.jsonl", "1\n" + "[" * 99999, "data.jsonl line 2: its lists or objects are nested t"),
        ("data.json", "[" * 99999, "data.json: its lists or objects are nested too deeply"),
        ("data.json", "9" * 9999, "data.json: not JSON: Exceeds the limit"),
        ("data.parquet", "nothing", "data.parquet: not Parquet"),
        ("data.jsonl", b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["missing.jsonl", "no/such/folder", "/no/such/file", "missing.json"]
)
def test_missing_files(tmp_path, path):
    for call in (read_rows, sources.split_names):
        with pytest.raises(ValueError, match=f"data {path}: no such file"):
            call(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "lacks the column 'prompt'"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"chosen": None, "rejected": None}, "empty response"),
        ({"prompt": "a", "chosen": "b"}, "lacks the column 'rejected'"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "empty response"),
        ({"text": "a"}, "lacks the column 'chosen'"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' must be a list of {role, cont"),
        (
            {"prompt": "p", "chosen": 3, "rejected": "b"},
            "'chosen' must be a list of {role, content",
        ),
        ({"prompt": "p", "chosen": [assistant("a")], "rejected": "b"}, "'rejected' must be a list"),
        (
            {**conversation(), "rejected": ["a", "b"]},
            "'rejected' must be a list of {role, content}",
        ),
        ({**conversation(), "chosen": [user(None)]}, "the last role of 'chosen' is 'user', not 'a"),
        ({**conversation(), "prompt": 3}, "'prompt' must be a list of {role, content}"),
        (
            {"chosen": [user("a"), user("b")], "rejected": [user("a"), assistant("b")]},
            "the last role of 'chosen' is 'user', not 'assistant'",
        ),
        ({"prompt_ids": [1]}, "lacks the column 'chosen_ids'"),
        ({**IDS, "chosen_ids": "1 2"}, "'chosen_ids' must be a list of integers"),
        ({**IDS, "chosen_ids": [1, 2.0]}, "'chosen_ids' must be a list of integers"),
        ({**IDS, "chosen_ids": [1, True]}, "'chosen_ids' must be a list of integers"),
        ({**IDS, "rejected_ids": [1, -1]}, "'rejected_ids' holds a number that is no token id"),
        ({**IDS, "prompt_ids": [2**31]}, "'prompt_ids' holds a number that is no token id"),
    ],
)
def test_rows_that_are_wrong(tmp_path, row, message):
    good, reason = read_source(write(tmp_path / "data.jsonl", [conversation(), row])).rows
    assert isinstance(good, ParsedRow)
    assert isinstance(reason, str)
    assert reason.startswith(message)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("a"), user("b")]}, "the last role of 'messages' is 'user', not 'assis"),
        ({"messages": "a text"}, "'messages' must be a list of {role, content}"),
        ({"completion": "b"}, "lacks the column 'prompt'"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a list of {role, content}"),
        ({"response_ids": [1]}, "lacks the column 'prompt_ids'"),
        ({"prompt_ids": [1], "response_ids": [1.5]}, "'response_ids' must be a list of integers"),
    ],
)
def test_rows_of_one_response_that_are_wrong(tmp_path, row, message):
    file = write(tmp_path / "data.jsonl", [row])
    expected = re.escape(f"data {file}: none of its rows can be used: 1 x {message}")
    with pytest.raises(ValueError, match=expected + r".*\(row 0\); row 0 has \w+ \(") as caught:
        read_source(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (
            [conversation("a", "b", "b")] * 2,
            {},
            "none of its rows can be used: 2 x identical branch",
        ),
        (questions(3), {"template": "llama2"}, "template 'llama2': no such template"),
        (questions(3), {"template": "llama-3"}, "the tokenizer lacks <|start_header_id|>"),
        (questions(1), {"validation": 0.5}, "data.validation: leaves nothing to train on"),
        (
            [conversation(rejected="x"), conversation()],
            {"validation": 0.5},
            "data.validation: leav",
        ),
        (questions(3), {"validation": 1}, "data.validation: a fraction must be in [0, 1), got 1"),
        (
            questions(3),
            {"validation": "1"},
            "data.validation: a fraction must be in [0, 1), got 1.0",
        ),
        (questions(3), {"validation": -0.1}, "data.validation: a fraction must be in [0, 1)"),
        (questions(3), {"validation": "nan"}, "data.validation: a fraction must be in [0, 1)"),
        (
            questions(3),
            {"validation": "test"},
            "data.validation: 'test' is no file, no fraction, and",
        ),
        (questions(3), {"validation": "missing.jsonl"}, "data missing.jsonl: no such file"),
        (
            questions(3),
            {"max_length": 9, "max_prompt_length": 9},
            "data.max_prompt_length: must be l",
        ),
    ],
)
def test_settings_that_are_wrong(tmp_path, rows, config, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(tmp_path, rows, **config)
    assert "\n" not in str(caught.value)


def test_a_validation_file_without_a_usable_row(tmp_path):
    other = write(tmp_path / "other.jsonl", [conversation("a", "b", "b")])
    with pytest.raises(
        ValueError, match=r"data\.validation .*none of its rows can be used: 1 x ide"
    ):
        load(tmp_path, questions(3), validation=other)


def test_texts_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"data\.jsonl: holds texts, and there is no tokenizer"):
        load(tmp_path, questions(3), tokenizer=None)


def test_a_template_that_is_ignored(tmp_path):
    with pytest.warns(UserWarning, match=r"data\.template: ignored"):
        load(tmp_path, [IDS], template="plain")


@pytest.mark.parametrize("repeated", [False, True])
def test_ids_beyond_the_vocabulary(tmp_path, repeated):
    """Checked against the model, also where the pairs come from the cache."""
    config = DataConfig(path=write(tmp_path / "data.jsonl", [IDS]), validation=0)
    if repeated:
        load_dataset(config, None, context=64, cache=tmp_path, vocabulary=Vocabulary(33))
    with pytest.raises(ValueError, match=r"row 0: 'rejected' holds the id 32, but .* ends at 31"):
        load_dataset(config, None, context=64, cache=tmp_path, vocabulary=Vocabulary(32))


def test_load_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    ids = TOKENIZER("the  red ball")["input_ids"]
    assert load_tokenizer(tmp_path)("the  red ball")["input_ids"] == ids
    Path(tmp_path, "tokenizer.model").touch()
    assert load_tokenizer(str(tmp_path))("the  red ball")["input_ids"] == ids


CODE = "open({!r}, 'w')"
ASKED = (
    r"tokenizer .*model: auto_map asks to run code of its own \(own\.OwnTokenizer\), "
    r"which is never run"
)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ("PreTrainedTokenizerFast", pytest.warns(UserWarning, match=ASKED)),
        ("OwnTokenizer", pytest.raises(UserError, match=ASKED)),
    ],
    ids=["a known class is used", "an unknown class is refused"],
)
def test_a_tokenizers_own_code_is_never_run(known, expected, tmp_path, monkeypatch):
    """Nobody is asked, and the code would write a file."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    byte_level().save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(str(ran)))
    (folder / "config.json").write_text(json.dumps({"model_type": "own"}))
    file = folder / "tokenizer_config.json"
    asked = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": known}
    file.write_text(json.dumps({**json.loads(file.read_text()), **asked}))
    with expected:
        load_tokenizer(folder)
    assert not ran.exists()


def test_a_data_sets_own_code_is_never_run(tmp_path):
    folder, ran = tmp_path / "rows", tmp_path / "ran"
    folder.mkdir()
    (folder / "rows.py").write_text(CODE.format(str(ran)))
    with pytest.raises(UserError, match=r"data .*rows: is a script, rows\.py, which is never run"):
        splits_of(str(folder), None)
    with pytest.raises(UserError, match=r"data .*rows: is a script, rows\.py, which is never run"):
        rows_of(str(folder), None, None)
    assert not ran.exists()


def test_load_tokenizer_that_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="tokenizer /no/such/folder: "):
        load_tokenizer("/no/such/folder")
    Path(tmp_path, "tokenizer.model").touch()
    with pytest.raises(ValueError, match=r"has a tokenizer\.model but no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_no_warning_about_long_texts(tmp_path, caplog):
    short = sentencepiece(model_max_length=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, questions(2), tokenizer=short)
    assert not caplog.records
