"""A CPU's cores as devices."""

import contextlib
import os

import jax

MAX_CPU_DEVICES = 8  # the small models that one trains on a CPU do not gain from more


def use_cpu_cores(batch_size: int) -> None:
    """Where JAX runs on the CPU, makes one device of each core, as far as they share batch_size rows evenly.

    One CPU device computes most of a step on one core, so two devices on two cores are nearly twice as fast. Call it
    before JAX touches a device; later, or where the number was chosen by JAX_NUM_CPU_DEVICES or XLA_FLAGS, it does
    nothing. Accelerators are not affected.
    """
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not chosen and batch_size > 0:
        shared = max(n for n in range(1, min(cores, MAX_CPU_DEVICES) + 1) if batch_size % n == 0)
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", shared)
