"""The schema of a run: every setting with its type, default and bounds.

A `Config` is one cell of a grid, fully resolved: it holds scalars only. `reading.py` makes it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from tddpo_jax.config.loss_section import LossConfig, loss_of, loss_section
from tddpo_jax.config.section import Count, NonNegative, Positive, Section, Share

DEFAULT_MAX_LENGTH = 2048  # tokens of one branch
DEFAULT_FRACTION = 0.1  # of the rows, for validation


def _at_least_one(value: int) -> int:
    if value == 0 or value < -1:
        raise ValueError("must be a positive number, or -1 for all remaining devices")
    return value


def _number_if_possible(value: Any) -> Any:
    """The number in a text such as `0.1`; any other value as it is, such as a split's name."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _whole_number_if_possible(value: Any) -> Any:
    """The whole number in a text such as `1`, which pydantic would read as true."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _columns(value: Any) -> Any:
    """A command line gives `prompt=instruction,chosen=good` as text."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise ValueError("must be pairs such as prompt=instruction,chosen=good")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


Columns = Annotated[dict[str, str] | None, BeforeValidator(_columns)]
AxisSize = Annotated[int, AfterValidator(_at_least_one)]


class ModelConfig(Section):
    """The model, and how it is computed."""

    path: str = Field(
        "embedded",
        min_length=1,
        description="Hugging Face folder, hub id, run directory, or `embedded`",
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="the reference, named as model.path is; default: the model before training",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="dtype of the computation; auto: bfloat16 on accelerators, float32 on CPU",
    )
    attention: Literal["auto", "xla", "cudnn", "tokamax"] = Field(
        "auto",
        description="back-end of attention; auto: cudnn for bfloat16 on NVIDIA GPUs, else xla; "
        "tokamax: for Hopper GPUs, if installed",
    )
    remat: Literal["none", "full", "dots"] = Field(
        "full",
        description="what the backward pass recomputes; none: nothing; full: each whole layer; "
        "dots: all but the large products",
    )


class DataSource(Section):
    """One data set of a mixture. What it leaves open is as in the section `data`."""

    path: str
    split: str | None = None
    config: str | None = None
    columns: Columns = None
    fraction: Share | None = None


def _sources(value: Any) -> Any:
    """One path, or the data sets of a mixture, of which some may be only a path."""
    if not isinstance(value, (list, tuple)):
        return value
    sources = [{"path": each} if isinstance(each, str) else each for each in value]
    if not sources:
        raise ValueError("must name a data set")
    for number, source in enumerate(sources):
        if source in sources[:number]:
            raise ValueError("names a data set twice")
    return sources[0]["path"] if len(value) == 1 and isinstance(value[0], str) else sources


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, (list, tuple)) else "one"


class DataConfig(Section):
    """The data, and how examples become batches."""

    path: Annotated[
        Annotated[str, Field(min_length=1), pydantic.Tag("one")]
        | Annotated[tuple[DataSource, ...], pydantic.Tag("several")],
        pydantic.Discriminator(_one_or_several),
        BeforeValidator(_sources),
    ] = Field(
        "embedded",
        description="JSON, JSONL, CSV or Parquet file, a pattern of files, folder, hub id or "
        "`owner/name@revision`, or `embedded`; several are mixed; in a file, each may have its own "
        "path, split, config, columns and fraction",
    )
    split: str | None = Field(None, description="the split to train on; default: `train`")
    config: str | None = Field(None, description="the config of a data set that has several")
    columns: Columns = Field(
        None, description="our names and the data's, as prompt=instruction,chosen=good"
    )
    fraction: Share = Field(
        1.0,
        description="share of the rows that is used, drawn by data.split_seed; a fraction for "
        "validation is taken from it",
    )
    validation: Annotated[float | str | None, BeforeValidator(_number_if_possible)] = Field(
        None,
        description="validation data: a file, a split's name, a fraction of the rows, or 0 for "
        f"none; default: the dataset's own, else {DEFAULT_FRACTION}",
    )
    split_seed: int = Field(
        0, description="seed of the split and draw by fraction; --seed does not change it"
    )
    template: str | None = Field(
        None,
        description="a chat template: plain, llama-2, llama-3, chatml or zephyr; default: the "
        "tokenizer's own, else plain",
    )
    max_length: Count | None = Field(
        None,
        description="most tokens of one branch, prompt + response; "
        f"default: {DEFAULT_MAX_LENGTH}, or the model's context if that is less",
    )
    max_prompt_length: Count | None = Field(
        None,
        description="tokens to which the prompt of a too long branch is cut; "
        "default: max_length / 2",
    )
    layout: Literal["packed", "plain"] = Field(
        "packed",
        description="packed: many examples per row; plain: one padded example per row, "
        "for comparison",
    )
    row_length: Count | None = Field(
        None, description="tokens of one row; default: chosen from the lengths of the data"
    )
    rows: Count | None = Field(
        None, description="rows of one micro-batch; default: one per data-parallel device"
    )

    @property
    def sources(self) -> list[DataSource]:
        """The data sets to train on, with nothing left open."""
        several = [DataSource(path=self.path)] if isinstance(self.path, str) else self.path
        shared = {name: getattr(self, name) for name in DataSource.model_fields if name != "path"}
        own = ({name: value for name, value in each if value is not None} for each in several)
        return [DataSource.model_validate({**shared, **each}) for each in own]

    @property
    def names(self) -> str:
        """The data sets in words."""
        return " + ".join(source.path for source in self.sources)


