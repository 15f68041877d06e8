"""The training step of the same model in PyTorch, at the same weights and on the same samples.

A peer's matrices are computed as ours are: float32 parameters and bf16 products by autocast, or float32 throughout.
Only processes that measure a peer import this.
"""

import contextlib
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from benchmarks.ours import CLIP_NORM, LEARNING_RATE, WARM_UP, WEIGHT_DECAY
from benchmarks.presets import Preset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Peer:
    """AdamW and clipping on what of a model trains, its gradient first.

    loss_of: the mean loss of the batch, for which it calls the model. shape: of the batch's tokens.
    loss:    of the first step.
    """

    def __init__(
        self,
        preset: Preset,
        loss_of: Callable[[torch.nn.Module], torch.Tensor],
        model: torch.nn.Module,
        shape: tuple[int, int],
    ):
        if DEVICE.type == "cuda" and preset.model.dtype == "float32":  # as XLA's default
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        self.preset, self.model, self.loss_of, self.shape = preset, model.train(), loss_of, shape
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step(self) -> torch.Tensor:
        half = self.preset.model.dtype == "bfloat16"
        with torch.autocast(DEVICE.type, torch.bfloat16) if half else contextlib.nullcontext():
            loss = self.loss_of(self.model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def warm_up(self) -> None:
        start = time.perf_counter()
        self.loss = float(self.step())
        self.first_step_seconds = time.perf_counter() - start
        for _ in range(WARM_UP - 1):
            self.step()

    def seconds(self, steps: int) -> list[float]:
        """From one step's end to the next one's; the host waits for a step after it has sent the next one."""
        ends, waiting = [], _sent()
        for _ in range(steps + 1):
            self.step()
            sent = _sent()
            waiting()
            ends.append(time.perf_counter())
            waiting = sent
        waiting()
        return [after - before for before, after in pairwise(ends)]

    def facts(self) -> dict[str, Any]:
        memory = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None
        return {
            "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
            "rows": self.shape[0],
            "row_length": self.shape[1],
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "trained_parameters": sum(parameter.numel() for parameter in self.trained),
            "first_step_seconds": self.first_step_seconds,
            "loss": self.loss,
            "peak_memory_bytes": memory,
        }


def _sent() -> Callable[[], None]:
    """What waits until all is done that the device has been sent by now; on a CPU it is done."""
    if DEVICE.type == "cpu":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize
