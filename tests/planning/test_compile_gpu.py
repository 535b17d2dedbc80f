"""Llama-2-7B compiled for GPUs not at hand: its step for eight H100s, its answers for an H200.

Runs where JAX's CUDA plug-in is installed, in about two minutes on two cores:

    pip install -e '.[cuda12,slurm,tokamax]' beartype hypothesis pytest
    python -m pytest tests/planning/test_compile_gpu.py -s

XLA compiles the whole program, with its collectives and the kernels of cuDNN or tokamax. It cannot
choose among products by measuring them, and knows no workspace of cuDNN.
"""

import collections
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import nnx
from hlo import Instruction, instructions, work_between
from places import CONFIGS

from tddpo_jax.batches.layout import Shape
from tddpo_jax.config.reading import read_yaml, resolve
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.generation.decode import Prompts, cache_slots, generate_rows
from tddpo_jax.generation.sampling import Sampler, row_keys
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.placement.shardings import row_sharding
from tddpo_jax.planning import abstract, compiler
from tddpo_jax.planning.lengths import stated_dataset
from tddpo_jax.system.devices import DEVICES, GIB
from tddpo_jax.training.shared import micro_batch_shapes
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import model_folder

pytestmark = [
    pytest.mark.gpu_compile,
    # Of tokamax 0.0.12, the version for JAX 0.10.
    pytest.mark.filterwarnings("ignore:The out_shape and scratch_shapes arguments"),
    pytest.mark.skipif(not compiler.cuda_installed(), reason="JAX's CUDA plug-in is not installed"),
]

COUNT = 8
# The configs as they ship, adapters beside a base that all eight share, and the other kernel.
CASES = {
    "full": ("llama2_7b", COUNT, "cudnn"),
    "lora": ("llama2_7b_lora", 1, "cudnn"),
    "qlora": ("llama2_7b_qlora", 1, "cudnn"),
    "lora, shared base": ("llama2_7b_lora", COUNT, "cudnn"),
    "qlora, shared base": ("llama2_7b_qlora", COUNT, "cudnn"),
    "full, tokamax": ("llama2_7b", COUNT, "tokamax"),
    "qlora, tokamax": ("llama2_7b_qlora", 1, "tokamax"),
}
MOST_GIB = 72
# Values from which a transfer is worth hiding, and an array worth sharing.
LARGE = 2**22
# Scored positions whose logits exist at a time.
CHUNK = 512
ADAPTERS = 39_976_960


