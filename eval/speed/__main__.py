"""`python -m eval.speed`: our training step or decode step, as figures and as JSON.

    python -m eval.speed                                          the embedded pairs, a small Llama
    python -m eval.speed --data FILE --tokenizer DIR --max-length 1024 --mode lora
    python -m eval.speed --decode --rows 80
    python -m eval.speed --against trl --peer-python .peers/trl/bin/python

A peer runs its own trainer on the same weights' shapes, the same token ids, dtype and threads, in
its own environment; the two take turns in one call (A B A B). To make the environment:

    python -m venv .peers/trl && .peers/trl/bin/pip install torch==2.13.0 trl==1.16.0 peft
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from tddpo_jax.command_line import Parser, run_command
from tddpo_jax.config import MeshConfig
from tddpo_jax.convert import read_config
from tddpo_jax.model import LlamaConfig
from tddpo_jax.model_files import EMBEDDED
from tddpo_jax.preparation import use_compilation_cache


def _parser() -> Parser:
    parser = Parser(prog="eval.speed", description="Speed of training steps and of decoding.")
    parser.add_argument("--model", help="folder whose config.json gives the shape")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--feed-forward", type=int, default=688)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--data", default="embedded", help="preference file")
    parser.add_argument("--tokenizer", default=str(EMBEDDED), help="folder of the tokenizer")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of one branch")
    parser.add_argument("--batch-pairs", type=int, default=16)
    parser.add_argument("--mode", default="full", choices=["full", "lora", "qlora"])
    parser.add_argument("--remat", default="dots", choices=["none", "full", "dots"])
    parser.add_argument("--layout", default="packed", choices=["packed", "plain"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed")
    parser.add_argument("--devices", type=int, default=1, help="data-parallel devices, on CPU too")
    parser.add_argument("--decode", action="store_true", help="decoding instead of training")
    parser.add_argument("--rows", type=int, default=16, help="rows that are decoded together")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--against", choices=["trl", "tunix"], help="a peer to measure beside us")
    parser.add_argument("--peer-python", help="the Python of the peer's environment")
    parser.add_argument("--peer-settings", default="default", choices=["default", "best"])
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")
    return parser


def _shape(given: Any) -> LlamaConfig:
    if given.model:
        return read_config(Path(given.model))
    if given.width % given.heads:
        raise ValueError(f"--heads: {given.heads} does not divide --width {given.width}")
    return LlamaConfig(
        vocabulary=given.vocabulary,
        width=given.width,
        layers=given.layers,
        heads=given.heads,
        key_value_heads=given.heads,
        head_size=given.width // given.heads,
        feed_forward=given.feed_forward,
        context=max(given.max_length, given.prompt_tokens + given.new_tokens),
        rope_theta=10000.0,
        rope_scaling=None,
        norm_epsilon=1e-5,
        tied=True,
    )


def _command(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    # Only a CPU counts: an accelerator has the devices it has.
    jax.config.update("jax_num_cpu_devices", given.devices)
    use_compilation_cache()
    from eval.speed.decoding import measure_decoding
    from eval.speed.peers import measure_against
    from eval.speed.training import Case, measure_training

    case = Case(
        model=_shape(given),
        data=given.data,
        tokenizer=Path(given.tokenizer),
        max_length=given.max_length,
        batch_pairs=given.batch_pairs,
        mode=given.mode,
        remat=given.remat,
        layout=given.layout,
        dtype=given.dtype,
        attention=given.attention,
        steps=given.steps,
        mesh=MeshConfig(data=given.devices, fsdp=1),
    )
    if given.decode:
        figures = measure_decoding(case, given.rows, given.prompt_tokens, given.new_tokens)
    elif given.against:
        if given.peer_python is None:
            raise ValueError(
                f"--peer-python: name the Python of the environment of {given.against}"
            )
        figures = measure_against(case, given.against, given.peer_python, given.peer_settings)
    else:
        figures = measure_training(case)
    figures = {"device": jax.devices()[0].device_kind, "devices": given.devices, **figures}
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:30} {value:.4g}" if isinstance(value, float) else f"{name:30} {value}")
    return 0


def main() -> int:
    """The command line."""
    return run_command(_command, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
