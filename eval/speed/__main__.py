"""`python -m eval.speed`: measures training and decoding, as a table or as JSON.

    python -m eval.speed                                     a training step, the embedded pairs
    python -m eval.speed --data FILE --tokenizer DIR --max-length 1024 --mode lora
    python -m eval.speed --profile                           where the time of a step goes
    python -m eval.speed --prefix                            what sharing prompts gains
    python -m eval.speed --mode lora --population 8          8 policies at once, and in turn
    python -m eval.speed --decode --rows 80
    python -m eval.speed --against trl --peer-python .peers/trl/bin/python
    python -m eval.speed --against tunix --peer-python .peers/tunix/bin/python
    python -m eval.speed --suite gpu --output suite.json     one large GPU, Llama-2-7B, 9 minutes

By default the pairs are the embedded ones. `--data stated` takes random tokens with the lengths of
dpo-mix-7k. Each line above is a mode. An option that a mode does not read is refused.

A peer runs its own trainer in its own environment, on the same weights, token ids, dtype and
threads. The two take turns in one call (A B A B), once with the peer's default settings and once
with its best. To make the environments:

    python -m venv .peers/trl && .peers/trl/bin/pip install torch==2.13.0 trl==1.16.0 peft
    python -m venv .peers/tunix && .peers/tunix/bin/pip install google-tunix==0.1.7 jax==0.10.2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from tddpo_jax.adapters.nf4 import NF4_BLOCK
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.attention.kernels import KERNELS
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.system.paths import EMBEDDED

from .model_shape import read_llama

DEFAULTS: dict[str, Any] = {
    "model": None,
    "width": 256,
    "layers": 6,
    "heads": 8,
    "feed_forward": 688,
    "vocabulary": 512,
    "dtype": "float32",
    "attention": "auto",
    "devices": 1,
    "data": "embedded",
    "tokenizer": str(EMBEDDED),
    "max_length": 1024,
    "batch_pairs": 16,
    "row_length": None,
    "mode": "full",
    "remat": "dots",
    "layout": "packed",
    "steps": 5,
    "rows": 16,
    "prompt_tokens": 128,
    "new_tokens": 128,
    "peer_python": None,
    "peer_settings": "both",
    "peer_micro_batch": None,
    "minutes": 9.0,
    "small": False,
}
SIZES = ("width", "layers", "heads", "feed_forward", "vocabulary")
SHAPE = {"model", *SIZES, "dtype", "devices", "mode"}
STEP = SHAPE | {"attention", "data", "tokenizer", "max_length", "batch_pairs", "remat", "steps"}
PEER = {"peer_python", "peer_settings", "peer_micro_batch"}
# The options that each mode reads. The first mode is the one without a flag.
READ = {
    "training": STEP | {"row_length", "layout"},
    "profile": STEP | {"row_length", "layout"},
    "prefix": STEP | {"row_length"},
    "population": STEP | {"row_length"},
    "decode": SHAPE | {"rows", "prompt_tokens", "new_tokens"},
    "against": STEP | PEER | {"row_length"},
    "suite": {"minutes", "small"},
}
OUTPUT = {"json", "markdown", "output"}
POSITIVE = (
    *SIZES,
    *("devices", "max_length", "batch_pairs", "row_length", "steps", "rows", "prompt_tokens"),
    *("peer_micro_batch", "minutes", "population"),
)


def _parser() -> Parser:
    parser = Parser(
        prog="tddpo speed",
        description="Speed of training steps and of decoding.",
        argument_default=argparse.SUPPRESS,
    )

    def add(option: str, *, help: str, **settings: Any) -> None:
        """Adds an option. Its help may name defaults in braces."""
        parser.add_argument(option, help=help.format(**DEFAULTS), **settings)

    add("--profile", action="store_true", help="where the time of a step goes")
    add("--prefix", action="store_true", help="what sharing prompts gains")
    add("--population", type=int, metavar="N", help="N policies in one program, beside N in turn")
    add("--decode", action="store_true", help="measure decoding, not training")
    add("--against", choices=["trl", "tunix"], help="measure a peer's trainer beside ours")
    add("--suite", choices=["gpu"], help="measure everything with Llama-2-7B on one GPU")
    add("--model", help="folder whose config.json gives the shape")
    for name in SIZES:
        add("--" + name.replace("_", "-"), type=int, help=f"default {{{name}}}")
    add("--data", help="preference file, `embedded` or `stated`")
    add("--tokenizer", help="folder of the tokenizer")
    add(
        "--max-length",
        type=int,
        help="tokens of prompt and response (default {max_length})",
    )
    add("--batch-pairs", type=int, help="pairs of a step (default {batch_pairs})")
    add("--row-length", type=int, help="stream positions of a row (default: chosen)")
    add("--mode", choices=["full", "lora", "qlora"], help="default {mode}")
    add("--remat", choices=["none", "full", "dots"], help="default {remat}")
    add("--layout", choices=["packed", "plain"], help="default {layout}")
    add("--dtype", choices=["float32", "bfloat16"], help="default {dtype}")
    add(
        "--attention",
        choices=["auto", "xla", *KERNELS],
        help="back-end (default {attention})",
    )
    add("--steps", type=int, help="timed steps (default {steps})")
    add(
        "--devices",
        type=int,
        help="data-parallel devices, also on a CPU (default {devices})",
    )
    add("--rows", type=int, help="rows decoded together (default {rows})")
    add(
        "--prompt-tokens",
        type=int,
        help="prompt tokens of a row (default {prompt_tokens})",
    )
    add("--new-tokens", type=int, help="new tokens of a row (default {new_tokens})")
    add("--peer-python", help="the Python of the peer's environment")
    add(
        "--peer-settings",
        choices=["default", "best", "both"],
        help="default {peer_settings}",
    )
    add("--peer-micro-batch", type=int, help="pairs the peer computes at once (default: its own)")
    add(
        "--minutes",
        type=float,
        help="minutes that the suite may take (default {minutes:g})",
    )
    add("--small", action="store_true", help="run the suite on tiny shapes, also on a CPU")
    add("--json", action="store_true", help="JSON instead of a table")
    add("--markdown", action="store_true", help="a Markdown table")
    add("--output", help="file for the JSON, besides what is printed")
    return parser


def _settings(arguments: Sequence[str]) -> tuple[str, Any]:
    """The mode and all options.

    Raises:
        UserError: two modes, an option that the mode does not read, or a number below 1.
    """
    given = vars(_parser().parse_args(arguments))
    modes = [name for name in READ if name in given]
    if len(modes) > 1:
        raise UserError(f"--{modes[1]}: cannot be combined with --{modes[0]}")
    mode = modes[0] if modes else "training"
    for name, value in given.items():
        if name not in READ[mode] | OUTPUT | {mode}:
            flag = f"with --{mode}" if modes else "without a mode"
            raise UserError(f"{_option(name)}: has no effect {flag}")
        if name in POSITIVE and value <= 0:
            raise UserError(f"{_option(name)}: must be above 0, got {value}")
        if name == "new_tokens" and value < 2:
            raise UserError(f"--new-tokens: must be at least 2, got {value}")
    if "output" in given:
        _check_file(Path(given["output"]))
    if "tokenizer" in given and given.get("data") == "stated":
        raise UserError("--tokenizer: has no effect with --data stated")
    if "json" in given and "markdown" in given:
        raise UserError("--markdown: cannot be combined with --json")
    return mode, argparse.Namespace(**{**DEFAULTS, **given})


def _check_file(output: Path) -> None:
    if not output.parent.is_dir():
        raise UserError(f"--output: {output.parent} is not a folder")
    if (output.exists() and not output.is_file()) or not os.access(output.parent, os.W_OK):
        raise UserError(f"--output: {output} cannot be written to")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shape(given: Any, arguments: Sequence[str]) -> LlamaConfig:
    if given.model:
        for name in SIZES:
            if any(word.partition("=")[0].replace("_", "-") == _option(name) for word in arguments):
                raise UserError(f"{_option(name)}: --model gives the shape")
        return read_llama(Path(given.model))
    if given.width % (2 * given.heads):
        raise UserError(f"--heads: 2 x {given.heads} does not divide --width {given.width}")
    if given.mode == "qlora" and (given.width % NF4_BLOCK or given.feed_forward % NF4_BLOCK):
        raise UserError(
            f"--mode: qlora needs --width and --feed-forward to be multiples of {NF4_BLOCK}"
        )
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
        biases=False,
        head_norms=False,
        window=None,
    )


def _measure(mode: str, given: Any, model: LlamaConfig) -> Iterator[dict[str, Any]]:
    """Yields a row of figures for each measured thing, as soon as it is measured."""
    # Imported late: JAX must know its number of devices first.
    from . import comparison, decoding, peers, pieces, training
    from .case import Case

    if jax.device_count() != given.devices:
        raise UserError(
            f"--devices: {given.devices} wanted, but JAX takes all {jax.device_count()} that there "
            "are; on GPUs CUDA_VISIBLE_DEVICES hides some"
        )

    case = Case(
        model=model,
        mesh=MeshConfig(data=given.devices, fsdp=1),
        tokenizer=Path(given.tokenizer),
        **{
            name: getattr(given, name)
            for name in (
                *("data", "max_length", "batch_pairs", "row_length", "mode", "remat"),
                *("layout", "dtype", "attention", "steps"),
            )
        },
    )
    if mode == "profile":
        yield from pieces.measure_pieces(case)
    elif mode == "prefix":
        yield comparison.measure_prefix(case)
    elif mode == "population":
        yield comparison.measure_population(case, given.population)
    elif mode == "decode":
        rows, prompt, new = given.rows, given.prompt_tokens, given.new_tokens
        yield decoding.measure_decoding(case, rows, prompt, new)
    elif mode == "training":
        yield training.measure_training(case)
    elif given.peer_python is None:
        raise UserError(f"--peer-python: name the Python of {given.against}'s environment")
    else:
        both = given.peer_settings == "both"
        for settings in ("default", "best") if both else (given.peer_settings,):
            yield peers.measure_against(
                case, given.against, given.peer_python, settings, given.peer_micro_batch
            )


def _command(arguments: Sequence[str]) -> int:
    from .table import facts, table  # imports transformers, which warns before this

    mode, given = _settings(arguments)
    model = None if mode == "suite" else _shape(given, arguments)
    # This sets the number of CPU devices. The number of accelerators is fixed.
    jax.config.update("jax_num_cpu_devices", given.devices)
    use_compilation_cache()
    about = {"speed": mode, **facts()}
    if model is not None:
        measured = _measure(mode, given, model)
    else:
        from .suite import run_suite

        measured = run_suite(small=given.small, minutes=given.minutes)
    rows, figures = [], about
    for row in measured:
        rows.append(row)
        figures = {**about, **row} if len(rows) == 1 else {**about, "rows": rows}
        if "output" in given:  # measured figures are kept even if a later part fails
            write_text(Path(given.output).resolve(), json.dumps(figures, indent=1) + "\n")
    if "json" in given:
        print(json.dumps(figures))
    else:
        print(table(about, rows, markdown="markdown" in given))
    return 1 if any(row.get("failed") for row in rows) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command(_command, arguments, resumes=False)


if __name__ == "__main__":
    sys.exit(main())
