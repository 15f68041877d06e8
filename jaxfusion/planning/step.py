"""What one training step takes on GPUs that are not there: whether it fits, what it launches and sends, and how fast it
could be at best."""

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    BiLSTMEncoderConfig,
    CrossAttentionFusionConfig,
    MappingProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    TransformerConfig,
    ViTConfig,
)
from jaxfusion.config.run import ParallelConfig, TrainConfig
from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE, Hardware
from jaxfusion.models.encoder import choose_kernel
from jaxfusion.models.float8 import MatMul
from jaxfusion.models.flops import count_flops
from jaxfusion.models.vision import holds_features
from jaxfusion.models.vlm import build, init
from jaxfusion.parallel import MeshParallel
from jaxfusion.parallel.sharding import check_rules
from jaxfusion.planning.described import compile_for, described_mesh
from jaxfusion.planning.program import Program, read_program
from jaxfusion.training.distillation import Distillation, FromTopK
from jaxfusion.training.frozen import freeze
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import make_step
from jaxfusion.training.trainable import trained_paths

# Of a card's memory; CUDA's context and the libraries' own buffers have the rest.
USABLE = 0.95


@dataclass(frozen=True)
class StepPlan:
    """One training step on `devices` cards. Bytes are of one card.

    parameters: of each room, and a teacher's. optimizer: its state, step counts and random state. batch: a card's rows.
    flops:      that the model needs for the batch, over all cards.
    matmul:     see `TrainConfig`.
    attention_layers: that a step runs, in all rooms.
    """

    card: Hardware
    devices: int
    rows: int
    parameters: dict[str, int]
    optimizer: int
    batch: int
    program: Program
    flops: float
    matmul: MatMul = "compute"
    attention_layers: int = 0

    @property
    def share(self) -> float:
        """Of the card's memory that can be used."""
        return self.program.total_bytes / (USABLE * self.card.memory_bytes)

    @property
    def fits(self) -> bool:
        return self.share <= 1

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that a step takes at least, each as if there were nothing else: arithmetic at the bf16 peak, or
        fp8's where that multiplies; reading the state and the batch once; sending what is summed up, once each way."""
        peak = self.card.fp8_flops if self.matmul == "fp8" else self.card.bf16_flops
        program, devices = self.program, self.devices
        sent = sum(size * (devices - 1) / devices for size in program.collective_bytes.values())
        return {
            "arithmetic": self.flops / devices / peak,
            "memory": program.argument_bytes / self.card.memory_bandwidth,
            "links": sent / self.card.link_bandwidth,
        }


def plan_step(
    config: ModelConfig,
    settings: TrainConfig,
    batch: Batch,
    hardware: str = "h200",
    topology: str = "1x1x1",
    distillation: Distillation | FromTopK | None = None,
    parallel: ParallelConfig = ParallelConfig(),
) -> StepPlan:
    """Compiles the step that a run with these settings would take with such a batch; see `described_mesh`.

    batch: NumPy arrays of all cards' rows. distillation: the run has this teacher, which no model FLOPs count.
    parallel: the mesh's axes.
    Raises UserError for hardware that is not described, JAX without CUDA's compiler, rows that cannot be shared, fp8
    where the hardware has none, and cuDNN's LSTM.
    """
    mesh, rows = described_mesh(hardware, topology, parallel), batch.tokens.shape[0]
    on_mesh = MeshParallel(mesh, parallel.rules)
    on_mesh.check_training(replace(settings, batch_size=rows), "or change config.plan.topology")
    _check_encoder(config, batch, mesh)
    model, optimizer = build(config), make_optimizer(settings)
    kept = {"trainable": settings.trainable, "frozen_dtype": settings.frozen_dtype}
    kept["map_shape"] = distillation and distillation.map_shape(model)
    state = on_mesh.abstract(jax.eval_shape(partial(create_state, model, optimizer, **kept), jax.random.key(0)))
    check_rules(state.params, parallel.rules)
    optimizer_bytes = _bytes(state) - _bytes(state.params)
    parameters = {room: _bytes(part) for room, part in state.params.items()}
    if isinstance(distillation, Distillation):
        teacher = distillation.teacher
        taught_by = jax.eval_shape(lambda rng: freeze(teacher, init(teacher, rng), "compute"), jax.random.key(0))
        taught_by = on_mesh.abstract(taught_by)
        state = state.replace(teacher=taught_by)
        parameters["teacher"] = _bytes(taught_by)
    step = make_step(model, optimizer, settings, distillation)
    compiled = compile_for(step, state, batch, hardware=hardware, topology=topology, config=parallel)
    return StepPlan(
        card=HARDWARE[hardware],
        devices=mesh.size,
        rows=rows,
        parameters=parameters,
        optimizer=optimizer_bytes,
        batch=_bytes(batch) // on_mesh.row_shares,
        program=read_program(compiled),
        flops=count_flops(config, batch, trainable=trained_paths(state.params, settings.trainable)).training,
        matmul=settings.matmul,
        attention_layers=_attention_layers(config, batch),
    )


def _attention_layers(config: ModelConfig, batch: Batch) -> int:
    found = sum(stack.num_layers for stack in (config.encoder, config.decoder) if isinstance(stack, TransformerConfig))
    if config.vision is None or batch.images is None:
        return found
    if isinstance(config.vision, ViTConfig) and not holds_features(batch.images, config.vision):
        found += config.vision.used_layers
    if isinstance(config.projector, MappingProjectorConfig | PerceiverProjectorConfig):
        found += config.projector.num_layers
    if isinstance(config.fusion, CrossAttentionFusionConfig) and isinstance(config.decoder, TransformerConfig):
        found += config.decoder.num_layers // config.fusion.every
    return found


def _check_encoder(config: ModelConfig, batch: Batch, mesh: Mesh) -> None:
    if isinstance(config.encoder, BiLSTMEncoderConfig):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            kernel = choose_kernel(config.encoder.implementation, jnp.dtype(config.dtype), batch.packed)
        if kernel == "cudnn":
            raise UserError(
                "config.model.encoder.implementation: the card would run cuDNN's LSTM, which cannot be compiled "
                "without one; set 'scan' to plan XLA's"
            )


def _bytes(tree: Any) -> int:
    """On one card: of an array that is shared out, its part."""
    return sum(prod(_part(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _part(leaf: Any) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
