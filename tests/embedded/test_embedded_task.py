"""The embedded default: the exact rule, and that the shipped files are what the script says."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import tddpo_jax
from tddpo_jax.data.formats import parse_row
from tddpo_jax.embedded import make
from tddpo_jax.embedded.task import (
    COUNTS,
    MOODS,
    SENTENCES,
    all_prompts,
    asking_for,
    divided_prompts,
    mood_of,
    score,
    sentences_of,
    write_answer,
)
from tddpo_jax.generation.generator import Generator

FOLDER = Path(tddpo_jax.__file__).parent / "embedded"
SIDES = ("train", "validation")
GLAD = "The old dog was happy by the river."
PLAIN = "At noon the shy hen felt calm."
GLOOMY = "What a sad walk the little fox had."


def rows(side: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{side}.jsonl").read_text().splitlines()]


def texts(row: dict) -> tuple[str, str, str]:
    """Prompt, chosen answer, rejected answer."""
    return row["chosen"][0]["content"], row["chosen"][1]["content"], row["rejected"][1]["content"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", 0),
        ("happy", 0),
        (GLAD, 1 / 3),  # as if it had three sentences
        (f"{GLAD} {PLAIN}", 1.5 / 3),
        (f"{GLAD} {PLAIN} {GLOOMY}", 1.5 / 3),
        (f"{GLAD} {PLAIN} {GLOOMY} It was a merry day on the hill.", 2.5 / 4),
        (f"{GLAD} {GLAD} {GLAD} {GLAD}", 1 / 4),  # only the first earns
        (f"{GLAD} The shy cat found a happy song. {PLAIN}", 1.5 / 3),  # the mood was used before
        (f"  {GLAD}\n{PLAIN}  {GLOOMY}\n", 1.5 / 3),
        (f"{GLAD} {PLAIN} What a merry walk the", 1.5 / 3),  # cut in the middle
        (f"{GLAD}{PLAIN} {GLOOMY}", 0),  # no space: a single long sentence, and it does not parse
        (f"{GLAD.lower()} {PLAIN} {GLOOMY}", 0.5 / 3),
        (GLAD.rstrip("."), 0),
        (GLAD.replace(".", "!"), 0),
        ("The old wolf was happy by the river.", 0),
        ("The old dog was glad by the river.", 0),
        ("The old dog happy was by the river.", 0),
    ],
)
def test_the_rule_on_texts_made_by_hand(answer, expected):
    assert score(answer) == expected


def test_the_best_score_is_one_and_needs_as_many_glad_words_as_sentences():
    glad = [f"It was a {mood} day on the hill." for mood in MOODS[1.0]]
    assert score(" ".join(glad)) == 1
    assert score(" ".join([*glad, GLAD])) == len(glad) / (len(glad) + 1)


@given(st.text() | st.lists(st.sampled_from([GLAD, PLAIN, GLOOMY, "", "the"])).map(" ".join))
def test_the_score_of_any_text_is_in_the_unit_interval(answer):
    assert 0 <= score(answer) <= 1


@given(st.sampled_from(all_prompts()), st.integers(0, 2**32))
def test_answers_by_the_grammar_are_in_the_language(prompt, seed):
    answer = write_answer(prompt, random.Random(seed))
    moods = [mood_of(sentence) for sentence in sentences_of(answer)]
    assert len(moods) == len(set(moods)) == prompt.sentences
    assert None not in moods
    assert answer == write_answer(prompt, random.Random(seed))


def test_prompts_are_distinct_and_answers_are_neutral_on_average():
    """An answer's score has a standard deviation of 0.2, the mean of 12,288 one of 0.002."""
    prompts = all_prompts()
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert max(prompt.sentences for prompt in prompts) <= len(SENTENCES)
    rng = random.Random(0)
    scores = [score(write_answer(prompt, rng)) for prompt in prompts]
    assert sum(scores) / len(scores) == pytest.approx(0.5, abs=0.01)


@pytest.fixture(scope="module")
def base():
    return Generator.from_path("embedded", "float32")


def test_a_lesson_is_a_prompt_with_one_response():
    asked = [{"role": "user", "content": "Tell me."}]
    parsed = parse_row(make.lesson_row("Tell me.", GLAD))
    assert (parsed.kind, parsed.prompt, parsed.responses) == ("chat", asked, (GLAD,))


def test_draws_differ_and_follow_from_the_seed(base):
    prompts = all_prompts()[:20]
    first, again, other = (make.sample_responses(base, prompts, n) for n in (3, 3, 4))
    assert first == again != other


def test_a_pair_is_the_widest_or_the_closest_two_answers():
    answers = [PLAIN, f"{GLAD} {PLAIN}", GLOOMY, GLAD]
    assert make.choose(answers, close=False) == (answers[1], GLOOMY)
    assert make.choose(answers, close=True) in [
        (answers[1], GLAD),
        (GLAD, PLAIN),
        (PLAIN, GLOOMY),
    ]
    assert make.choose([GLOOMY, GLOOMY, ""], close=True) is None


