"""Conversations to ids: what is written, where the boundaries are, and what is counted once."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level, sentencepiece
from tokenizers import AddedToken

from tddpo_jax.data.chat_format import chat_format, check_continues
from tddpo_jax.data.named_templates import NAMED
from tddpo_jax.data.templates import chat_example, encode_examples, encode_prompt, text_example
from tddpo_jax.data.tokenizer import Text, encode, make_encoder

LLAMA_3 = byte_level()
LLAMA_2 = sentencepiece()
SPACELESS = sentencepiece(drops_spaces=True)
METASPACE = sentencepiece("first")
TOKENIZERS = {
    "bytes": LLAMA_3,
    "pieces": LLAMA_2,
    "pieces, one prefix": METASPACE,
    "pieces, spaces dropped": SPACELESS,
}
QUESTION = [{"role": "user", "content": "what is red?"}]
LONG = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " what is red? "},
    {"role": "assistant", "content": "the ball"},
    {"role": "user", "content": "and the river?"},
]
# Every combination that the tokenizers' special tokens allow.
COMBINATIONS = [
    (tokenizer, template)
    for tokenizer in TOKENIZERS
    for template in NAMED
    if tokenizer == "bytes" or template not in ("llama-3", "chatml")
]
WORDS = st.text(st.sampled_from("a the\n▁é🙂<>/s[]\t "), max_size=30)


def pair_ids(tokenizer, template, history, chosen, rejected):
    style = chat_format(tokenizer, template)
    example = chat_example(style, history, [chosen, rejected])
    prompt, responses, _ = encode_examples(style, [example])[0]
    return prompt, *responses


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "plain",
            "<s>System: Be kind.\nUser: what is red?\nAssistant: the ball\n"
            "User: and the river?\nAssistant: near </s>",
        ),
        (
            "llama-2",
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n what is red? [/INST] the ball </s>"
            "<s>[INST] and the river? [/INST] near  </s>",
        ),
        (
            "zephyr",
            "<s><|system|>\nBe kind.</s>\n<|user|>\n what is red? </s>\n"
            "<|assistant|>\nthe ball</s>\n<|user|>\nand the river?</s>\n<|assistant|>\nnear </s>",
        ),
        (
            "chatml",
            "<|begin_of_text|><|im_start|>system\nBe kind.<|im_end|>\n"
            "<|im_start|>user\n what is red? <|im_end|>\n"
            "<|im_start|>assistant\nthe ball<|im_end|>\n<|im_start|>user\nand the river?<|im_end|>"
            "\n<|im_start|>assistant\nnear <|im_end|>",
        ),
        (
            "llama-3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nwhat is red?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nthe ball<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nand the river?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nnear<|eot_id|>",
        ),
    ],
)
def test_named_templates_write(template, expected):
    """llama-2, llama-3 and plain strip the messages, as their authors do; the others do not."""
    tokenizer = LLAMA_3 if template in ("chatml", "llama-3") else LLAMA_2
    style = chat_format(tokenizer, template)
    pair = chat_example(style, LONG, ["near ", "far"])
    if template in ("plain", "llama-2"):
        expected = expected.replace("near ", "near")
    assert pair.prompt.text + pair.responses[0][0].text == expected


@pytest.mark.parametrize(("tokenizer", "template"), COMBINATIONS)
def test_bos_and_end_of_turn_are_there_once(tokenizer, template):
    """Whatever the messages quote: in a single turn even llama-2 writes one `<s>`."""
    tokenizer = TOKENIZERS[tokenizer]
    style = chat_format(tokenizer, template)
    specials = "".join(tokenizer.all_special_tokens) + "".join(style.end_of_turn * 2)
    history = [{"role": "user", "content": f"a {specials} b"}]
    prompt, chosen, rejected = pair_ids(tokenizer, template, history, f"x {specials} y", "z</s>")
    end = tokenizer.convert_tokens_to_ids(style.end_of_turn)
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert prompt[0] == tokenizer.bos_token_id
    for response in (chosen, rejected):
        assert response.count(end) == 1
        assert response[-1] == end
        assert tokenizer.bos_token_id not in response
    assert specials in tokenizer.decode(prompt + chosen)


@pytest.mark.parametrize("name", ["pieces", "pieces, one prefix"])
@pytest.mark.parametrize("template", ["llama-2", "zephyr", "plain"])
@settings(max_examples=60, deadline=None)
@given(question=WORDS, answer=WORDS)
def test_pieces_join_into_the_whole(name, template, question, answer):
    """prompt ids + response ids are the ids of the whole text, dummy prefix and all."""
    tokenizer = TOKENIZERS[name]
    style = chat_format(tokenizer, template)
    pair = chat_example(style, [{"role": "user", "content": question}], [answer])
    prompt, (chosen,), _ = encode_examples(style, [pair])[0]
    if pair.responses[0][0].mark:
        return  # the whole, encoded at once, would take the quoted token for a special one
    text = pair.prompt.text + pair.responses[0][0].text
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompt + chosen == whole


@pytest.mark.parametrize(("tokenizer", "template"), COMBINATIONS[:8])
@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.sampled_from(["the", "</s>", "<s>", "\n", " ", "é"]), max_size=6))
def test_quoted_special_tokens_are_their_letters(tokenizer, template, words):
    """They add no special id to a response, and come back letter by letter."""
    tokenizer = TOKENIZERS[tokenizer]
    text = "x" + "".join(words) + "y"
    prompt, chosen, _ = pair_ids(tokenizer, template, QUESTION, text, "other")
    plain = pair_ids(tokenizer, template, QUESTION, "xy", "other")[1]
    specials = set(tokenizer.all_special_ids)
    assert [i for i in chosen if i in specials] == [i for i in plain if i in specials]
    if tokenizer is not SPACELESS:
        assert text in tokenizer.decode(prompt + chosen)


@pytest.mark.parametrize(("tokenizer", "template"), COMBINATIONS)
def test_generation_starts_from_the_training_prompt(tokenizer, template):
    tokenizer = TOKENIZERS[tokenizer]
    for history in (QUESTION, LONG, [{"role": "user", "content": "quoted </s><|eot_id|>"}]):
        prompt, *_ = pair_ids(tokenizer, template, history, "a", "b")
        ids = encode_prompt(tokenizer, history, template)
        assert ids.dtype == np.int32
        assert ids.tolist() == prompt
    with_system = encode_prompt(tokenizer, LONG[1:], template, system="Be kind.")
    assert with_system.tolist() == encode_prompt(tokenizer, LONG, template).tolist()


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("prompt", ["the red", "the red ", " the", "the\n", "🙂"])
def test_verbatim_texts(tokenizer, prompt):
    """BOS + prompt; response + end of sequence; together the ids of the joined text."""
    style = chat_format(tokenizer, None)
    example = text_example(style, prompt, [" ball", "ball"])
    ids, (chosen, rejected), _ = encode_examples(style, [example])[0]
    assert ids == encode_prompt(tokenizer, prompt).tolist()
    assert ids == tokenizer(prompt)["input_ids"]
    end = tokenizer.eos_token_id
    # "the red" + "ball" may be one word to the joined tokenisation; with a space it cannot.
    if tokenizer is not LLAMA_3 or not prompt.endswith((" ", "\n")):
        assert ids + chosen == [*tokenizer(prompt + " ball")["input_ids"], end]
    assert tokenizer.decode(rejected).startswith(
        " ball" if tokenizer is SPACELESS and prompt.endswith(" ") else "ball"
    )
    assert rejected.count(end) == 1
    assert rejected[-1] == end


def test_texts_written_elsewhere():
    """A prompt that brings its own special tokens keeps them; one end of turn is not doubled."""
    style = chat_format(LLAMA_2, None)
    pair = text_example(style, "<s>[INST] hi [/INST]", [" a</s>", " b </s> c"])
    prompt, (chosen, rejected), _ = encode_examples(style, [pair])[0]
    assert prompt.count(1) == 1
    assert chosen == encode_examples(style, [text_example(style, "hi", [" a"])])[0][1][0]
    assert rejected.count(2) == 1
    assert "b </s> c" in LLAMA_2.decode(rejected[:-1])


def test_text_has_no_place_for_a_system_message():
    with pytest.raises(ValueError, match="system"):
        encode_prompt(LLAMA_2, "hello", None, system="Be kind.")


@pytest.mark.parametrize("tokenizer", [LLAMA_2, METASPACE, SPACELESS])
@settings(max_examples=60, deadline=None)
@given(text=WORDS)
def test_continuation_has_no_dummy_prefix(tokenizer, text):
    """The ids behind "x." are what is left of the whole when those of "x." are taken away."""
    if "</s>" in text or "<s>" in text:
        return
    if tokenizer is SPACELESS:
        text = re.sub(" +", " ", text).rstrip(" ")
    encoder = make_encoder(tokenizer)
    lead, whole = tokenizer(["x\u00a7", "x\u00a7" + text], add_special_tokens=False)["input_ids"]
    assert lead + encode(encoder, [Text(text, before="x\u00a7")])[0] == whole


def test_tokenizers_own_template():
    jinja = "{% for m in messages %}{{ m.role + '=' + m.content + eos_token + '!' }}{% endfor %}"
    own = sentencepiece(chat_template=jinja + "{% if add_generation_prompt %}assistant={% endif %}")
    style = chat_format(own, None)
    assert style.name == "tokenizer"
    pair = chat_example(style, QUESTION, ["A"])
    whole = pair.prompt.text + pair.responses[0][0].text
    assert whole == "<s>user=what is red?</s>!assistant=A</s>"
    assert chat_format(own, "plain").name == "plain"
    assert chat_format(LLAMA_2, None).name == "plain"


def test_stop_ids():
    """The template's end of turn, and the end of sequence."""
    ids = LLAMA_3.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert chat_format(LLAMA_3, "llama-3").stop_ids == tuple(sorted(ids))
    assert chat_format(LLAMA_3, "plain").stop_ids == (ids[1],)
    assert chat_format(LLAMA_2, "llama-2").stop_ids == (2,)


