"""JaxFusion's training step of a preset, compiled and ready to be timed."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from benchmarks.command_line import environment
from benchmarks.presets import Preset
from benchmarks.synthetic import synthetic_batch
from benchmarks.weights import random_params
from jaxfusion.batch import Batch
from jaxfusion.config.model import ModelConfig
from jaxfusion.config.run import ParallelConfig, TrainConfig
from jaxfusion.hardware import find_hardware
from jaxfusion.models.flops import Flops, count_flops
from jaxfusion.models.stack import is_scanned
from jaxfusion.models.vlm import Params, build, forward
from jaxfusion.parallel import MeshParallel, Parallel, make_parallel
from jaxfusion.planning import read_program
from jaxfusion.training.losses import loss_sums
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import TrainState, create_state
from jaxfusion.training.step import make_step
from jaxfusion.training.trainable import join, split, trained_paths

LEARNING_RATE = 1e-5  # at which random weights stay finite for as long as anyone times them
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.05
WARM_UP = 2  # steps


def train_settings(preset: Preset) -> TrainConfig:
    """As a run's config would have them."""
    return TrainConfig(
        learning_rate=LEARNING_RATE,
        clip_norm=CLIP_NORM,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=1,
        trainable=preset.trainable,
        remat=preset.remat,
        matmul=preset.matmul,
    )


class Ours:
    """The step on all local devices, compiled. `begin` makes it ready to be timed, and takes the devices' memory; the
    batch is on them then: reading and copying data is in no step's time.

    loss:  of the first step, at the parameters that every peer begins with.
    count: whether the facts hold XLA's count of operations too, which takes as long to trace as the step, or longer.
    """

    def __init__(self, preset: Preset, strategy: str = "mesh", count: bool = False):
        self.preset = preset
        self.parallel = make_parallel(ParallelConfig(strategy=strategy))
        self.parallel.check_batch_size("--batch-size", preset.batch_size)
        settings = train_settings(preset)
        self.model, self.optimizer = build(preset.model), make_optimizer(settings)
        self.host_batch = synthetic_batch(preset)
        state = _state_of(preset)
        self.parameters = sum(x.size for x in jax.tree.leaves(state.params))
        self.flops = model_flops(preset, self.host_batch) | (xla_flops(preset, self.host_batch) if count else {})

        start = time.perf_counter()
        step = self.parallel.compile(make_step(self.model, self.optimizer, settings), donate=True)
        lowered = step.lower(*_as_put(self.parallel, state, self.host_batch))
        traced = time.perf_counter()
        self.step = lowered.compile()
        self.trace_seconds, self.compile_seconds = traced - start, time.perf_counter() - traced

    def begin(self) -> None:
        create = partial(create_state, self.model, self.optimizer, jax.random.key(0), self.preset.trainable)
        self.batch = self.parallel.put_batch(self.host_batch)
        self.state, metrics = self.step(self.parallel.put_state(create(random_params(self.model))), self.batch)
        self.loss = float(jax.device_get(self.parallel.unreplicate(metrics))["loss"])
        for _ in range(WARM_UP - 1):
            self.state, self.waiting = self.step(self.state, self.batch)

    def seconds(self, steps: int, profile: Path | None = None) -> list[float]:
        """From one step's end to the next one's. As in the training loop the host waits for a step after it has sent
        the next one, so that the device never waits for the host."""
        ends = []
        with jax.profiler.trace(str(profile)) if profile else contextlib.nullcontext():
            for _ in range(steps + 1):
                self.state, metrics = self.step(self.state, self.batch)
                jax.block_until_ready(self.waiting)
                ends.append(time.perf_counter())
                self.waiting = metrics
            jax.block_until_ready(self.waiting)
        return np.diff(ends).tolist()

    def facts(self) -> dict[str, Any]:
        """What the step is, whatever the time it takes; of one that has begun."""
        preset = self.preset
        return {
            "strategy": type(self.parallel).__name__.removesuffix("Parallel").lower(),
            "dtype": preset.model.dtype,
            "attention": preset.model.attention,
            "laid_out": [room for room, stack in _stacks(preset.model).items() if not is_scanned(stack.scan_layers)],
            "remat": preset.remat,
            "matmul": preset.matmul,
            "parameters": self.parameters,
            "batch": batch_shape(self.host_batch),
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
            "loss": self.loss,
            "flops": self.flops,
            "memory": self._peak_memory(),
            "environment": environment(),
        }

    def _peak_memory(self) -> dict[str, Any]:
        """Of one device."""
        stats = jax.local_devices()[0].memory_stats()
        if stats:
            return {"bytes": stats["peak_bytes_in_use"], "source": "the device's allocator"}
        return {"bytes": read_program(self.step).total_bytes, "source": "XLA's plan of the step"}


