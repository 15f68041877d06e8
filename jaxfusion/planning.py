"""Compile for hardware that is not there: which kernels a step gets, what memory it needs, what a mesh sends.

XLA compiles for a *described* GPU with no GPU and no driver in the machine; only time needs the hardware.

step = partial(train_step, model, optimizer)
plan = make_plan(compile_for(step, state, batch, target="h200", devices=8))    # state, batch: shapes are enough

It needs the CUDA build of JAX (the `cuda` extra) and, where there is no GPU, JAX_PLATFORMS=cpu, so that JAX does not
look for one. What asks the backend at hand, as `model.attention = "auto"` does, sees the CPU: name the kernel instead.
Two things stay open: XLA cannot autotune here, so a matrix product may get another kernel on the card, and cuDNN's LSTM
cannot be compiled without one.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jaxfusion.errors import UserError
from jaxfusion.parallel import AXIS, MeshParallel, Step


@dataclass(frozen=True)
class Target:
    """A GPU of the Hopper generation, as far as its kinds differ.

    memory_bytes, memory_bandwidth (bytes/s) and name as OpenXLA has them from real cards (openxla/xla,
    xla/backends/gpu/target_config/specs/*.txtpb); they agree with NVIDIA's data sheets (H100 SXM: 80 GB, 3.35 TB/s;
    H200: 141 GB, 4.8 TB/s).
    """

    name: str
    memory_bytes: int
    memory_bandwidth: int

    def describe(self) -> str:
        """The text form of XLA's GpuTargetConfigProto. The limits are those of compute capability 9.0 in the CUDA C++
        Programming Guide, "Compute Capabilities"; the rest is from OpenXLA's files too."""
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
              core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
              device_memory_size: {self.memory_bytes} memory_bandwidth: {self.memory_bandwidth}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            }}
            platform_name: "CUDA" device_description_str: "{self.name}"
            runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}"""


TARGETS = {
    "h100": Target("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000),
    "h200": Target("NVIDIA H200", 151_397_597_184, 4_800_000_000_000),
}


def described_mesh(target: str = "h200", devices: int = 1) -> Mesh:
    """A one-axis mesh of GPUs that are only described, for `compile_for` or your own shardings.

    Raises UserError for an unknown target, and where JAX has no CUDA compiler.
    """
    if target not in TARGETS:
        raise UserError(f"{target}: no such target is described; choose from {', '.join(TARGETS)}")
    description = TARGETS[target].describe()
    try:
        topology = topologies.get_topology_desc(target, "cuda", target_config=description, topology=f"1x1x{devices}")
    except Exception as error:  # JAX raises whatever its plug-in search ends with
        raise UserError(
            f"{target}: this JAX cannot compile for it ({_first_line(error)}); "
            'install its CUDA build: pip install -e ".[cuda]"'
        ) from error
    return Mesh(np.array(topology.devices), (AXIS,), axis_types=(AxisType.Auto,))


def compile_for(
    step: Step, state: Any, batch: Any, *, target: str = "h200", devices: int = 1, donate: bool = True
) -> jax.stages.Compiled:
    """`step(state, batch)` compiled as `MeshParallel` would for that many GPUs, the batch's rows shared out.

    state, batch: arrays or jax.ShapeDtypeStruct; nothing is computed.
    """
    parallel = MeshParallel(described_mesh(target, devices))
    state, batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
    return parallel.compile(step, donate=donate).lower(state, batch).compile()


@dataclass(frozen=True)
class Plan:
    """What one run of a compiled program does on one device.

    argument_bytes, output_bytes: of what it is given and gives back; donated_bytes of these are the same memory.
    temporary_bytes: what it needs beside them at its fullest moment.
    kernels:     launches by kind: a library call's name, "fusion" with Triton's kind where it has one, or XLA's name of
                 the operation. A loop's body counts as often as it runs.
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


def make_plan(compiled: jax.stages.Compiled) -> Plan:
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
    return Plan(
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
    for line in text.splitlines():
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
        return re.search(r'custom_call_target="([^"]+)"', instruction.rest)[1]
    name = instruction.opcode.removesuffix("-start")
    kind = re.search(r'"fusion_backend_config":\{"kind":"(__[^"]+)"', instruction.rest)
    return f"{name} {kind[1]}" if kind else name


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
