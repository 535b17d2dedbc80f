"""The flags that XLA gets before it starts, each with its reason; a user's own flags stay.

The flags were chosen by compiling the step of Llama-2-7B for eight H100s, see
`tests/planning/test_compile_gpu.py`. Two others were tried there and left out, because they did not
improve the schedule. `xla_gpu_enable_while_loop_double_buffering` gave the same overlap and a
longer program. With `jax_optimization_level=O1` the gathers of the forward pass no longer
overlapped with a product.
"""

from __future__ import annotations

import os

FLAGS = {
    # While one product is computed, the weights of the next are gathered and gradients are
    # scattered. Only the first gather of every layer is not hidden. Newer versions of XLA have this
    # flag on by default.
    "xla_gpu_enable_latency_hiding_scheduler": True,
}
# The share of a GPU's memory that JAX takes. Its default of three quarters would fail runs that fit
# according to `plan`. The rest is for the CUDA context, NCCL and cuDNN.
MEMORY_SHARE = "0.92"
MEMORY_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def flags_left_to_us() -> dict[str, bool]:
    """The flags of `FLAGS` that the environment does not set."""
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in FLAGS.items() if name not in given}


def set_flags() -> None:
    """Sets the flags in the environment; call this before JAX starts its devices."""
    ours = [f"--{name}={str(value).lower()}" for name, value in flags_left_to_us().items()]
    os.environ["XLA_FLAGS"] = " ".join([*ours, os.environ.get("XLA_FLAGS", "")]).strip()
    if not any(name in os.environ for name in MEMORY_VARIABLES):
        os.environ[MEMORY_VARIABLES[0]] = MEMORY_SHARE