def model_flops(preset: Preset, batch: Batch) -> dict[str, float]:
    """Operations of a training step by the model's own count (`jaxfusion.models.flops`), of what its intervals need and
    with attention between all positions."""
    count = _counter(preset, batch, _state_of(preset))
    return {"model_needed": count().training, "model_dense": count("dense").training}


def xla_flops(preset: Preset, batch: Batch) -> dict[str, Any]:
    """XLA's count of a training step's operations, and its ratio to the model's.

    XLA counts a loop's body once, however often it runs. So its count is of the step's gradient with the layers laid
    out one after the other, before compilation, with the loss from the logits of all positions, and with attention
    written out (a library call has no count); the model's count that belongs beside it is the dense one. `loops` says
    that XLA found others: then its count is short.
    """
    model = build(replace(with_layers(preset.model, scan=False), attention="xla"))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    state = _state_of(preset)

    def total_loss(trainable: Params, frozen: Params, batch: Batch) -> Array:
        return loss_sums(forward(model, join(trainable, frozen), batch), batch).loss

    lowered = jax.jit(jax.grad(total_loss)).lower(*split(state.params, preset.trainable), shapes)
    xla, dense = lowered.cost_analysis()["flops"], _counter(preset, batch, state)("dense").training
    return {
        "xla_unrolled": xla,
        "xla_to_model_dense": xla / dense,
        "loops": "stablehlo.while" in lowered.as_text(),
    }


def with_layers(model: ModelConfig, *, scan: bool) -> ModelConfig:
    """The same model with the layers of its stacks in a loop, or laid out."""
    return replace(model, **{room: replace(stack, scan_layers=scan) for room, stack in _stacks(model).items()})


def _stacks(model: ModelConfig) -> dict[str, Any]:
    rooms = {name: getattr(model, name) for name in ("vision", "encoder", "decoder")}
    return {name: room for name, room in rooms.items() if hasattr(room, "scan_layers")}


def _state_of(preset: Preset) -> TrainState:
    """Its shapes."""
    create = partial(create_state, build(preset.model), make_optimizer(train_settings(preset)))
    return jax.eval_shape(partial(create, trainable=preset.trainable), jax.random.key(0))


def _as_put(parallel: Parallel, state: TrainState, batch: Batch) -> tuple[TrainState, Batch]:
    """Shapes of what `put_state` and `put_batch` would make of them."""
    if isinstance(parallel, MeshParallel):
        of_state = of_batch = lambda shape: shape
    else:
        count = parallel.num_devices
        of_state, of_batch = lambda shape: (count, *shape), lambda shape: (count, shape[0] // count, *shape[1:])
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(of_state(x.shape), x.dtype), state)
    return state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(of_batch(x.shape), x.dtype), batch)


def _counter(preset: Preset, batch: Batch, state: TrainState) -> Callable[..., Flops]:
    return partial(count_flops, preset.model, batch, trainable=trained_paths(state.params, preset.trainable))


def mfu(flops_per_second: float, facts: dict[str, Any]) -> float | None:
    """Model FLOP utilisation (Chowdhery et al. 2022); None where the peak for this device and type is not known.

    facts: of `Ours.facts`, and the environment.
    """
    card = find_hardware(facts["environment"]["device"]) if facts["dtype"] == "bfloat16" else None
    return flops_per_second / (card.bf16_flops * facts["environment"]["devices"]) if card else None


def batch_shape(batch: Batch) -> dict[str, int]:
    return {
        "rows": batch.tokens.shape[0],
        "row_length": batch.tokens.shape[1],
        "samples": int(batch.segment_ids.max(axis=1).sum()),
        "images": 0 if batch.images is None else batch.images.shape[0] * batch.images.shape[1],
        "tokens": batch.tokens.size,
        "real_tokens": int((batch.segment_ids > 0).sum()),
    }