def test_bos_only_where_the_tokenizer_uses_one():
    without = sentencepiece(adds_bos=False)
    assert 1 not in encode_prompt(without, QUESTION, "zephyr")
    assert 1 not in encode_prompt(without, "hello", None)
    assert encode_prompt(without, QUESTION, "llama-2").tolist().count(1) == 1  # the template's


@pytest.mark.parametrize(
    ("date", "written"),
    [
        # As Llama 3.2 asks for it: its own constant only where there is no clock.
        (
            "{% if not date_string is defined %}{% set date_string = strftime_now('%f') %}"
            "{% endif %}{% set date = date_string %}",
            "26 Jul 2024",
        ),
        ("{% set date = strftime_now('%-d.%-m., %A %d %B %Y') %}", "26.7., Friday 26 July 2024"),
    ],
)
def test_prompts_do_not_change_with_the_day(date, written):
    jinja = (
        date + "{% for m in messages %}{{ date + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ date }}{% endif %}"
    )
    style = chat_format(sentencepiece(chat_template=jinja, adds_bos=False), None)
    assert chat_example(style, QUESTION, ["A"]).prompt.text.startswith(written)


# The indentation is not written, in the first line either, and the line break behind it is.
INDENTED = (
    "  {% for m in messages %}\n  {{ m.role + m.content + eos_token }}\n  {% endfor %}\n"
    "  {% if add_generation_prompt %}\n  {{ 'assistant' }}{% endif %}\n"
)


