"""What a compiled program does, read from XLA's text of it."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]+)\]")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_SOURCE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
# Triton's and cuBLAS' products, and cuDNN's attention.
_WORK = ("gemm", "cublas", "__cudnn$")


class Instruction(NamedTuple):
    """One line of a computation."""

    computation: str
    name: str
    result: str  # its shape, as text
    operation: str
    rest: str  # operands and attributes

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The dimensions of every array it makes."""
        return [tuple(map(int, sizes.split(","))) for _, sizes in _ARRAY.findall(self.result)]

    @property
    def target(self) -> str | None:
        found = _TARGET.search(self.rest)
        return found and found[1]

    @property
    def source(self) -> str:
        """The operation of the traced program that it comes from."""
        found = _SOURCE.search(self.rest)
        return found[1] if found else ""

    @property
    def works(self) -> bool:
        return any(word in self.name or word in self.rest for word in _WORK)


def instructions(text: str) -> Iterator[Instruction]:
    """Every instruction that has a buffer; what happens inside a fusion has none."""
    computation = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif (found := _INSTRUCTION.match(line)) and "fused" not in computation:
            yield Instruction(computation, *found.groups())


def work_between(program: list[Instruction], operation: str) -> Iterator[tuple[Instruction, int]]:
    """Every finished `operation-done`, and how many products ran since its start."""
    started: dict[tuple[str, str], int] = {}
    for number, instruction in enumerate(program):
        if instruction.operation == f"{operation}-start":
            started[instruction.computation, instruction.name] = number
        elif instruction.operation == f"{operation}-done":
            source = re.match(r"%?([\w.-]+)", instruction.rest)[1]
            first = started[instruction.computation, source]
            between = program[first + 1 : number]
            yield instruction, sum(other.works for other in between)
