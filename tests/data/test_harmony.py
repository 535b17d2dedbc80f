"""A template with the shape of gpt-oss's: channels, a date, and two ends of a message."""

import pytest
from tiny_tokenizers import byte_level
from tokenizers import processors

from tddpo_jax.data.chat_format import chat_format
from tddpo_jax.data.templates import chat_example, encode_examples

SPECIALS = ["<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"]
TEMPLATE = (
    "<|start|>system<|message|>Today is {{ strftime_now('%Y-%m-%d') }}.<|end|>"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}<|start|>developer<|message|>{{ m.content }}<|end|>"
    "{% elif m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HISTORY = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "what is red?"},
    {"role": "assistant", "content": "the ball"},
    {"role": "user", "content": "and <|end|>?"},
]


@pytest.fixture(scope="module")
def style():
    tokenizer = byte_level(SPECIALS, chat_template=TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.bos_token = None
    return chat_format(tokenizer, None)


def test_a_response_begins_with_its_channel_and_ends_with_return(style):
    """The day is fixed. An earlier turn ends as any message does. A thought is a message of the
    response. A quoted token is its letters: the prompt has five ends of messages."""
    thinking = {"role": "assistant", "thinking": "a river", "content": "red"}
    example = chat_example(style, HISTORY, ["near", thinking])
    assert example.prompt.text.replace(example.prompt.mark, "") == (
        "<|start|>system<|message|>Today is 2024-07-26.<|end|>"
        "<|start|>developer<|message|>Be kind.<|end|><|start|>user<|message|>what is red?<|end|>"
        "<|start|>assistant<|channel|>final<|message|>the ball<|end|>"
        "<|start|>user<|message|>and <|end|>?<|end|><|start|>assistant"
    )
    assert [response[0].text for response in example.responses] == [
        "<|channel|>final<|message|>near<|return|>",
        "<|channel|>analysis<|message|>a river<|end|>"
        "<|start|>assistant<|channel|>final<|message|>red<|return|>",
    ]
    (ids,) = encode_examples(style, [example])
    end, back = style.encoder.tokenizer.convert_tokens_to_ids(["<|end|>", "<|return|>"])
    assert ids.prompt.count(end) == 5
    assert [(each.count(end), each.count(back), each[-1]) for each in ids.responses] == [
        (0, 1, back),
        (1, 1, back),
    ]


def test_generation_stops_at_return_and_at_no_end_of_a_message(style):
    back = style.encoder.tokenizer.convert_tokens_to_ids("<|return|>")
    assert style.stop_ids == (back,)
