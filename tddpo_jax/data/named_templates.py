"""The chat templates that have a name here.

For the question `Q` and the answer `A`:

    plain     User: Q\\nAssistant: A</s>            only the last answer has an end of sequence
    llama-2   <s>[INST] Q [/INST] A </s>            a system message goes into the first turn
    llama-3   <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\nQ<|eot_id|>
              <|start_header_id|>assistant<|end_header_id|>\\n\\nA<|eot_id|>           (one line)
    chatml    <|im_start|>user\\nQ<|im_end|>\\n<|im_start|>assistant\\nA<|im_end|>
    zephyr    <|user|>\\nQ</s>\\n<|assistant|>\\nA</s>
"""

from __future__ import annotations

from typing import NamedTuple

from tddpo_jax.errors import UserError

PLAIN = """\
{%- for message in messages -%}
{{ message['role'] | capitalize ~ ': ' ~ message['content'] | trim }}
{%- if loop.last and message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

LLAMA_2 = """\
{%- set has_system = messages[0]['role'] == 'system' -%}
{%- for message in (messages[1:] if has_system else messages) -%}
{%- if message['role'] != ('user' if loop.index0 is even else 'assistant') -%}
{{ raise_exception('llama-2 wants user and assistant in turn, after at most one system message') }}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' ~ message['content'] | trim ~ ' ' ~ eos_token }}
{%- else -%}
{%- set system = '<<SYS>>\\n' ~ messages[0]['content'] ~ '\\n<</SYS>>\\n\\n' -%}
{%- set text = (system if has_system and loop.first else '') ~ message['content'] -%}
{{ bos_token ~ '[INST] ' ~ text | trim ~ ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
"""

LLAMA_3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] ~ eos_token ~ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
"""


class NamedTemplate(NamedTuple):
    """A Jinja source and what the tokenizer must have for it: `bos_token`, `eos_token`, or texts
    of special tokens."""

    jinja: str
    needs: tuple[str, ...]


NAMED = {
    "plain": NamedTemplate(PLAIN, ("eos_token",)),
    "llama-2": NamedTemplate(LLAMA_2, ("bos_token", "eos_token")),
    "llama-3": NamedTemplate(
        LLAMA_3, ("bos_token", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    ),
    "chatml": NamedTemplate(CHATML, ("<|im_start|>", "<|im_end|>")),
    "zephyr": NamedTemplate(ZEPHYR, ("eos_token",)),
}


def check_name(template: str) -> None:
    """Raises UserError for a template that `NAMED` does not have."""
    if template not in NAMED:
        raise UserError(f"template {template!r}: no such template; there are {', '.join(NAMED)}")
