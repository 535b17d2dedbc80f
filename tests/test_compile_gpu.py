"""The step of Llama-2-7B, compiled for eight H100s of 80 GB, none of which is here.

Runs where JAX's CUDA plug-in is installed, in about a minute on two cores:

    pip install -e '.[cuda12]' beartype hypothesis pytest && python -m pytest -m gpu_compile -s

XLA compiles the whole program, with its collectives and cuDNN's kernels. It cannot choose among
products by measuring them, and knows no workspace of cuDNN.
"""

import collections
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from hlo import Instruction, instructions, work_between

from tddpo_jax import ahead_of_time
from tddpo_jax.config import read_yaml, resolve
from tddpo_jax.convert import read_config
from tddpo_jax.devices import DEVICES, GIB
from tddpo_jax.layout import Shape
from tddpo_jax.logprobs import CHUNK
from tddpo_jax.model import LlamaConfig
from tddpo_jax.plan import model_folder, stated_pairs
from tddpo_jax.preparation import micro_batch_shapes
from tddpo_jax.sharding import make_mesh

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.skipif(
        not ahead_of_time.cuda_installed(), reason="JAX's CUDA plug-in is not installed"
    ),
]
ROOT = Path(__file__).parents[1]
CONFIGS = {"full": "llama2_7b", "lora": "llama2_7b_lora", "qlora": "llama2_7b_qlora"}
COUNT = 8
MOST_GIB = 72
# Values from which a transfer is worth hiding, and an array worth sharing.
LARGE = 2**22
ADAPTERS = 39_976_960


class Case(NamedTuple):
    mode: str
    model: LlamaConfig
    shape: Shape
    report: ahead_of_time.Report
    program: list[Instruction]  # of the gradients

    @property
    def transfers(self):
        """Every collective that moves a large array, by its operation."""
        names = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
        found = collections.defaultdict(list)
        for instruction in self.program:
            if instruction.operation.startswith(names) and largest(instruction) >= LARGE:
                found[instruction.operation].append(instruction)
        return found

    @property
    def matrices(self):
        """The sizes of a layer's matrices, either way round."""
        width, ff = self.model.width, self.model.feed_forward
        return {(width, width), (width, ff), (ff, width)}


def largest(instruction: Instruction) -> int:
    return max(map(math.prod, instruction.shapes), default=0)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request) -> Case:
    """The configs that ship, with weights shared by all eight devices."""
    mesh_config = {"data": 1, "fsdp": COUNT, "tensor": 1}
    file = ROOT / "configs" / f"{CONFIGS[request.param]}.yaml"
    config = resolve({**read_yaml(file), "mesh": mesh_config})
    model = read_config(model_folder(config.model.path))
    shape = micro_batch_shapes(config, COUNT, stated_pairs(config, model), "cudnn")[0]
    mesh = make_mesh(config.mesh, ahead_of_time.gpus(DEVICES["h100-80"], COUNT))
    dtype = jnp.dtype("bfloat16")
    # A program out of a cache gives no account of itself.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        step = ahead_of_time.abstract_step(config, model, mesh, shape, "cudnn", dtype)
        compiled = ahead_of_time.compile_step(step)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    program = list(instructions(compiled.gradients.as_text()))
    return Case(request.param, model, shape, compiled.report, program)


def test_it_fits(case):
    """At most 72 GiB of the 79 that a card of 80 GB has."""
    report = case.report
    print(
        f"\n{case.mode}: {COUNT} x {case.shape.length} tokens, peak {report.peak / GIB:.1f} GiB, "
        f"of it always there {report.resident / GIB:.1f}; compiled in {report.seconds} s; "
        + ", ".join(f"{len(all_)} {name}" for name, all_ in sorted(case.transfers.items()))
    )
    assert report.peak <= MOST_GIB * GIB


def test_attention_is_cudnns_forward_and_backward(case):
    targets = {instruction.target for instruction in case.program}
    assert {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} <= targets


def test_no_array_of_every_query_and_every_key(case):
    """Neither over a packed row, nor over the wide ones of the causal rows made of it."""
    lengths = [case.shape.length, *dict(case.shape.causal_rows)][:3]
    for instruction in case.program:
        for shape in instruction.shapes:
            assert all(shape.count(length) < 2 for length in lengths), instruction


def test_no_logits_beyond_a_chunk(case):
    """Whatever has the vocabulary as a dimension is a chunk of logits, or weights."""
    width = case.model.width
    for instruction in case.program:
        for shape in instruction.shapes:
            if case.model.vocabulary in shape:
                others = math.prod(shape) // case.model.vocabulary
                assert others <= CHUNK or others == width, instruction


def test_transfers_run_beside_the_computation(case):
    """All of them are asynchronous, and most gathers of weights have a product beside them."""
    assert all(name.endswith(("-start", "-done")) for name in case.transfers), case.transfers
    gathers = [
        work
        for gather, work in work_between(case.program, "all-gather")
        if largest(gather) >= LARGE
    ]
    assert sum(work > 0 for work in gathers) >= len(gathers) * 2 / 3, gathers


def test_weights_are_gathered_layer_by_layer(case):
    """Seven matrices forward and again backward, in loops over the layers, and the head once."""
    gathers = [
        shape
        for gather in case.transfers["all-gather-done"]
        for shape in gather.shapes
        if math.prod(shape) >= LARGE
    ]
    layers = [shape for shape in gathers if shape in case.matrices]
    assert len(layers) >= 2 * 7
    head = (case.model.vocabulary, case.model.width)
    # Four-bit weights travel two to a byte.
    packed = {(rows // 2, columns) for rows, columns in case.matrices}
    assert set(gathers) <= {*case.matrices, *packed, head}, set(gathers)
    assert gathers.count(head) == 1


def test_gradients_are_scattered(case):
    """A layer's seven, and the head's; adapters are whole everywhere, so theirs are summed."""
    scattered = [shape for done in case.transfers["reduce-scatter-done"] for shape in done.shapes]
    summed = [shape for done in case.transfers["all-reduce-done"] for shape in done.shapes]
    if case.mode == "full":
        assert len(scattered) == 7 + 1
        assert not summed
    else:
        assert not scattered
        assert sum(map(math.prod, summed)) <= ADAPTERS


def test_no_parameter_is_whole_on_a_device(case):
    """No array holds a matrix of all layers, and none but the head is larger than one matrix."""
    whole = {tuple(sorted((case.model.layers, *matrix))) for matrix in case.matrices}
    for instruction in case.program:
        for shape in instruction.shapes:
            assert tuple(sorted(size for size in shape if size > 1)) not in whole, instruction