class LoraConfig(Section):
    """The adapters of `train.mode` lora and qlora."""

    rank: Count = Field(16, description="rank of the adapters")
    alpha: Positive = Field(
        32.0, description="alpha of the adapters; their output is scaled by alpha / rank"
    )
    rslora: bool = Field(
        False, description="scale the adapters' output by alpha / sqrt(rank) instead (rsLoRA)"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the adapters' inputs that training sets to zero"
    )
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="names of the linear layers and experts that get adapters; default: all linear "
        "layers of a block",
    )

    @property
    def scale(self) -> float:
        """The factor of the adapters' output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


# Adapters learn best at about ten times the rate of full fine-tuning: Schulman et al., "LoRA
# Without Regret" (2025). Rates of 1e-4 to 2e-4 are usual for them: Hu et al., "LoRA" (2021),
# appendix D; Dettmers et al., "QLoRA" (2023), appendix B.
LEARNING_RATES = {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}


def _learning_rate(given: dict[str, Any]) -> float:
    """The default for the mode; an unknown mode is refused by its own field."""
    return LEARNING_RATES.get(given.get("mode", "full"), LEARNING_RATES["full"])


class TrainConfig(Section):
    """What is trained, the optimiser, and how often the run validates and logs."""

    mode: Literal["full", "lora", "qlora"] = Field(
        "full",
        description="what is trained; full: all weights; lora: adapters; qlora: adapters beside a "
        "four-bit base",
    )
    router: Literal["frozen", "trained"] = Field(
        "frozen",
        description="routers of a model with experts in full fine-tuning; frozen: policy and "
        "reference keep nearly the same experts",
    )
    router_aux: NonNegative = Field(
        0.001,
        description="weight of the loss that keeps the experts of a model evenly used, which is "
        "added to any loss; read with train.router trained",
    )
    learning_rate: NonNegative = Field(
        default_factory=_learning_rate,
        description="learning rate after the warm-up; a file may map each loss to its own rate; "
        f"default: {', '.join(f'{rate:g} for {mode}' for mode, rate in LEARNING_RATES.items())}",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="length of the warm-up as a share of all steps"
    )
    weight_decay: NonNegative = Field(0.01, description="weight decay of AdamW")
    max_grad_norm: Positive = Field(
        1.0, description="largest global norm of the gradients; greater ones are scaled down to it"
    )
    adam_b1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="decay rate of Adam's mean of the gradients"
    )
    adam_b2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="decay rate of Adam's mean of the squared gradients"
    )
    adam_eps: Positive = Field(1e-8, description="term that Adam adds to its denominator")
    epochs: Count = Field(3, description="passes over the training data")
    max_steps: Count | None = Field(
        None, description="optimiser steps of the run, in place of train.epochs"
    )
    batch_pairs: Count = Field(
        128,
        description="most pairs, or single responses, per optimiser step; the steps of an epoch "
        "share its pairs evenly",
    )
    eval_every: Count | None = Field(
        None,
        description="steps between validations; the run also validates at the end of every epoch "
        "and at its own end",
    )
    sample_prompts: Annotated[int, Field(ge=0)] = Field(
        8, description="validation prompts that the policy answers at every validation; 0: none"
    )
    save_minutes: Positive | None = Field(
        None,
        description="minutes after which the run saves its state between validations; it saves it "
        "at every validation",
    )
    log_every: Count = Field(1, description="steps between the lines of metrics.jsonl")
    best_metric: str | None = Field(
        None,
        description="validation metric that chooses best/; a lower loss, KL or metric of rejected "
        "responses is better, and a higher value of the others; default: eval_rewards/accuracies, "
        "or eval_loss where a prompt has one response",
    )
    population: Annotated[bool | Count, BeforeValidator(_whole_number_if_possible)] = Field(
        False,
        description="train a grid's LoRA cells of one seed together, in one program; a number: at "
        "most this many together",
    )
    wandb: bool = Field(False, description="also log to Weights & Biases (must be installed)")

    @property
    def trains_routers(self) -> bool:
        """Whether the routers of a model with experts are trained."""
        return self.mode == "full" and self.router == "trained"

    def steps(self, examples: int) -> int:
        """The optimiser steps of a run on this number of training examples."""
        return self.max_steps or self.epochs * self.steps_per_epoch(examples)

    def steps_per_epoch(self, examples: int) -> int:
        """The optimiser steps of one pass over this number of training examples."""
        return -(-examples // self.batch_pairs)

    def warmup_steps(self, steps: int) -> int:
        """How many of a run's steps are its warm-up."""
        return round(self.warmup_ratio * steps)

    @pydantic.model_validator(mode="after")
    def _population_of_adapters(self) -> TrainConfig:
        if self.population and self.mode == "full":
            raise ValueError("train.population: needs train.mode lora or qlora, not full")
        return self


