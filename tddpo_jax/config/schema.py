"""The schema of a run: every setting with its type, default and bounds.

A `Config` is one cell of a grid, fully resolved: scalars only. A YAML file or a command line may
give lists for the four axes of a grid (`loss.name`, `loss.beta`, `loss.tau`, `seed`): `expand`
makes one mapping per cell of such a mapping, and `resolve` makes a `Config` of a mapping or raises
a one-line `UserError` that names the field. The settings of losses are those of the rows of
`losses.catalogue.LOSSES`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator
from pydantic.fields import FieldInfo

from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES, all_settings, readers
from tddpo_jax.losses.loss import Loss, Setting

# Names of types that stand in the place of an error, behind the field.
VALUE_TYPES = ("float", "str", "bool", "constrained-int")


def _at_least_one(value: int) -> int:
    if value == 0 or value < -1:
        raise ValueError("must be a positive number, or -1 for all remaining devices")
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


def _columns(value: Any) -> Any:
    """A command line gives `prompt=instruction,chosen=good` as text."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise ValueError("must be pairs such as prompt=instruction,chosen=good")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


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
    path: str = Field(
        "embedded",
        description="JSON, JSONL, CSV or Parquet file, a pattern of files, folder, hub id or "
        "`owner/name@revision`, or `embedded`",
    )
    split: str | None = Field(None, description="the split to train on; default: `train`")
    config: str | None = Field(None, description="the config of a data set that has several")
    columns: Annotated[dict[str, str] | None, BeforeValidator(_columns)] = Field(
        None, description="our names and the data's, as prompt=instruction,chosen=good"
    )
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
    """The loss by name; beside it, `loss_section` puts every setting of the losses."""

    name: str = Field(DEFAULT_LOSS, description="the loss (short: --loss)")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The value of a setting, such as `beta`."""

    @property
    def exact_kl(self) -> bool:
        """Whether the loss reads the exact KL to the reference."""
        return LOSSES[self.name].exact_kl(dict(self))

    @pydantic.model_validator(mode="after")
    def _beta_scales_something(self) -> LossConfig:
        loss = LOSSES[self.name]
        if "beta" in loss.settings and loss.needs_beta and self.beta == 0:
            raise ValueError(f"loss.beta: must be above 0 for {self.name}, got 0")
        return self


def loss_section() -> type[LossConfig]:
    """The section `loss` of a configuration: a field for every setting of the losses there are."""
    return _loss_section(tuple(LOSSES.items()))


# Cached: sections are equal only if they are of one class.
@functools.cache
def _loss_section(losses: tuple[tuple[str, Loss], ...]) -> type[LossConfig]:
    names: Any = Literal[tuple(name for name, _ in losses)]
    fields: dict[str, Any] = {"name": (names, LossConfig.model_fields["name"])}
    for name, setting in all_settings().items():
        description = f"{setting.help}; read by {readers(name)}"
        fields[name] = (_type_of(setting), Field(setting.default, description=description))
    return pydantic.create_model("LossConfig", __base__=LossConfig, __module__=__name__, **fields)


def _type_of(setting: Setting) -> Any:
    if setting.choices:
        return Literal[setting.choices]
    bounds = Field(gt=setting.above, ge=setting.at_least, lt=setting.below, allow_inf_nan=False)
    return Annotated[float, bounds]


def _loss_of(value: Any) -> LossConfig:
    return loss_section().model_validate(value)


class LoraConfig(Section):
    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="names of the linear layers that get adapters; default: all of a block"
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
    batch_pairs: Count = Field(128, description="pairs, or single responses, of one optimiser step")
    eval_every: Count | None = Field(
        None, description="steps; epoch ends and the end are always evaluated"
    )
    log_every: Count = Field(1, description="steps between the lines of metrics.jsonl")
    best_metric: str | None = Field(
        None,
        description="chooses best/, a loss or a kl by its least value; default: "
        "eval_rewards/accuracies, or eval_loss where a prompt has one response",
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
            raise ValueError("train.population: needs train.mode lora or qlora, not full")
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
            raise ValueError(f"mesh.{others[0]}: only one axis may be -1, mesh.{first} is")
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
            raise ValueError("must be address:port")
        return value

    @pydantic.model_validator(mode="after")
    def _by_hand_or_not(self) -> HostsConfig:
        by_hand = {"coordinator": self.coordinator, "count": self.count, "index": self.index}
        for name, value in by_hand.items():
            if value is None and any(other is not None for other in by_hand.values()):
                raise ValueError(f"hosts.{name}: needed, for another of {', '.join(by_hand)} is")
        if self.index is not None and self.count is not None and self.index >= self.count:
            raise ValueError(f"hosts.index: {self.index} is none of 0 to {self.count - 1}")
        return self


class Config(Section):
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    # Validated and written by the section of the losses that there are then.
    loss: pydantic.SerializeAsAny[Annotated[LossConfig, PlainValidator(_loss_of)]] = Field(
        default_factory=lambda: loss_section()()
    )
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    seed: int = Field(0, ge=0, description="order of the data and start of the adapters")
    output: str | None = Field(
        None, description="directory of the run or grid; default runs/<name of the cell>"
    )


def setting_fields(
    section: type[Section] = Config, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of the schema by its dotted name, with those of the losses that there are."""
    for name, field in section.model_fields.items():
        kind = loss_section() if field.annotation is LossConfig else field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from setting_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


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
