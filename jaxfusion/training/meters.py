"""What a run's steps come to on its devices: rates, shares of room and time that were of use, model FLOPs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxfusion.config.model import ModelConfig
from jaxfusion.hardware import find_hardware
from jaxfusion.models.flops import flops_of_sizes


@dataclass(frozen=True)
class Meters:
    """trainable: paths of the parameters that train. peak_flops: of all devices; None where nobody knows it."""

    config: ModelConfig
    trainable: frozenset[str]
    peak_flops: float | None = None

    @classmethod
    def of_devices(cls, config: ModelConfig, trainable: frozenset[str]) -> "Meters":
        """On all local devices. The peaks that are known are bfloat16's, so in float32 there is none."""
        devices = jax.local_devices()
        card = find_hardware(devices[0].device_kind) if config.dtype == "bfloat16" else None
        return cls(config, trainable, card and card.bf16_flops * len(devices))

    def read(self, sizes: Mapping[str, float], steps: int, seconds: float, waited: float) -> dict[str, float]:
        """Rates and shares of `steps` steps.

        sizes:   sums of their `batch_sizes`.
        seconds: that they took; waited: of these, those in which the devices had nothing to do for want of a batch.

        useful_tokens and filled_image_slots are shares of what the batches have room for; input_bound of the seconds.
        Model FLOPs are those of real tokens and images, forward and the backward pass that training needs (see
        `jaxfusion.models.flops`); mfu is their share of the devices' peak (Chowdhery et al. 2022), vision_mfu and
        language_mfu its two parts.
        """
        row = {
            "samples_per_second": sizes["samples"] / seconds,
            "tokens_per_second": sizes["tokens"] / seconds,
            "steps_per_second": steps / seconds,
            "useful_tokens": sizes["tokens"] / sizes["positions"],
            "input_bound": min(waited / seconds, 1.0),
        }
        if sizes["image_slots"]:
            row["images_per_second"] = sizes["images"] / seconds
            row["filled_image_slots"] = sizes["images"] / sizes["image_slots"]
        flops = flops_of_sizes(self.config, sizes, self.trainable)
        rates = {"": flops.training, "vision_": flops.vision, "language_": flops.language}
        row["model_flops_per_second"] = flops.training / seconds
        if self.peak_flops:
            row |= {f"{part}mfu": rate / seconds / self.peak_flops for part, rate in rates.items()}
        return row


def peak_memory() -> dict[str, int]:
    """{"peak_memory_bytes": of the fullest device since the process began}, empty where the devices do not say."""
    stats: list[dict[str, Any] | None] = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    return {"peak_memory_bytes": max(peaks)} if peaks else {}