class Case(NamedTuple):
    name: str
    fsdp: int
    attention: str
    model: LlamaConfig
    shape: Shape
    report: compiler.Report
    gradients: list[Instruction]
    update: list[Instruction]

    @property
    def full(self):
        return self.name.startswith("full")

    @property
    def transfers(self):
        """Every collective of the gradients that moves a large array, by its operation."""
        found = collections.defaultdict(list)
        for instruction in self.gradients:
            if is_transfer(instruction) and largest(instruction) >= LARGE:
                found[instruction.operation].append(instruction)
        return found

    @property
    def matrices(self):
        """The sizes of a layer's matrices, either way round."""
        width, ff = self.model.width, self.model.feed_forward
        return {(width, width), (width, ff), (ff, width)}

    @property
    def parts(self):
        """Sorted sizes of what a device has of a matrix of all layers, whichever side is shared."""
        layers, fsdp = self.model.layers, self.fsdp
        return {
            tuple(sorted(part))
            for outputs, inputs in self.matrices
            for part in ((layers, outputs // fsdp, inputs), (layers, outputs, inputs // fsdp))
        }

    @property
    def head(self):
        return self.model.vocabulary, self.model.width


def is_transfer(instruction: Instruction) -> bool:
    names = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
    return instruction.operation.startswith(names)


def largest(instruction: Instruction) -> int:
    return max(map(math.prod, instruction.shapes), default=0)


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    """Both programs of a step, as XLA made them, and its account of them."""
    name, fsdp, attention = CASES[request.param]
    if attention == "tokamax":
        pytest.importorskip("tokamax")
    mesh_config = {"data": COUNT // fsdp, "fsdp": fsdp, "tensor": 1}
    config = resolve({**read_yaml(CONFIGS / f"{name}.yaml"), "mesh": mesh_config})
    model = read_config(model_folder(config.model.path))
    shape = micro_batch_shapes(config, COUNT, stated_dataset(config, model), attention)[0]
    mesh = make_mesh(config.mesh, compiler.gpus(DEVICES["h100-80"], COUNT))
    dtype = jnp.dtype("bfloat16")
    # A program out of a cache gives no account of itself.
    with tiny_models.compiled_anew():
        step = compiler.abstract_step(config, model, mesh, shape, attention, dtype)
        compiled = compiler.compile_step(step)
    programs = (list(instructions(c.as_text())) for c in (compiled.gradients, compiled.update))
    return Case(request.param, fsdp, attention, model, shape, compiled.report, *programs)


def test_it_fits(case):
    """At most 72 GiB of the 79 that a card of 80 GB has."""
    report = case.report
    print(
        f"\n{case.name}: {COUNT} x {case.shape.length} tokens, peak {report.peak / GIB:.1f} GiB, "
        f"of it always there {report.resident / GIB:.1f}; compiled in {report.seconds} s; "
        + ", ".join(
            f"{len(all_)} {name.removesuffix('-done')}"
            for name, all_ in sorted(case.transfers.items())
            if name.endswith("-done")
        )
    )
    assert report.peak <= MOST_GIB * GIB


def test_attention_is_the_kernels_forward_and_backward(case):
    """Of tokamax, whose calls have one name: forward, once more for backward, and its two."""
    targets = collections.Counter(instruction.target for instruction in case.gradients)
    if case.attention == "cudnn":
        assert targets["__cudnn$fmhaSoftmax"]
        assert targets["__cudnn$fmhaSoftmaxBackward"]
        assert not targets["mosaic_gpu_v2"]
    else:
        assert targets["mosaic_gpu_v2"] == 4 * len(case.shape.causal_rows)
        assert not any("cudnn" in (target or "") for target in targets)


def test_no_array_of_every_query_and_every_key(case):
    """Neither over a packed row, nor over the wide ones of the causal rows made of it."""
    lengths = [case.shape.length, *dict(case.shape.causal_rows)][:3]
    for instruction in case.gradients:
        for shape in instruction.shapes:
            assert all(shape.count(length) < 2 for length in lengths), instruction


def test_no_logits_beyond_a_chunk(case):
    """Whatever has the vocabulary as a dimension is a chunk of logits, or weights."""
    width = case.model.width
    for instruction in case.gradients:
        for shape in instruction.shapes:
            if case.model.vocabulary in shape:
                others = math.prod(shape) // case.model.vocabulary
                assert others <= CHUNK or others == width, instruction


def test_transfers_need_not_be_waited_for(case):
    """All of them are asynchronous, and most gathers of weights have a product beside them."""
    assert all(name.endswith(("-start", "-done")) for name in case.transfers), case.transfers
    gathers = [
        work
        for gather, work in work_between(case.gradients, "all-gather")
        if largest(gather) >= LARGE
    ]
    beside_work = sum(work > 0 for work in gathers)
    print(f"\n{case.name}: a product beside {beside_work} of {len(gathers)} gathers")
    assert beside_work >= len(gathers) * 2 / 3, gathers


def test_weights_are_gathered_layer_by_layer(case):
    """Seven matrices forward and again backward, in loops over the layers, and the head once.

    Nothing is where every device has the whole base.
    """
    gathers = [
        shape
        for gather in case.transfers["all-gather-done"]
        for shape in gather.shapes
        if math.prod(shape) >= LARGE
    ]
    if case.fsdp == 1:
        assert not gathers
        return
    layers = [shape for shape in gathers if shape in case.matrices]
    assert len(layers) >= 2 * 7
    # Four-bit weights travel two to a byte.
    packed = {(rows // 2, columns) for rows, columns in case.matrices}
    assert set(gathers) <= {*case.matrices, *packed, case.head}, set(gathers)
    assert gathers.count(case.head) == 1


def test_weights_are_gathered_as_they_lie(case):
    """No copy of a matrix of all layers in another order, nor of its gradients."""
    for instruction in case.gradients:
        if instruction.operation in ("copy", "transpose"):
            for shape in instruction.shapes:
                assert tuple(sorted(shape)) not in case.parts, instruction


def test_gradients_are_scattered(case):
    """A layer's seven, and the head's; adapters are whole everywhere, so theirs are summed once."""
    scattered = [shape for done in case.transfers["reduce-scatter-done"] for shape in done.shapes]
    summed = [shape for done in case.transfers["all-reduce-done"] for shape in done.shapes]
    if case.full:
        assert len(scattered) == 7 + 1
        assert not summed
    else:
        assert not scattered
        assert sum(map(math.prod, summed)) == ADAPTERS


def test_the_update_moves_no_weights(case):
    """Each device updates what it has; only squares for the gradient's norm are added up."""
    transfers = [instruction for instruction in case.update if is_transfer(instruction)]
    assert all(largest(transfer) < 100 for transfer in transfers), transfers
    assert bool(transfers) == case.full


def test_no_parameter_is_whole_on_a_device(case):
    """No array without tokens is larger than a layer's matrix but each device's part, and the head.

    Part: of a matrix of all layers. The head is brought together once; see the next test for the
    embedding, which has its shape.
    """
    counts = {count for _, count in case.shape.causal_rows if count != COUNT}
    places = {width * count for width, count in case.shape.causal_rows}
    # A size that is the model's as well says nothing of tokens.
    tokens = {case.shape.length, *counts, *places} - set(sum(case.matrices, ()))
    most = max(map(math.prod, case.matrices))
    for instruction in (*case.gradients, *case.update):
        for shape in instruction.shapes:
            sizes = tuple(sorted(size for size in shape if size > 1))
            if not tokens & set(sizes) and sizes not in case.parts:
                assert math.prod(sizes) <= most or sizes == tuple(sorted(case.head)), instruction


def test_the_embedding_is_never_whole(case):
    """What has its size is the head: gathered by name; no sum is made by scattering into it."""
    if case.fsdp == 1:
        return

    def has_it(instruction: Instruction) -> bool:
        return any(sorted(case.head) == sorted(shape) for shape in instruction.shapes)

    assert not [i for i in case.update if has_it(i)]
    whole = [i for i in case.gradients if has_it(i)]
    assert not [i for i in whole if "embed" in i.source or "scatter-add" in i.source]
    gathered = {i.source for i in whole if i.operation.startswith("all-gather")}
    assert len(gathered) == 1
    assert "head" in gathered.pop()


# ---- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [128, 1024])
def test_decoding_holds_one_cache(new, monkeypatch):
    """80 answers of Llama-2-7B on one H200, in one block of the cache and in several.

    Beside weights and cache it takes little: no token copies the cache, for a product or to write.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows, prompt, dtype = 80, 128, jnp.dtype("bfloat16")
    config = read_config(model_folder("meta-llama/Llama-2-7b-hf"))
    mesh = make_mesh(MeshConfig(data=1), compiler.gpus(DEVICES["h200-141"], 1))
    graphdef, weights, _ = abstract.abstract_weights(resolve({}), config, dtype)
    weights = jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, dtype), weights)

    def per_row(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=row_sharding(mesh))

    keys = jax.eval_shape(row_keys, per_row(np.uint32, 2))
    compiled = generate_rows.lower(
        nnx.merge(graphdef, abstract.placed(weights, config, mesh)),
        Prompts(per_row(np.int32, prompt), per_row(np.int32)),
        Sampler(
            *map(per_row, (np.float32, np.int32, np.float32)),
            jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=row_sharding(mesh)),
        ),
        per_row(np.int32),
        np.zeros(8, np.int32),
        new=new,
        dtype=dtype,
        mesh=mesh,
    ).compile()
    memory = compiled.memory_analysis()
    values = rows * config.layers * config.key_value_heads * config.head_size
    cache = 2 * values * cache_slots(prompt, new) * dtype.itemsize
    print(
        f"\ndecoding {new} tokens: weights {memory.argument_size_in_bytes / GIB:.1f} GiB, "
        f"cache {cache / GIB:.1f}, beside it {(memory.temp_size_in_bytes - cache) / GIB:.1f}"
    )
    assert memory.temp_size_in_bytes < cache + 2 * GIB
