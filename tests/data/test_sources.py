"""Where rows come from: files of every kind, patterns, splits, configs, saved folders, columns."""

from __future__ import annotations

import csv
import gzip
import json

import datasets
import pytest
from tiny_rows import as_lists, conversation, load, questions, write

from tddpo_jax.config.reading import resolve
from tddpo_jax.data.dataset_folders import id_and_revision
from tddpo_jax.data.remarks import description
from tddpo_jax.data.sources import read_rows, split_names

TEXTS = {"prompt": "what is, red?", "chosen": 'the "ball"\nhere', "rejected": "the river"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))


def test_csv(tmp_path):
    long = {**TEXTS, "chosen": "word " * 40000}  # more than a cell of the csv module's default
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(TEXTS))
        writer.writeheader()
        writer.writerows([TEXTS, long])
    assert read_rows(tmp_path / "data.csv") == [TEXTS, long]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_compressed_texts(tmp_path, suffix):
    plain = tmp_path / f"data{suffix}"
    write(plain, [TEXTS, TEXTS])
    compressed = tmp_path / f"data{suffix}.gz"
    compressed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_rows(compressed) == [TEXTS, TEXTS]
    assert split_names(compressed) == ["train"]


def test_a_pattern_is_its_files_by_name(tmp_path):
    for name, count in (("b", 1), ("a", 2)):
        write(tmp_path / f"{name}.jsonl", questions(count))
    assert read_rows(tmp_path / "*.jsonl") == [*questions(2), *questions(1)]
    with pytest.raises(ValueError, match=r"data \S+\*\.json: no file matches"):
        read_rows(tmp_path / "*.json")
    odd = write(tmp_path / "c[1].jsonl", questions(3))  # a file of this name is no pattern
    assert read_rows(odd) == questions(3)


def test_nulls_of_a_tables_objects_are_no_values(tmp_path):
    """A column of objects has all keys of all of them."""
    one, two = ({"f": {"x": 1}}, {"f": {"y": [{"z": 2}]}})
    file = write(tmp_path / "data.parquet", [{"a": one, "b": None}, {"a": two, "b": 3}])
    assert read_rows(file) == [{"a": one, "b": None}, {"a": two, "b": 3}]


@pytest.fixture
def prefs(tmp_path):
    """A folder laid out as HuggingFaceH4/ultrafeedback_binarized is on the hub."""
    folder = tmp_path / "prefs"
    folder.mkdir()
    splits = {"train_prefs": 7, "test_prefs": 2, "test_sft": 1}
    for name, count in splits.items():
        write(folder / f"{name}.jsonl", questions(count))
    files = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in splits)
    header = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    (folder / "README.md").write_text(header)
    return str(folder)


def test_splits_by_name(tmp_path, prefs):
    named = load(tmp_path, [], path=prefs, split="train_prefs", validation="test_prefs")
    assert (len(named.train), len(named.validation)) == (7, 2)
    # The split for validation that belongs to the training split is the data set's own.
    own = load(tmp_path, [], path=prefs, split="train_prefs", validation=None)
    assert as_lists(own.validation) == as_lists(named.validation)
    share = load(tmp_path, [], path=prefs, split="train_prefs", validation=0.3)
    assert (len(share.train), len(share.validation)) == (5, 2)
    message = (
        r"has no split 'train'; it has train_prefs, test_prefs, test_sft: name one with data\.split"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path, [], path=prefs)


def test_a_folder_laid_out_as_the_hub_lays_out_its_shards(tmp_path):
    """As HuggingFaceH4/ultrafeedback_binarized has them: splits by the names of Parquet files."""
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for split, count in (("train_prefs", 5), ("test_prefs", 2), ("train_sft", 3), ("test_sft", 1)):
        pairs = [conversation(f"{split} {i}") for i in range(count)]
        rows = [
            {
                "prompt": f"{split} {i}",
                "prompt_id": str(i),
                **pair,
                "messages": pair["chosen"],
                "score_chosen": 8.0,
                "score_rejected": 3.5,
            }
            for i, pair in enumerate(pairs)
        ]
        write(folder / f"{split}-00000-of-00001.parquet", rows)
    settings = {"split": "train_prefs", "validation": "test_prefs"}
    dataset = load(tmp_path, [], path=str(folder.parent), **settings)
    assert (len(dataset.train), len(dataset.validation), dataset.dropped) == (5, 2, {})
    pairs = [conversation(f"train_prefs {i}") for i in range(5)]
    assert as_lists(dataset.train) == as_lists(load(tmp_path, pairs).train)
    assert list(description("", dataset))[1:] == [
        "not read: columns messages, prompt_id, score_chosen, score_rejected"
    ]


