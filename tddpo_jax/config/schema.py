"""The schema of a run: every setting with its type, default and bounds.

A `Config` is one cell of a grid, fully resolved: scalars only. A YAML file or a command line may
give lists for the four axes of a grid (`loss.name`, `loss.beta`, `loss.tau`, `seed`): `expand`
makes one mapping per cell of such a mapping, and `resolve` makes a `Config` of a mapping or raises
a one-line `UserError` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from tddpo_jax.errors import UserError

LossName = Literal[
    "td_dpo",
    "dpo",
    "discopop",
    "ipo",
    "hinge",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "sigmoid_norm",
    "simpo",
    "sft",
]

# The settings of `LossConfig` that each loss reads beside its name.
LOSS_SETTINGS: dict[str, tuple[str, ...]] = {
    "td_dpo": ("beta", "tau", "margin", "kl"),
    "dpo": ("beta", "label_smoothing"),
    "discopop": ("beta", "discopop_tau"),
    "ipo": ("beta",),
    "hinge": ("beta",),
    "robust": ("beta", "label_smoothing"),
    "exo_pair": ("beta", "label_smoothing"),
    "nca_pair": ("beta",),
    "bco_pair": ("beta",),
    "sppo_hard": ("beta",),
    "apo_zero": ("beta",),
    "apo_down": ("beta",),
    "sigmoid_norm": ("beta",),
    "simpo": ("beta", "simpo_gamma"),
    "sft": (),
}

# Names of types that stand in the place of an error, behind the field.
VALUE_TYPES = ("float", "str", "bool", "constrained-int")


def _at_least_one(value: int) -> int:
    if value == 0 or value < -1:
        raise UserError("must be a positive number, or -1 for all remaining devices")
    return value


def _number_if_possible(value: Any) -> Any:
    """A command line gives `0.1` as text; a file or a split may be any other text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _whole_number_if_possible(value: Any) -> Any:
    """A command line gives `1` as text, which might also be meant as `yes`."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
AxisSize = Annotated[int, AfterValidator(_at_least_one)]


class Section(pydantic.BaseModel):
    """A group of settings: frozen, unknown keys refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(Section):
    path: str = Field(
        "embedded", description="Hugging Face folder, hub id, run directory, or `embedded`"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the computation; auto: bfloat16 on accelerators, float32 on CPU"
    )
    attention: Literal["auto", "xla", "cudnn", "tokamax"] = Field(
        "auto",
        description="back-end of attention; auto: cudnn for bfloat16 on NVIDIA GPUs, else xla; "
        "tokamax: on Hopper GPUs, where it is installed",
    )
    remat: Literal["none", "full", "dots"] = Field(
        "full",
        description="what backward recomputes: nothing, each layer, or all but the large products",
    )


class DataConfig(Section):
    path: str = Field("embedded", description="JSON, JSONL or Parquet file, hub id, or `embedded`")
    validation: Annotated[float | str | None, BeforeValidator(_number_if_possible)] = Field(
        None,
        description="file, split's name, fraction or 0; default: the dataset's own, else 0.1",
    )
    split_seed: int = Field(0, description="of the split by fraction; never moved by --seed")
    template: str | None = Field(
        None, description="a named chat template; default: the tokenizer's own, else `plain`"
    )
    max_length: Count | None = Field(
        None,
        description="tokens of one branch, prompt + response; default min(2048, model's context)",
    )
    max_prompt_length: Count | None = Field(
        None,
        description="what the prompt of a too long branch is cut down to; default max_length / 2",
    )
    layout: Literal["packed", "plain"] = Field(
        "packed", description="plain: one padded branch per row, for comparison"
    )
    row_length: Count | None = Field(
        None, description="tokens of one row; default: chosen from the data's lengths"
    )
    rows: Count | None = Field(
        None, description="rows of a micro-batch; default: one per data-parallel device"
    )


class LossConfig(Section):
    name: LossName = Field("td_dpo", description="the loss (short: --loss)")
    beta: NonNegative = Field(
        0.05, description="weight of the KL term (td_dpo), scale of the log-ratios (the others)"
    )
    tau: Positive = Field(1.0, description="temperature of TD-DPO's preference margin")
    margin: Literal["policy", "log_ratio", "length_normalized"] = Field(
        "policy", description="TD-DPO's margin"
    )
    kl: Literal["k2", "full"] = Field(
        "k2", description="TD-DPO's KL term: squared log-ratios, or exact over the vocabulary"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="probability of a flipped label"
    )
    discopop_tau: Positive = Field(0.05, description="DiscoPOP's own temperature")
    simpo_gamma: NonNegative = Field(0.5, description="SimPO's target reward margin")

    @pydantic.model_validator(mode="after")
    def _beta_scales_something(self) -> LossConfig:
        if self.beta == 0 and self.name not in ("td_dpo", "sft"):
            raise UserError(f"loss.beta: must be above 0 for {self.name}, got 0")
        return self


