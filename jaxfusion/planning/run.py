"""What a run's step would take on GPUs that are not there: whether it fits, what it launches and sends, how fast it
could be at best. Neither data nor weights are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxfusion.batch import Batch
from jaxfusion.config import Config
from jaxfusion.config.model import AddFusionConfig, BiLSTMEncoderConfig, PlaceFusionConfig
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE, Hardware
from jaxfusion.models.encoder import choose_kernel
from jaxfusion.models.flops import count_flops
from jaxfusion.models.vlm import build
from jaxfusion.parallel import MeshParallel
from jaxfusion.planning.described import compile_for, described_mesh
from jaxfusion.planning.program import Program, read_program
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import make_step
from jaxfusion.training.trainable import trained_paths

# Of a card's memory; CUDA's context and the libraries' own buffers have the rest.
USABLE = 0.95
MAX_COMPILATIONS = 8  # in the search for the largest batch


@dataclass(frozen=True)
class RunPlan:
    """One training step of a run on `devices` cards. Bytes are of one card.

    parameters: of each room. optimizer: its state, step counts and random state. batch: a card's rows.
    flops:      that the model needs for rows that are full, over all cards.
    """

    card: Hardware
    devices: int
    rows: int
    parameters: dict[str, int]
    optimizer: int
    batch: int
    program: Program
    flops: float

    @property
    def share(self) -> float:
        """Of the card's memory that can be used."""
        return self.program.total_bytes / (USABLE * self.card.memory_bytes)

    @property
    def fits(self) -> bool:
        return self.share <= 1

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that a step of full rows takes at least, each as if there were nothing else: arithmetic at the bf16
        peak; reading the state and the batch once; sending what is summed up, once each way."""
        program, devices = self.program, self.devices
        sent = sum(size * (devices - 1) / devices for size in program.collective_bytes.values())
        return {
            "arithmetic": self.flops / devices / self.card.bf16_flops,
            "memory": program.argument_bytes / self.card.memory_bandwidth,
            "links": sent / self.card.link_bandwidth,
        }


def plan_run(config: Config, rows: int = 0) -> RunPlan:
    """Compiles the run's step for `config.plan`'s hardware.

    rows: a step's, over all cards; 0: train.batch_size.
    Raises UserError for hardware that is not described, JAX without CUDA's compiler, rows that cannot be shared, and
    for cuDNN's LSTM.
    """
    config, rows = _settled(config), rows or config.train.batch_size
    mesh, card = described_mesh(config.plan.hardware, config.plan.topology), HARDWARE[config.plan.hardware]
    model, optimizer, settings = build(config.model), make_optimizer(config.train), config.train
    MeshParallel(mesh).check_batch_size("config.train.batch_size", rows, settings.accumulate)
    kept = {"trainable": settings.trainable, "frozen_dtype": settings.frozen_dtype}
    state = jax.eval_shape(partial(create_state, model, optimizer, **kept), jax.random.key(0))
    row = full_rows(config, 1)
    _check_encoder(config, row, mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), row)
    where = {"hardware": config.plan.hardware, "topology": config.plan.topology}
    trained = trained_paths(state.params, settings.trainable)
    program = read_program(compile_for(make_step(model, optimizer, settings), state, batch, **where))
    return RunPlan(
        card=card,
        devices=mesh.size,
        rows=rows,
        parameters={room: _bytes(part) for room, part in state.params.items()},
        optimizer=_bytes(state) - _bytes(state.params),
        batch=_bytes(batch) // mesh.size,
        program=program,
        flops=rows * count_flops(config.model, row, trainable=trained).training,
    )


def largest_batch(config: Config, first: RunPlan) -> Iterator[RunPlan]:
    """Plans of the same run with other numbers of rows, as they are made; the largest that fits is the answer.

    The search goes by the straight line through what it knows, and ends within a fiftieth, or a row a card.
    """
    plans, unit = {first.rows: first}, first.devices * config.train.accumulate
    limit = USABLE * first.card.memory_bytes
    for _ in range(MAX_COMPILATIONS):
        rows = next_rows({rows: plan.program.total_bytes for rows, plan in plans.items()}, unit, limit)
        if rows is None:
            return
        plans[rows] = plan_run(config, rows)
        yield plans[rows]


def best_fit(plans: Sequence[RunPlan]) -> RunPlan:
    """Of plans of one run the one with most rows that fits; where none does, the one with the fewest rows."""
    fitting = [plan for plan in plans if plan.fits]
    return max(fitting, key=lambda plan: plan.rows) if fitting else min(plans, key=lambda plan: plan.rows)


def next_rows(known: dict[int, int], unit: int, limit: float) -> int | None:
    """The number of rows to try next, given bytes for some; None where the largest that fits is known, or none does."""
    fits = max((rows for rows, size in known.items() if size <= limit), default=0)
    fails = min((rows for rows, size in known.items() if size > limit), default=None)
    if fails is not None and fails - fits <= max(unit, fits // 50):
        return None
    if len(known) == 1:
        return 2 * fits or max(fails // 2 // unit * unit, unit)
    (rows, size), (other, other_size) = sorted(known.items(), key=lambda item: abs(item[1] - limit))[:2]
    slope = (other_size - size) / (other - rows)
    guess = rows + (limit - size) / slope if slope > 0 else 2 * rows
    guess = max(int(guess // unit) * unit, fits + unit)
    return guess if fails is None else min(guess, fails - unit)


def full_rows(config: Config, rows: int) -> Batch:
    """A Batch of NumPy arrays in the run's shapes: rows without padding, with an image in each of their slots.

    That is one where `config.data.images_per_row` leaves it to the data. Where rows are packed the batch says so, which
    decides on kernels, though one sample fills each.
    """
    model, data = config.model, config.data
    slots = ImageSlots.of(model, (data.images_per_row or 1) if "image" in data.modalities else 0)
    number, length = slots.number if slots else 0, data.row_length
    place, column = number * model.tokens_per_image, np.arange(length)
    if isinstance(model.fusion, PlaceFusionConfig):
        index = np.where(column < place, column, -1)
        if place > length:
            raise UserError(
                f"config.data.row_length: a row's images take {place} positions and it has {length}; raise it"
            )
    else:
        index = np.full(length, 0 if number and isinstance(model.fusion, AddFusionConfig) else -1)
    segment = Segment(
        tokens=np.zeros(length, np.int32),
        targets=np.zeros(length, np.int32),
        loss_weights=(column >= place).astype(np.float32),
        prompt_mask=column < place,
        visual_index=index.astype(np.int32),
        images=[np.zeros(slots.shape, slots.dtype) for _ in range(number)],
    )
    return pack([[segment]] * rows, length, model.tokens_per_image, slots, packed=data.packing != "none")


def _check_encoder(config: Config, row: Batch, mesh: Mesh) -> None:
    encoder = config.model.encoder
    if isinstance(encoder, BiLSTMEncoderConfig):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            kernel = choose_kernel(encoder.implementation, jnp.dtype(config.model.dtype), row.packed)
        if kernel == "cudnn":
            raise UserError(
                "config.model.encoder.implementation: the card would run cuDNN's LSTM, which cannot be compiled "
                "without one; set 'scan' to plan XLA's"
            )


def _settled(config: Config) -> Config:
    """Sizes that the data would settle: as many tokens as the tokenizer may learn at most, and as many classes."""
    model, vocab = config.model, config.data.vocab_size
    if not model.text_embedding.vocab_size:
        model = replace(model, text_embedding=replace(model.text_embedding, vocab_size=vocab))
    if getattr(model.decoder, "num_classes", None) == 0:
        model = replace(model, decoder=replace(model.decoder, num_classes=vocab))
    return replace(config, model=model)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