@pytest.mark.parametrize("several", [False, True])
def test_folders_of_save_to_disk(tmp_path, several):
    saved = datasets.Dataset.from_list(questions(7))
    if several:
        other = datasets.Dataset.from_list(questions(2))
        saved = datasets.DatasetDict({"train": saved, "dev": other})
    saved.save_to_disk(tmp_path / "saved")
    folder = str(tmp_path / "saved")
    assert split_names(folder) == ["train", "dev"][: 1 + several]
    assert read_rows(folder) == questions(7)
    with pytest.raises(ValueError, match="has no split 'test'; it has train"):
        read_rows(folder, "test")
    with pytest.raises(ValueError, match=r"data\.config: .* has no configs"):
        read_rows(folder, config="some")
    if several:
        assert len(load(tmp_path, [], path=folder, validation="dev").validation) == 2


def test_configs_by_name(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    header = "---\nconfigs:\n"
    for count, name in enumerate(("helpful", "harmless"), 2):
        write(folder / f"{name}.jsonl", questions(count))
        header += f"- config_name: {name}\n  data_files: {name}.jsonl\n"
    (folder / "README.md").write_text(header + "---\n")
    assert len(load(tmp_path, [], path=str(folder), config="harmless").train) == 3
    for config in (None, "other"):
        with pytest.raises(ValueError, match=r"configs \w+, \w+: name one with data\.config"):
            load(tmp_path, [], path=str(folder), config=config)


def test_files_have_no_splits_and_no_configs(tmp_path):
    file = write(tmp_path / "data.jsonl", questions(2))
    assert len(read_rows(file, "train")) == 2
    for settings in ({"split": "test"}, {"config": "some"}):
        (name,) = settings
        with pytest.raises(ValueError, match=rf"data\.{name}: \S+ is a file"):
            read_rows(file, **settings)
    with pytest.raises(ValueError, match=r"data\.split: embedded has train and validation"):
        read_rows("embedded", "test")


def test_revisions_of_hub_ids(tmp_path):
    assert id_and_revision("owner/name@v1.0") == ("owner/name", "v1.0")
    assert id_and_revision("owner/name") == ("owner/name", None)
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert id_and_revision(str(folder)) == (str(folder), None)


def test_columns_of_other_names(tmp_path):
    theirs = {"instruction": "q", "good": "a", "bad": "b"}
    columns = {"prompt": "instruction", "chosen": "good", "rejected": "bad"}
    (pair,) = load(tmp_path, [theirs], columns=columns).train
    ours = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert as_lists([pair]) == as_lists(load(tmp_path, [ours]).train)
    with pytest.raises(ValueError, match=r"data\.columns: \S+ has no column 'question' for 'pr"):
        load(tmp_path, [theirs], columns={"prompt": "question"})


def test_columns_as_a_command_line_gives_them():
    given = resolve({"data": {"columns": "prompt=instruction, chosen=good"}})
    assert given.data.columns == {"prompt": "instruction", "chosen": "good"}
    with pytest.raises(ValueError, match=r"data\.columns: must be pairs such as prompt=instruct"):
        resolve({"data": {"columns": "instruction"}})


def test_one_prompt_for_all_or_most_rows(tmp_path):
    def answers(count, question="what is red?"):
        return [conversation(question, f"ball {i}") for i in range(count)]

    with pytest.raises(ValueError, match=r"all have the same prompt.*data\.validation"):
        load(tmp_path, answers(8), validation=None)
    assert len(load(tmp_path, answers(8), validation=0).train) == 8
    rows = [*answers(8), *answers(1, "else?"), *answers(1, "more?")]
    with pytest.warns(UserWarning, match=r"8 of the 10 usable rows .* same prompt.*: 2 are held"):
        load(tmp_path, rows, validation=0.2)


def test_a_json_file_of_json_lines_may_be_compressed(tmp_path):
    file = tmp_path / "data.json.gz"
    file.write_bytes(gzip.compress(f"{json.dumps(TEXTS)}\n{json.dumps(TEXTS)}\n".encode()))
    assert read_rows(file) == [TEXTS, TEXTS]