@pytest.mark.parametrize(
    ("name", "template"), [*COMBINATIONS, *((name, None) for name in TOKENIZERS)]
)
def test_transformers_writes_the_same_ids(name, template):
    """`None` is a template of the tokenizer's own that lacks the beginning of sequence."""
    tokenizer = copy.deepcopy(TOKENIZERS[name])
    tokenizer.chat_template = INDENTED
    style = chat_format(tokenizer, template)
    ours, (chosen,), _ = encode_examples(style, [chat_example(style, LONG, ["near"])])[0]
    tokenizer.chat_template = style.jinja
    theirs = tokenizer.apply_chat_template(LONG, add_generation_prompt=True, return_dict=False)
    assert theirs == ours
    answered = [*LONG, {"role": "assistant", "content": "near"}]
    assert (
        ours + chosen
        == tokenizer.apply_chat_template(answered, return_dict=False)[: len(ours + chosen)]
    )
    # The template writes what a policy has learnt, whoever reads it.
    assert chat_format(tokenizer, None).jinja == style.jinja


LAST_THINKS = (
    "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<think>{% endif %}"
)
PLAIN_END = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("tokenizer", "template", "message"),
    [
        (LLAMA_2, "alpaca", "'alpaca': no such template; there are plain, llama-2, llama-3, ch"),
        (LLAMA_2, "llama-3", "'llama-3': the tokenizer lacks <|start_header_id|>"),
        (LLAMA_2, "chatml", "'chatml': the tokenizer lacks <|im_start|>, <|im_end|>"),
        (
            sentencepiece(chat_template="{{ 'Hello' + eos_token }}"),
            None,
            "does not write an answer",
        ),
        (sentencepiece(chat_template=PLAIN_END), None, "ends a response with '<|im_end|>', which"),
        (sentencepiece(chat_template="{{ 1 / "), None, "template: "),
    ],
)
def test_templates_that_cannot_be_used(tokenizer, template, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        chat_format(tokenizer, template)
    assert "\n" not in str(caught.value)


def test_generation_prompt_that_opens_a_thought():
    """It can start an answer, but no written answer follows it, so there is nothing to train on."""
    tokenizer = sentencepiece(chat_template=LAST_THINKS)
    ids = encode_prompt(tokenizer, QUESTION)
    assert tokenizer.decode(ids).replace(" ", "") == "<s>whatisred?</s><think>"
    style = chat_format(tokenizer, None)
    assert style.stop_ids == (2,)
    with pytest.raises(
        ValueError, match="'tokenizer': a conversation does not continue its generat"
    ):
        check_continues(style)


def test_tokens_of_a_template_need_not_be_special():
    """They end a turn, and are letters where somebody quotes them; other added tokens are words."""
    tokenizer = sentencepiece(chat_template=NAMED["chatml"].jinja)
    added = ("<|im_start|>", "<|im_end|>", "<think>")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    end, thought = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<think>"])
    said = "a <think> b<|im_end|>\n<|im_start|>system"
    for template in (None, "chatml"):
        style = chat_format(tokenizer, template)
        assert style.stop_ids == (2, end)
        prompt, chosen, _ = pair_ids(tokenizer, template, QUESTION, said, "c")
        assert prompt.count(end) == 1
        assert chosen.count(end) == 1
        assert chosen[-1] == end
        assert chosen.count(thought) == 1
        assert tokenizer.decode(chosen).replace(" ", "") == (said + "<|im_end|>").replace(" ", "")


def test_template_refuses_a_conversation():
    style = chat_format(LLAMA_2, "llama-2")
    with pytest.raises(ValueError, match="llama-2 wants user and assistant in turn"):
        chat_example(style, [*QUESTION, *QUESTION], ["A"])
