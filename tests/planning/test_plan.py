"""Will it fit: the verdict, the settings that count, and the verb."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import tiny_models
from llama_plans import config_of

from tddpo_jax.__main__ import plan_command
from tddpo_jax.batches.layout import stream_length
from tddpo_jax.config.cells import expand, populations
from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.losses.logprobs import CHUNK
from tddpo_jax.planning import compiler, duration, lengths, plan
from tddpo_jax.planning.compiler import hosts_of
from tddpo_jax.planning.memory import usable
from tddpo_jax.planning.plan_text import as_json, lines
from tddpo_jax.system import hub
from tddpo_jax.system.devices import GIB
from tddpo_jax.training.shared import micro_batch_shapes
from tddpo_jax.weights import locate

V32 = "deepseek-ai/DeepSeek-V3.2-Exp"

# ---- the verdict ---------------------------------------------------------------------------------


@pytest.fixture
def without_compilers(monkeypatch):
    """Arithmetic alone, and nothing to be had from the hub."""
    monkeypatch.setattr(plan, "_start_compilers", lambda *_: {})
    monkeypatch.setattr(lengths, "STATED_PAIRS", 512)
    monkeypatch.setattr(lengths, "STATED_VALIDATION_PAIRS", 64)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Read when it is imported, which the verb does after it knows.
    monkeypatch.setattr(locate.huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def last_line(config, device):
    return list(lines(plan.make_plan(config, device), 1))[-1]


@pytest.mark.parametrize(
    ("name", "device", "mesh", "verdict"),
    [
        ("llama2_7b", "h100-80", {}, "fits: 41.7 GiB by arithmetic"),
        ("llama2_7b_lora", "a100-80", {}, "fits"),
        ("llama2_7b_qlora", "a100-40", {}, "fits"),
        ("llama2_7b_lora", "a100-40", {}, "does NOT fit.*; try --data.row-length"),
        ("llama2_7b", "a100-80", {"fsdp": 1}, "does NOT fit.*; try --train.mode lora"),
        ("llama2_7b", "h200-141", {"fsdp": 1}, "does NOT fit.*; try --data.row-length 8192"),
    ],
)
def test_the_verdict(name, device, mesh, verdict, without_compilers):
    """What changes is tried by arithmetic before it is named."""
    config = config_of(name)
    mesh = config.mesh.model_copy(update=mesh)
    line = last_line(config.model_copy(update={"mesh": mesh}), device)
    assert re.match(f"verdict    {verdict}", line), line


def test_a_mesh_that_does_not_divide_the_model_is_refused(without_compilers):
    config = config_of("llama2_7b", mesh={"fsdp": 3})
    with pytest.raises(ValueError, match=r"mesh\.fsdp: 3 does not divide the model's width, 4096"):
        plan.make_plan(config, "h100-80")


def test_the_compilers_word_counts(without_compilers, monkeypatch):
    """XLA for the device itself overrules arithmetic."""
    report = compiler.Report(resident=70 * GIB, gradients=9 * GIB, update=0, seconds=1.0)
    made = plan.make_plan(config_of("llama2_7b"), "h100-80")
    assert made.fits
    assert not dataclasses.replace(made, compiled={plan.XLA_CUDA: report}).fits
    assert dataclasses.replace(made, compiled={plan.XLA_CPUS: report}).fits


def test_a_plan_prints_without_its_examples(without_compilers):
    made = plan.make_plan(config_of("llama2_7b"), "h100-80")
    assert made.examples
    assert len(repr(made)) < 10_000


def test_what_the_compiler_needs_beyond_arithmetic_is_kept_free(without_compilers):
    """Arithmetic says yes, the compiler 40 GiB more: rows must be shorter, or something else."""
    made = plan.make_plan(config_of("llama2_7b"), "h100-80")
    more = compiler.Report(made.memory.peak + 40 * GIB, 0, 0, 1.0)
    told = dataclasses.replace(made, compiled={plan.XLA_CUDA: more})
    (line,) = [line for line in lines(told, 1) if line.startswith("verdict")]
    assert re.search(r"does NOT fit: 81\.\d GiB by XLA, .*; try --data\.row-length \d+ or ", line)
    assert told.longest_row < made.longest_row


def test_a_failed_compiler_leaves_the_arithmetic(without_compilers, monkeypatch):
    def start(*_):
        command = [sys.executable, "-c", "raise RuntimeError('no ptxas')"]
        return {plan.XLA_CUDA: subprocess.Popen(command, stderr=subprocess.PIPE, text=True)}

    monkeypatch.setattr(plan, "_start_compilers", start)
    made = plan.make_plan(config_of("llama2_7b"), "h100-80")
    assert made.fits
    reason = "compiling failed: RuntimeError: no ptxas"
    assert f"XLA, CUDA: unavailable ({reason})" in list(lines(made, 1))
    assert as_json(made, 1)["failed"] == {plan.XLA_CUDA: reason}


def test_what_cannot_fit_is_not_compiled(without_compilers, monkeypatch):
    """27 GB of float32 weights, four times over, on one card of 80 GB."""
    monkeypatch.setattr(plan, "_start_compilers", lambda *_: pytest.fail("compiled"))
    made = plan.make_plan(config_of("llama2_7b", mesh={"fsdp": 1}), "a100-80")
    assert not made.fits
    assert not made.compiled


def test_a_compiler_that_was_killed_is_told():
    process = subprocess.Popen(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pytest.raises(RuntimeError, match="SIGKILL ended the compiler; this machine may"):
        compiler.result(process)


# ---- settings that count -------------------------------------------------------------------------


def planned(name, members=1, device="h100-80", **settings):
    return plan.make_plan(config_of(name, **settings), device, members)


def test_a_population_has_so_many_adapters_and_activations(without_compilers):
    """Twenty cells of a seed beside one base; what twenty need of the base is what one needs."""
    cells = [
        resolve(cell)
        for cell in expand(
            {
                "loss": {"name": ["td_dpo", "dpo"], "beta": [0.1, 1.0], "tau": [1.0, 2.0]},
                "seed": [0, 1],
                "train": {"population": True, "mode": "qlora"},
            }
        )
    ]
    assert list(map(len, populations(cells))) == [2 * 2 + 2] * 2
    one, twenty = planned("llama2_7b_qlora"), planned("llama2_7b_qlora", 20)
    for part in ("adapters", "optimizer", "sums", "activations"):
        assert getattr(twenty.memory, part) == 20 * getattr(one.memory, part)
    assert twenty.memory.frozen == one.memory.frozen
    compute = [made.time.expected - made.time.memory for made in (one, twenty)]
    reference = one.work.forward * one.work.order.examples / (989e12 * duration.EXPECTED_SHARE)
    assert compute[1] - reference == pytest.approx(20 * (compute[0] - reference))
    population = planned("llama2_7b_qlora", 20, train={"population": True})
    text = "\n".join(lines(population, 60))
    assert "population 20 policies in one program" in text
    assert "for each of 3 populations" in text
    assert "try --train.population false" in text


def test_the_exact_kl_has_a_reference_and_its_logits(without_compilers):
    """A copy of the float32 weights; one forward pass more than the six operations of a token."""
    short, exact = (planned("llama2_7b", loss={"kl": kl}) for kl in ("k2", "full"))
    assert exact.memory.reference == exact.memory.trained
    # The reference's head, in float32 and as it is used, and three chunks of its logits.
    more = 32000 * 4096 * (4 + 2) + 3 * 4 * CHUNK * 32000
    assert exact.memory.gathered - short.memory.gathered == more
    # XLA, of eight devices.
    beside = (exact.memory.peak - exact.memory.resident) / GIB
    assert beside == pytest.approx(29.37, rel=0.06)
    assert exact.work.flops / short.work.flops == pytest.approx(4 / 3)
    assert exact.time.expected > short.time.expected


def test_a_separate_reference_is_gone_before_the_policy_comes(without_compilers):
    """Its weights count in bfloat16, by the mesh of one device; the larger of both peaks counts."""
    reference = {"model": {"reference": "Qwen/Qwen3-8B"}, "mesh": {"fsdp": 1}}
    alone = planned("llama2_7b_qlora", mesh={"fsdp": 1})
    beside = planned("llama2_7b_qlora", **reference)
    head_and_logits = 151936 * 4096 * 2 + 3 * 4 * CHUNK * 151936
    assert beside.separate == 8_190_735_360 * 2 + head_and_logits
    assert alone.separate == 0
    assert beside.memory == alone.memory
    assert beside.peak == max(beside.separate, alone.peak)
    as_policy = planned("llama2_7b_qlora", model={"path": "Qwen/Qwen3-8B"}, mesh={"fsdp": 1})
    assert beside.work.reference == as_policy.work.forward > alone.work.reference
    assert beside.time.floor > alone.time.floor
    assert any(line.startswith("reference  Qwen/Qwen3-8B scores") for line in lines(beside, 1))


def test_a_separate_reference_has_other_layers_than_the_policy(without_compilers):
    """No adapter of the policy is part of it. Its experts are at work on parts of the tokens."""
    reference = {"model": {"reference": "openai/gpt-oss-20b", "attention": "xla"}}
    made = planned("llama2_7b_qlora", lora={"targets": ["gate_proj"]}, **reference)
    assert made.separate > 20_914_757_184 * 2 / 8
    assert made.room == usable(made.sheet)
    assert "by arithmetic" in list(lines(made, 1))[-1]


def test_a_kernel_that_cannot_choose_keys_is_refused(without_compilers):
    """For the policy and for a separate reference: the run would refuse it, too."""
    long = {"data": {"max_length": 4096, "row_length": 8192}}
    for model in ({"path": V32}, {"reference": V32}):
        with pytest.raises(UserError, match="cannot choose keys"):
            planned("llama2_7b_lora", model={**model, "attention": "cudnn"}, **long)


def test_dtype_and_attention_are_those_asked_for(without_compilers):
    """float32: products at half the rate, activations of twice the bytes, and no cuDNN."""
    half = planned("llama2_7b")
    single = planned("llama2_7b", model={"dtype": "float32"})
    assert (half.attention, single.attention) == ("cudnn", "xla")
    assert single.shapes[0].causal_rows == ()
    assert single.memory.activations == 2 * half.memory.activations
    assert single.time.floor == pytest.approx(2 * half.time.floor)
    assert planned("llama2_7b", model={"attention": "xla"}).attention == "xla"
    with pytest.raises(ValueError, match=r"model\.attention: cudnn needs .* and float32"):
        planned("llama2_7b", model={"dtype": "float32", "attention": "cudnn"})


def test_heads_that_no_kernel_takes_are_refused(without_compilers, tmp_path):
    folder = tiny_models.save(tmp_path / "model", tiny_models.hugging_face())
    problem = r"cudnn on NVIDIA H100 needs a head size .* this model's is 10; choose xla"
    with pytest.raises(ValueError, match=problem):
        planned("llama2_7b", model={"path": str(folder)}, mesh={"fsdp": 1})


def test_what_goes_through_the_devices_memory(without_compilers):
    """One GPU, full remat. Derived: 9 + 2 n times the float32 weights, and in each of 3 n passes

    those again, read, and the layers in bfloat16, written and read.
    """
    made = planned("llama2_7b", model={"remat": "full"}, mesh={"fsdp": 1}, device="h200-141")
    trained, n = 4 * 6_738_415_616, made.work.micro_batches
    layers = 2 * (6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096)
    step = (9 + 2 * n) * trained + 3 * n * (trained + 2 * layers)
    assert made.time.memory == pytest.approx(made.work.order.total_steps * step / 4.8e12)
    assert made.time.expected > made.time.memory


def test_an_axis_left_to_the_devices_is_told(without_compilers):
    """`mesh.data: -1`, with which the LoRA config ships, is one device until somebody counts."""
    told = (
        "(mesh.data takes all remaining devices, and this plan assumes 1; "
        "use --mesh.data N to plan for N)"
    )
    left_open, given = planned("llama2_7b_lora"), planned("llama2_7b_lora", mesh={"data": 8})
    assert [line.strip() for line in lines(left_open, 1)].count(told) == 1
    assert as_json(left_open, 1)["open_axes"] == ["data"]
    assert not any("planned for" in line for line in lines(given, 1))
    assert as_json(given, 1)["mesh"]["data"] == 8


def test_devices_that_hosts_cannot_share_are_refused(without_compilers):
    assert [hosts_of(count) for count in (1, 8, 10, 16)] == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="mesh: 9 devices cannot be spread evenly over 2 hosts"):
        planned("llama2_7b_lora", mesh={"data": 9, "fsdp": 1})


# ---- where the lengths come from -----------------------------------------------------------------


def test_an_unreachable_hub_leaves_the_stated_lengths(without_compilers):
    assert planned("llama2_7b").lengths == (
        "stated lengths of dpo-mix-7k in place of argilla/dpo-mix-7k, because the hub cannot be "
        "reached: no tokenizer meta-llama/Llama-2-7b-chat-hf"
    )


def test_a_local_file_is_looked_at_without_a_tokenizer_too(without_compilers, tmp_path):
    """Its lengths are not known, but whether it is there, and what its rows lack."""
    with pytest.raises(ValueError, match=r"data nowhere\.jsonl: no such file"):
        planned("llama2_7b", data={"path": "nowhere.jsonl"})
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl.*chosen"):
        planned("llama2_7b", data={"path": str(tmp_path / "rows.jsonl")})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"template": "lama-2"}, "template 'lama-2': no such template"),
        ({"max_length": 64, "max_prompt_length": 64}, "max_prompt_length: must be less than"),
        ({"path": "nowhere.jsonl"}, "data nowhere.jsonl: no such file"),
        ({"validation": "nosplit"}, "data.validation: 'nosplit' is no file"),
    ],
)
def test_mistakes_have_no_stand_in(data, problem, without_compilers):
    """Whether the model is here or its hub cannot be reached."""
    names = ["embedded"] if {"path", "validation"} & set(data) else ["embedded", "llama2_7b"]
    for name in names:
        with pytest.raises(ValueError, match=re.escape(problem)):
            planned(name, data=data)


def test_what_a_hub_that_answers_does_not_give_is_a_mistake(without_compilers, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda: True)
    with pytest.raises(ValueError, match="tokenizer meta-llama/Llama-2-7b-chat-hf: "):
        planned("llama2_7b")


def test_rows_are_those_of_training(without_compilers):
    """Validation's pairs are packed into the same rows: the longest of them decides as well."""
    made = planned("embedded", train={"batch_pairs": 16})
    dataset, _ = plan.dataset_or_stated(made.config, made.model)
    assert dataset.validation
    short = dataclasses.replace(dataset, train=dataset.train[:1], validation=dataset.validation)
    shapes = micro_batch_shapes(made.config, 1, short, made.attention)
    longest = max(stream_length(pair) for pair in dataset.validation)
    assert shapes[0].length >= longest > stream_length(dataset.train[0])


