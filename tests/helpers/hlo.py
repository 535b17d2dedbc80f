"""Reads the instructions of a compiled program from XLA's text of it."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]+)\]")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_SOURCE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
# Parts of the names of Triton's and cuBLAS' products and of cuDNN's attention.
_WORK = ("gemm", "cublas", "__cudnn$")


class Instruction(NamedTuple):
    """One line of a computation."""

    computation: str
    name: str
    result: str  # shape of its result, as text
    operation: str
    rest: str  # operands and attributes

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The dimensions of every array that it makes."""
        return [tuple(map(int, sizes.split(","))) for _, sizes in _ARRAY.findall(self.result)]

    @property
    def target(self) -> str | None:
        found = _TARGET.search(self.rest)
        return found and found[1]

    @property
    def source(self) -> str:
        """The operation of the traced program from which it comes."""
        found = _SOURCE.search(self.rest)
        return found[1] if found else ""

    @property
    def works(self) -> bool:
        return any(word in self.name or word in self.rest for word in _WORK)


def instructions(text: str) -> Iterator[Instruction]:
    """Yields every instruction with a buffer. Instructions inside a fusion have none."""
    computation = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif (found := _INSTRUCTION.match(line)) and "fused" not in computation:
            yield Instruction(computation, *found.groups())


def work_between(program: list[Instruction], operation: str) -> Iterator[tuple[Instruction, int]]:
    """Yields every `operation-done` with the number of products that ran since its start."""
    started: dict[tuple[str, str], int] = {}
    for number, instruction in enumerate(program):
        if instruction.operation == f"{operation}-start":
            started[instruction.computation, instruction.name] = number
        elif instruction.operation == f"{operation}-done":
            source = re.match(r"%?([\w.-]+)", instruction.rest)
            assert source is not None
            first = started[instruction.computation, source[1]]
            between = program[first + 1 : number]
            yield instruction, sum(other.works for other in between)