class LoraConfig(Section):
    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...
    ] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )


class TrainConfig(Section):
    mode: Literal["full", "lora", "qlora"] = Field(
        "full", description="what is trained: all weights, or adapters"
    )
    learning_rate: NonNegative = Field(
        1e-5, description="after the warm-up; in a file also a mapping from losses to rates"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="after the warm-up"
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="share of all steps")
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    adam_b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_b2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_eps: Positive = 1e-8
    epochs: Count = 3
    max_steps: Count | None = Field(
        None, description="stop after this many steps, whatever the epochs"
    )
    batch_pairs: Count = Field(128, description="preference pairs of one optimiser step")
    eval_every: Count | None = Field(
        None, description="steps; epoch ends and the end are always evaluated"
    )
    log_every: Count = Field(1, description="steps between the lines of metrics.jsonl")
    best_metric: str = Field(
        "eval_rewards/accuracies", description="chooses best/; a loss or a kl is minimised"
    )
    population: Annotated[bool | Count, BeforeValidator(_whole_number_if_possible)] = Field(
        False,
        description="train the LoRA cells of one seed of a grid in one program; a number: at most "
        "so many together",
    )
    wandb: bool = Field(False, description="also log to Weights & Biases (must be installed)")

    @pydantic.model_validator(mode="after")
    def _population_of_adapters(self) -> TrainConfig:
        if self.population and self.mode == "full":
            raise UserError("train.population: needs train.mode lora or qlora, not full")
        return self


class MeshConfig(Section):
    data: AxisSize = Field(
        1, description="devices that hold copies of the weights; -1: all remaining"
    )
    fsdp: AxisSize = Field(
        -1, description="devices that share the weights and the rows; -1: all remaining"
    )
    tensor: AxisSize = Field(
        1, description="devices that share each layer's heads and features; -1: all remaining"
    )

    @pydantic.model_validator(mode="after")
    def _one_open_axis(self) -> MeshConfig:
        first, *others = [name for name, size in self if size == -1] or [""]
        if others:
            raise UserError(f"mesh.{others[0]}: only one axis may be -1, mesh.{first} is")
        return self


class HostsConfig(Section):
    """Several processes as one job. No part of what a run is: it may resume on other hosts."""

    launcher: Literal["auto", "none", "slurm", "ompi", "k8s", "mpi4py"] = Field(
        "auto",
        description="who started the processes of a job; auto: SLURM or Open MPI, where they "
        "started several; none: every process is a job of its own",
    )
    coordinator: str | None = Field(
        None, description="address:port of the first process, for processes started by hand"
    )
    count: Count | None = Field(None, description="processes, with hosts.coordinator")
    index: Annotated[int, Field(ge=0)] | None = Field(
        None, description="of this process, from 0, with hosts.coordinator"
    )
    meet_within: Count = Field(
        300, description="seconds that processes wait for each other at the start"
    )
    lost_after: Count = Field(
        30, description="seconds without a sign of life after which a process counts as lost"
    )

    @pydantic.field_validator("coordinator")
    @classmethod
    def _has_a_port(cls, value: str | None) -> str | None:
        address, _, port = (value or "").rpartition(":")
        if value is not None and not (address and port.isdecimal() and 0 < int(port) < 2**16):
            raise UserError("must be address:port")
        return value

    @pydantic.model_validator(mode="after")
    def _by_hand_or_not(self) -> HostsConfig:
        by_hand = {"coordinator": self.coordinator, "count": self.count, "index": self.index}
        for name, value in by_hand.items():
            if value is None and any(other is not None for other in by_hand.values()):
                raise UserError(f"hosts.{name}: needed, for another of {', '.join(by_hand)} is")
        if self.index is not None and self.count is not None and self.index >= self.count:
            raise UserError(f"hosts.index: {self.index} is none of 0 to {self.count - 1}")
        return self


class Config(Section):
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    seed: int = Field(0, ge=0, description="order of the data and start of the adapters")
    output: str | None = Field(
        None, description="directory of the run or grid; default runs/<name of the cell>"
    )


def resolve(mapping: Mapping[str, Any]) -> Config:
    """Validates one cell.

    Raises:
        UserError: one line per problem, each naming the dotted field and the value.
    """
    try:
        return Config.model_validate(mapping)
    except pydantic.ValidationError as error:
        raise UserError("; ".join(_problem(problem) for problem in error.errors())) from None


def _problem(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"] if part not in VALUE_TYPES)
    if problem["type"] == "extra_forbidden":
        return f"{name}: no such setting"
    if problem["type"] == "value_error" and "." in problem["msg"].partition(":")[0]:
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        return f"{name or 'config'}: must be a group of settings, got {problem['input']!r}"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        value = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"config {path}: must hold a mapping of settings")
    return value