def test_single_responses_are_planned_for_by_a_loss_that_reads_one(without_compilers, tmp_path):
    """Two rows: prompts of 2 and 4 tokens, responses of 3 and 5, means 3 and 4."""
    rows = [
        {"prompt_ids": list(range(n, 2 * n)), "response_ids": list(range(n, 2 * n + 1))}
        for n in (2, 4)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(file), "validation": 0}
    made = planned("embedded", data=data, loss={"name": "sft"})
    assert made.shapes[0].responses == 1
    text = "\n".join(lines(made, 1))
    assert "2 examples, tokens of prompt, response 3, 4" in text
    assert "of useful work for each example" in text
    with pytest.raises(ValueError, match=r"loss\.name: dpo compares two responses"):
        planned("embedded", data=data, loss={"name": "dpo"})


# ---- the verb ------------------------------------------------------------------------------------


def test_the_verb(capsys):
    """The embedded model and data, arithmetic and the compiler beside each other."""
    status = plan_command(["--json", "--device", "a100-40"])
    told = json.loads(capsys.readouterr().out)
    assert status == 0
    assert told["fits"]
    assert told["lengths"].startswith("embedded")
    compiled = told["compiled"][plan.XLA_CPUS]
    arithmetic = told["arithmetic"]
    names = ("trained", "adapters", "frozen", "reference", "optimizer", "sums")
    resident = sum(arithmetic[name] for name in names)
    # Beside these, the compiler counts the micro-batch and the scalars.
    assert resident <= compiled["resident"] <= resident * 1.2
    assert told["time"]["expected"] > told["time"]["floor"] > 0


def test_a_model_that_is_nowhere_is_the_users_mistake(monkeypatch):
    monkeypatch.setattr(lengths, "is_local", lambda path: False)

    def unreachable(*_, **__):
        raise OSError("no such repository")

    monkeypatch.setattr(locate.huggingface_hub, "hf_hub_download", unreachable)
    problem = r"model\.path: some/model: fetching config\.json failed"
    with pytest.raises(ValueError, match=problem):
        plan.model_folder("some/model")
