"""What GPUs can do, one row a card: the bounds that a measured or planned step is held against.

Sources: memory_bytes and memory_bandwidth of H100, H200, A100 and B200 as OpenXLA has them from real cards
(openxla/xla, xla/backends/gpu/target_config/specs/*.txtpb); the rest is from NVIDIA's data sheets of the cards. These
give matrix products with sparsity, of which half is dense, and links in both directions, of which half is one.
"""

import re
from dataclasses import dataclass
from typing import Any

# The first compute capability whose tensor cores multiply 8-bit floats.
FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One GPU.

    device_kind:      as JAX names it.
    compute_capability: (major, minor), which fixes what XLA may compile for it.
    num_cores:        streaming multiprocessors, at clock_ghz.
    memory_bytes, memory_bandwidth (bytes/s), l2_cache_bytes.
    bf16_flops:       dense matrix products, operations/s, with float32 sums.
    fp8_flops:        the same in 8-bit floats; 0: it has none.
    link_bandwidth:   bytes/s to its neighbours in one direction: NVLink where it has it, else PCIe.
    """

    device_kind: str
    compute_capability: tuple[int, int]
    num_cores: int
    clock_ghz: float
    memory_bytes: int
    memory_bandwidth: float
    l2_cache_bytes: int
    bf16_flops: float
    fp8_flops: float
    link_bandwidth: float


HARDWARE = {
    "h100": Hardware(
        device_kind="NVIDIA H100 80GB HBM3",
        compute_capability=(9, 0),
        num_cores=132,
        clock_ghz=1.98,
        memory_bytes=84_942_979_072,
        memory_bandwidth=3.35232e12,
        l2_cache_bytes=52_428_800,
        bf16_flops=989.5e12,
        fp8_flops=1979e12,
        link_bandwidth=450e9,
    ),
    "h100-pcie": Hardware(
        device_kind="NVIDIA H100 PCIe",
        compute_capability=(9, 0),
        num_cores=114,
        clock_ghz=1.755,
        memory_bytes=84_942_979_072,
        memory_bandwidth=2.03904e12,
        l2_cache_bytes=52_428_800,
        bf16_flops=756.5e12,
        fp8_flops=1513e12,
        link_bandwidth=64e9,
    ),
    "h200": Hardware(
        device_kind="NVIDIA H200",
        compute_capability=(9, 0),
        num_cores=132,
        clock_ghz=1.98,
        memory_bytes=151_397_597_184,
        memory_bandwidth=4.8e12,
        l2_cache_bytes=52_428_800,
        bf16_flops=989.5e12,
        fp8_flops=1979e12,
        link_bandwidth=450e9,
    ),
    "b200": Hardware(
        device_kind="NVIDIA B200",
        compute_capability=(10, 0),
        num_cores=148,
        clock_ghz=1.965,
        memory_bytes=191_514_411_008,
        memory_bandwidth=7.67232e12,
        l2_cache_bytes=132_644_864,
        bf16_flops=2250e12,
        fp8_flops=4500e12,
        link_bandwidth=900e9,
    ),
    "a100": Hardware(
        device_kind="NVIDIA A100-SXM4-80GB",
        compute_capability=(8, 0),
        num_cores=108,
        clock_ghz=1.41,
        memory_bytes=85_100_068_864,
        memory_bandwidth=2.03904e12,
        l2_cache_bytes=41_943_040,
        bf16_flops=312e12,
        fp8_flops=0,
        link_bandwidth=300e9,
    ),
    "l40s": Hardware(
        device_kind="NVIDIA L40S",
        compute_capability=(8, 9),
        num_cores=142,
        clock_ghz=2.52,
        memory_bytes=48_000_000_000,
        memory_bandwidth=864e9,
        l2_cache_bytes=100_663_296,
        bf16_flops=362e12,
        fp8_flops=733e12,
        link_bandwidth=32e9,
    ),
    "l4": Hardware(
        device_kind="NVIDIA L4",
        compute_capability=(8, 9),
        num_cores=58,
        clock_ghz=2.04,
        memory_bytes=24_000_000_000,
        memory_bandwidth=300e9,
        l2_cache_bytes=50_331_648,
        bf16_flops=121e12,
        fp8_flops=242.5e12,
        link_bandwidth=32e9,
    ),
}


def find_hardware(device_kind: str) -> Hardware | None:
    """The row of a device as JAX names it; None where the table has none, a CPU for example.

    The longest name that fits is taken: some drivers say more, as in "NVIDIA H200 141GB HBM3e".
    """
    fits = [card for card in HARDWARE.values() if f"{device_kind} ".startswith(f"{card.device_kind} ")]
    return max(fits, key=lambda card: len(card.device_kind), default=None)


def has_fp8(device: Any) -> bool:
    """Whether a JAX device, there or described, has matrix products in 8-bit floats: NVIDIA's from Ada on."""
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return capability is not None and (int(capability[1]), int(capability[2])) >= FP8_CAPABILITY
