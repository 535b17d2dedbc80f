"""What XLA is told before it starts, each with its reason; what a user has set stays as it is.

The flags were chosen by compiling the step of Llama-2-7B for eight H100s, see
`tests/test_compile_gpu.py`. Looked at and left out, for the schedule did not get better:
`xla_gpu_enable_while_loop_double_buffering` (the same overlap, a longer program) and
`jax_optimization_level=O1` (the gathers of the forward pass no longer run beside a product).
"""

from __future__ import annotations

import os

FLAGS = {
    # The weights of the next product are gathered, and gradients shared out, while this product is
    # computed: all but the first gather of every layer. Newer versions have it on by default.
    "xla_gpu_enable_latency_hiding_scheduler": True,
}
# Of a GPU's memory. JAX takes three quarters unless told otherwise, which would refuse runs that
# `plan` says fit; the rest is for the CUDA context, NCCL and cuDNN.
MEMORY_SHARE = "0.92"
MEMORY_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def flags_left_to_us() -> dict[str, bool]:
    """Those of `FLAGS` that the environment does not set."""
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in FLAGS.items() if name not in given}


def set_flags() -> None:
    """Sets them in the environment; to be called before JAX starts its devices."""
    ours = [f"--{name}={str(value).lower()}" for name, value in flags_left_to_us().items()]
    os.environ["XLA_FLAGS"] = " ".join([*ours, os.environ.get("XLA_FLAGS", "")]).strip()
    if not any(name in os.environ for name in MEMORY_VARIABLES):
        os.environ[MEMORY_VARIABLES[0]] = MEMORY_SHARE