@pytest.mark.parametrize("side", SIDES)
def test_the_chosen_answer_is_the_better_one_by_the_rule(side):
    found = rows(side)
    assert len(found) == make.PAIRS[side]
    for row in found:
        prompt, chosen, rejected = texts(row)
        assert row == make.preference_row(prompt, chosen, rejected)
        assert row["chosen_rating"] > row["rejected_rating"]
    gaps = [row["chosen_rating"] - row["rejected_rating"] for row in found]
    assert 0.05 < sum(gap < 0.2 for gap in gaps) / len(gaps) < 0.4  # a little, not clearly


def test_no_prompt_is_on_two_sides():
    sides = divided_prompts()
    prompts = {side: {prompt.text for prompt in sides[side]} for side in sides}
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values()))
    for side in SIDES:
        assert {texts(row)[0] for row in rows(side)} <= prompts[side]


def test_the_files_are_small():
    files = [file for file in FOLDER.iterdir() if file.is_file() and file.suffix != ".py"]
    assert {file.name for file in files} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "train.jsonl", "validation.jsonl"),
    }
    assert sum(file.stat().st_size for file in files) < 1_200_000


def test_the_tokenizer_gives_every_text_back():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    said = [text for side in SIDES for row in rows(side) for text in texts(row)]
    for text in [*said, "naïve 日本語 🙂\n\ttabs  and  spaces "]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
    longest = max(len(tokenizer.tokenize(text)) for text in said)
    assert longest <= 64


def test_a_conversation_has_one_beginning_and_one_end_per_answer():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": GLAD}]
    write = tokenizer.apply_chat_template
    assert write(turns[:1], tokenize=False, add_generation_prompt=True) == "<s>Hello.\n"
    assert write(turns, tokenize=False) == f"<s>Hello.\n{GLAD}</s>"
    assert write(turns * 2, tokenize=False) == f"<s>Hello.\n{GLAD}</s>Hello.\n{GLAD}</s>"


def test_the_shipped_pairs_are_answers_of_the_shipped_base(base):
    """Another machine's rounding may tip a sample over, so a few rows may differ there."""
    prompts = divided_prompts()["validation"]
    made = make.make_pairs(base, prompts)[: make.PAIRS["validation"]]
    assert sum(row in made for row in rows("validation")) > 0.9 * len(made)


def test_unequal_pairs_differ_in_sentences_and_keep_their_prompts(base):
    """Of three lengths, asked for twice each, the best and the worst are alike in a third."""
    prompts = divided_prompts()["validation"][:30]
    made = make.make_pairs(base, prompts, make.UNEQUAL)
    assert {texts(row)[0] for row in made} <= {prompt.text for prompt in prompts}
    longer = [
        len(sentences_of(chosen)) - len(sentences_of(rejected))
        for _, chosen, rejected in map(texts, made)
    ]
    assert sum(difference != 0 for difference in longer) > 0.4 * len(made)
    assert min(longer) < 0 < max(longer)


def test_asking_for_another_number_changes_that_word_alone():
    for prompt in all_prompts()[::500]:
        asked = asking_for(prompt, 5)
        assert asked.sentences == 5
        words = dict.fromkeys(zip(prompt.text.split(), asked.text.split(), strict=True))
        changed = [pair for pair in words if pair[0] != pair[1]]
        assert changed == [] if prompt.sentences == 5 else [(COUNTS[prompt.sentences], "five")]


def test_the_pieces_follow_from_the_seed():
    prompts = divided_prompts()
    tokenizer = make.make_tokenizer(make.make_lessons(prompts["lessons"]))
    assert tokenizer.to_str() == Tokenizer.from_file(str(FOLDER / "tokenizer.json")).to_str()


def test_the_base_speaks_the_language_with_neutral_moods():
    """An answer's score has a standard deviation of 0.2, the mean of 64 one of 0.025."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    torch.manual_seed(0)
    prompts = [[{"role": "user", "content": texts(row)[0]}] for row in rows("validation")[:64]]
    encoded = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    ids = model.generate(**encoded, do_sample=True, top_k=0, max_new_tokens=80)
    new = ids[:, encoded["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    sentences = [sentence for answer in answers for sentence in sentences_of(answer)]
    assert sum(mood_of(sentence) is not None for sentence in sentences) > 0.9 * len(sentences)
    assert sum(map(score, answers)) / len(answers) == pytest.approx(0.47, abs=0.1)


def test_the_script_refuses_a_directory_that_exists(tmp_path):
    for write in (make.make, make.make_unequal):
        with pytest.raises(ValueError, match="exists"):
            write(tmp_path)