class MeshConfig(Section):
    """The axes of the device mesh; the product of their sizes is the number of devices."""

    data: AxisSize = Field(
        1, description="number of copies of the weights; -1: all remaining devices"
    )
    fsdp: AxisSize = Field(
        -1, description="devices that share the weights and the rows; -1: all remaining devices"
    )
    tensor: AxisSize = Field(
        1,
        description="devices that share each layer's heads and features; -1: all remaining devices",
    )

    @pydantic.model_validator(mode="after")
    def _one_open_axis(self) -> MeshConfig:
        first, *others = [name for name, size in self if size == -1] or [""]
        if others:
            raise ValueError(f"mesh.{others[0]}: only one axis may be -1, and mesh.{first} is -1")
        return self


class HostsConfig(Section):
    """How several processes find each other and work as one job.

    These settings are not part of a run's identity: a run may resume on other hosts.
    """

    launcher: Literal["auto", "none", "slurm", "ompi", "k8s", "mpi4py"] = Field(
        "auto",
        description="launcher that started the processes of the job; auto: SLURM or Open MPI, if "
        "it started several; none: this process is a job of its own",
    )
    coordinator: str | None = Field(
        None, description="address:port of the first process, for processes started by hand"
    )
    count: Count | None = Field(
        None, description="number of processes; used with hosts.coordinator"
    )
    index: Annotated[int, Field(ge=0)] | None = Field(
        None, description="number of this process, from 0; used with hosts.coordinator"
    )
    meet_within: Count = Field(
        300, description="seconds that the processes wait for each other at the start"
    )
    lost_after: Count = Field(
        30, description="seconds of silence after which a process counts as lost"
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
        missing = [name for name, value in by_hand.items() if value is None]
        if missing and len(missing) < len(by_hand):
            names = ", ".join(by_hand)
            raise ValueError(f"hosts.{missing[0]}: required when any of {names} is given")
        if self.index is not None and self.count is not None and self.index >= self.count:
            raise ValueError(
                f"hosts.index: must be between 0 and {self.count - 1}, got {self.index}"
            )
        return self


class Config(Section):
    """All settings of one run, which is one cell of a grid."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    # A test may add a loss. So this section is validated and written with the losses of that time.
    loss: pydantic.SerializeAsAny[Annotated[LossConfig, PlainValidator(loss_of)]] = Field(
        default_factory=lambda: loss_section()()
    )
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    seed: int = Field(
        0, ge=0, description="seed of the data's order and of the adapters' initial values"
    )
    output: str | None = Field(
        None,
        description="directory of the run or grid; default: runs/<name of the cell>, or runs/grid",
    )
