"""Compiling for GPUs that are only described: XLA needs neither a GPU nor a driver in the machine.

step = partial(train_step, model, optimizer)
program = read_program(compile_for(step, state, batch, hardware="h200", topology="1x1x8"))    # shapes are enough

It needs the CUDA build of JAX (the `cuda` extra) and, where there is no GPU, JAX_PLATFORMS=cpu, so that JAX does not
look for one. Two things stay open: XLA cannot autotune here, so a matrix product may get another kernel on the card;
and cuDNN's LSTM cannot be compiled without one.
"""

import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxfusion.config.run import ParallelConfig
from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE, Hardware
from jaxfusion.parallel import MeshParallel, Step, make_mesh

# Per compute capability, from the CUDA C++ Programming Guide, "Compute Capabilities": threads a multiprocessor, its
# shared memory, and what one block may have of that. Blackwell's are as OpenXLA has them from a card.
_LIMITS = {
    (8, 0): (2048, 167_936, 166_912),
    (8, 9): (1536, 102_400, 101_376),
    (9, 0): (2048, 233_472, 232_448),
    (10, 0): (2048, 233_472, 232_448),
}


def describe(card: Hardware) -> str:
    """The text form of XLA's GpuTargetConfigProto."""
    major, minor = card.compute_capability
    threads, shared, shared_by_block = _LIMITS[card.compute_capability]
    accelerated = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
          core_count: {card.num_cores} fpus_per_core: {64 if (major, minor) == (8, 0) else 128}
          clock_rate_ghz: {card.clock_ghz} l2_cache_size: {card.l2_cache_bytes}
          device_memory_size: {card.memory_bytes} memory_bandwidth: {int(card.memory_bandwidth)}
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {threads}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_by_block}
          shared_memory_per_block: 49152
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        }}
        platform_name: "CUDA" device_description_str: "{card.device_kind}"
        runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}"""


def described_mesh(hardware: str = "h200", topology: str = "1x1x1", config: ParallelConfig = ParallelConfig()) -> Mesh:
    """A mesh of GPUs that are only described, for `compile_for` or your own shardings.

    topology: slices x hosts x GPUs a host, as in "1x1x8". config: the mesh's axes.
    Raises UserError for what the table or XLA does not know, and where JAX has no CUDA compiler.
    """
    if hardware not in HARDWARE:
        raise UserError(f"config.plan.hardware: {hardware!r} is not described; choose from {', '.join(HARDWARE)}")
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", topology):
        raise UserError(
            f"config.plan.topology: {topology!r} is none; write slices x hosts x GPUs a host, as in '1x1x8'"
        )
    try:
        found = topologies.get_topology_desc(
            hardware, "cuda", target_config=describe(HARDWARE[hardware]), topology=topology
        )
    except Exception as error:  # JAX raises whatever its plug-in search ends with
        raise UserError(
            f"{hardware}: this JAX cannot compile for it ({_first_line(error)}); "
            'install its CUDA build: pip install -e ".[cuda]"'
        ) from error
    return make_mesh(found.devices, config)


def compile_for(
    step: Step,
    state: Any,
    batch: Any,
    *,
    hardware: str = "h200",
    topology: str = "1x1x1",
    config: ParallelConfig = ParallelConfig(),
    donate: bool = True,
) -> jax.stages.Compiled:
    """`step(state, batch)` compiled as `MeshParallel` would for those GPUs, rows and parameters shared out.

    state, batch: arrays or jax.ShapeDtypeStruct; nothing is computed.
    """
    parallel = MeshParallel(described_mesh(hardware, topology, config), config.rules)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.rows), batch)
    return parallel.compile(step, donate=donate).lower(parallel.abstract(state), batch).compile()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
