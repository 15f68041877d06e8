"""What a compiled program does, read from XLA's own text of it: memory, kernels, collectives."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Program:
    """What one run of a compiled program does on one device.

    argument_bytes, output_bytes: of what it is given and gives back; donated_bytes of these are the same memory.
    temporary_bytes: what it needs beside them at its fullest moment.
    kernels:     launches by kind: a library call's or a Pallas kernel's name, "fusion" with Triton's kind where it has
                 one, or XLA's name of the operation. A loop's body counts as often as it runs.
    collectives: launches by kind, and collective_bytes, their results' size.
    arrays:      every array that is written to memory, by type and shape, and its bytes, from the largest on.
    """

    argument_bytes: int
    output_bytes: int
    donated_bytes: int
    temporary_bytes: int
    kernels: Counter[str]
    collectives: Counter[str]
    collective_bytes: Counter[str]
    arrays: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return self.argument_bytes + self.output_bytes - self.donated_bytes + self.temporary_bytes


def read_program(compiled: jax.stages.Compiled) -> Program:
    """Reads a compiled program, for whatever device it is."""
    memory = compiled.memory_analysis()
    kernels, collectives, collective_bytes, arrays = Counter(), Counter(), Counter(), {}
    for instruction, times in _launches(compiled.as_text()):
        kind = instruction.opcode.removesuffix("-done")
        if kind in _COLLECTIVES:
            collectives[kind] += times
            collective_bytes[kind] += times * sum(size for _, size in instruction.arrays)
        elif not instruction.opcode.endswith("-done"):
            kernels[_kernel(instruction)] += times
        arrays |= dict(instruction.arrays)
    return Program(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        donated_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        kernels=kernels,
        collectives=collectives,
        collective_bytes=collective_bytes,
        arrays=dict(sorted(arrays.items(), key=lambda item: -item[1])),
    )


# --- reading XLA's text -----------------------------------------------------------------------------------------------

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_PALLAS = "__gpu$xla.gpu.triton"  # any Pallas kernel; which one is in its attributes
_NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", *(f"{op}-start" for op in _COLLECTIVES)}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[su]\d+|bf16|f\d+\w*|c\d+)\[([\d,]*)\]")


@dataclass(frozen=True)
class _Instruction:
    opcode: str
    arrays: tuple[tuple[str, int], ...]  # of its result, and their bytes
    rest: str  # operands and attributes


def _launches(text: str) -> Iterator[tuple[_Instruction, int]]:
    """Every instruction of the program that does something, and how often it runs."""
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.split("\n"):
        if header := _COMPUTATION.match(line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current:
            computations[current].append(line)

    def walk(name: str, times: int) -> Iterator[tuple[_Instruction, int]]:  # a collective counts where it is done
        for line in computations[name]:
            if not (match := _INSTRUCTION.match(line)):
                continue
            shape, opcode, rest = match.groups()
            if opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
                yield from walk(re.search(r"body=%?([\w.\-]+)", rest)[1], times * int(trips[1] if trips else 1))
            elif opcode == "call":
                yield from walk(re.search(r"to_apply=%?([\w.\-]+)", rest)[1], times)
            elif opcode not in _NO_WORK:
                yield _Instruction(opcode, _arrays(shape), rest), times

    return walk(entry, 1)


def _arrays(shape: str) -> tuple[tuple[str, int], ...]:
    return tuple(
        (f"{dtype}[{dims}]", _item_bytes(dtype) * math.prod(int(d) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(shape)
    )


def _item_bytes(dtype: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return max(bits // 8, 1)


def _kernel(instruction: _Instruction) -> str:
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', instruction.rest)[1]
        ours = re.search(r'\bname = "([^"]+)"', instruction.rest) if target == _PALLAS else None
        return ours[1] if ours else target
    name = instruction.opcode.removesuffix("-start")
    kind = re.search(r'"fusion_backend_config":\{"kind":"(__[^"]+)"', instruction.rest)
    return f"{name} {kind[1]}" if kind else name
