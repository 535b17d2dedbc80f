"""The little world of the embedded default: stories about animals, and an exact rule.

A prompt asks for a few sentences about an animal, a place and a time. An answer is that many
sentences of the grammar below, each with one mood word. The rule rewards glad moods, but only in
sentences of the language. A policy that leaves the language or repeats itself to sound glad loses
its reward.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

MOODS = {  # the reward of a sentence, and the mood words that earn it
    1.0: ("happy", "merry", "cheerful", "jolly", "bright", "lucky"),
    0.5: ("calm", "quiet", "busy", "sleepy", "slow", "common"),
    0.0: ("sad", "lonely", "gloomy", "weary", "bitter", "dreary"),
}
EARNS = {word: worth for worth, words in MOODS.items() for word in words}

ADJECTIVES = ("old", "young", "little", "brown", "clever", "shy", "brave", "hungry")
ANIMALS = ("dog", "cat", "fox", "hen", "goat", "mouse", "duck", "pony")
SLOTS = {
    "who": tuple(f"the {adjective} {animal}" for adjective in ADJECTIVES for animal in ANIMALS),
    "place": (
        *("by the river", "in the garden", "on the hill", "near the barn"),
        *("under the oak", "at the market", "behind the mill", "along the road"),
    ),
    "time": ("in the morning", "at noon", "in the evening", "at night"),
    "thing": ("song", "story", "dream", "game", "friend", "letter"),
    "span": ("day", "hour", "walk", "visit"),
    "mood": tuple(EARNS),
}
SENTENCES = (  # without the capital and the full stop
    "{who} was {mood} {place}",
    "{time} {who} felt {mood}",
    "{who} found a {mood} {thing}",
    "it was a {mood} {span} {place}",
    "{time} there came a {mood} {thing}",
    "what a {mood} {span} {who} had",
)
COUNTS = {3: "three", 4: "four", 5: "five"}  # numbers of sentences that a prompt may ask for
PROMPTS = (
    "Write {count} sentences about {who} {place} {time}.",
    "Tell of {who} {time} {place} in {count} sentences.",
)
FULL_LENGTH = min(COUNTS)  # a shorter answer is scored as if it had this many sentences

SEED = 0
# Numbers of prompts for the pairs and for `eval.quality`. All other prompts are for the lessons.
SIDES = {"train": 990, "validation": 220, "questions": 400}


@dataclass(frozen=True)
class Prompt:
    """A user's request, as a text and in its parts."""

    text: str
    sentences: int
    scene: Mapping[str, str]  # the words for the slots `who`, `place` and `time`


def asking_for(prompt: Prompt, count: int) -> Prompt:
    """The same prompt with another number of sentences."""
    text = prompt.text.replace(COUNTS[prompt.sentences], COUNTS[count])
    return replace(prompt, text=text, sentences=count)


def all_prompts() -> list[Prompt]:
    """Every prompt of the world, in a fixed order."""
    scenes = [
        dict(zip(("who", "place", "time"), words, strict=True))
        for words in itertools.product(SLOTS["who"], SLOTS["place"], SLOTS["time"])
    ]
    return [
        Prompt(form.format(count=word, **scene), count, scene)
        for form, (count, word), scene in itertools.product(PROMPTS, COUNTS.items(), scenes)
    ]


def divided_prompts() -> dict[str, list[Prompt]]:
    """The prompts of each of `SIDES` and of the `lessons`; every prompt is in only one of them."""
    prompts = all_prompts()
    random.Random(SEED).shuffle(prompts)
    sides = {side: [prompts.pop() for _ in range(count)] for side, count in SIDES.items()}
    return {**sides, "lessons": prompts}


def write_answer(prompt: Prompt, rng: random.Random) -> str:
    """A random answer that follows the grammar and is neutral on average.

    It uses no form of sentence and no mood word twice.
    """
    forms = rng.sample(SENTENCES, prompt.sentences)
    moods = rng.sample(SLOTS["mood"], prompt.sentences)
    sentences = []
    for form, mood in zip(forms, moods, strict=True):
        others = {name: rng.choice(SLOTS[name]) for name in ("thing", "span")}
        words = form.format(mood=mood, **others, **prompt.scene)
        sentences.append(f"{words[0].upper()}{words[1:]}.")
    return " ".join(sentences)


def _grammar() -> re.Pattern[str]:
    slots = {name: f"(?:{'|'.join(words)})" for name, words in SLOTS.items()}
    slots["mood"] = f"({'|'.join(EARNS)})"  # the one group of a form
    forms = "|".join(form.format(**slots) for form in SENTENCES)
    return re.compile(rf"(?:{forms})\.")


_GRAMMAR = _grammar()


def mood_of(sentence: str) -> str | None:
    """The mood word of a sentence of the language; None for any other text."""
    match = _GRAMMAR.fullmatch(sentence[:1].lower() + sentence[1:])
    if match is None or match.lastindex is None or not sentence[0].isupper():
        return None
    return match[match.lastindex]


def sentences_of(response: str) -> list[str]:
    """Cuts a text after every full stop that white space follows."""
    return re.split(r"(?<=\.)\s+", response.strip())


def score(response: str) -> float:
    """The quality of an answer in [0, 1]; it depends only on the text.

    A sentence of the language earns 1 for a glad mood word, 1/2 for a plain one and 0 for a gloomy
    one. It earns 0 if the answer has used that word before. Any other sentence earns 0. The score
    is the sum of these, divided by the number of sentences or by `FULL_LENGTH` if that is greater.
    """
    sentences = sentences_of(response)
    moods = {mood for sentence in sentences if (mood := mood_of(sentence))}
    return sum(EARNS[mood] for mood in moods) / max(len(sentences), FULL_LENGTH)
