"""Cross-entropy straight from the last hidden states, without ever holding all logits.

A chunk of positions at a time: its logits, its loss, and at once its gradient, so that nothing of the chunk outlives
it (Wijmans et al. 2024 and Liger Kernel, Hsu et al. 2024, do the like). Positions without a loss weight are left out.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jaxfusion.models.rows import by_itself, platform, row_axes
from jaxfusion.training.distillation import SoftTargets, Told, ToldTopK

CHUNKS = 8  # at least, so that those without any loss can be skipped


class Limits(NamedTuple):
    """max_logits: that are held at once, about.
    min_positions: of a chunk. The gradient by the matrix is read and written once a chunk, which must not take longer
        than a chunk's products.
    multiple: of positions that a larger chunk has; matrix products are laid out in such.
    blocks: whether gradients go through the classes in blocks, whose products are small beside the logits. A GPU's
        products are added to where the gradient lies, and many small ones leave most of it idle.
    """

    max_logits: int
    min_positions: int
    multiple: int
    blocks: bool


# A CPU's arithmetic is slower beside its memory than a GPU's.
ON_CPU = Limits(1 << 25, min_positions=64, multiple=1, blocks=True)
ON_GPU = Limits(1 << 26, min_positions=512, multiple=128, blocks=False)


@dataclass(frozen=True)
class CrossEntropy:
    """softcap: logits are bent by cap tanh(x / cap) first; 0: they are not.
    z_loss: weight of the squared log-normaliser (Chowdhery et al. 2022, PaLM).
    label_smoothing: share of the target's probability that goes to all classes alike (Szegedy et al. 2016).
    """

    softcap: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0


@struct.dataclass
class LossSums:
    """Sums over positions: weight * cross-entropy (nats), weight, and weight where the arg max is the target.

    divergence: where a teacher speaks, weight * what the student is off from it (nats), which has a share in the loss.
    distance: where its hidden states count too, weight * how far the student's are from them, see `distillation`.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    correct: Float[Array, ""]
    divergence: Float[Array, ""] | None = None
    distance: Float[Array, ""] | None = None

    @property
    def mean_loss(self) -> Float[Array, ""]:
        return self.loss / jnp.maximum(self.weight, 1e-9)

    @property
    def accuracy(self) -> Float[Array, ""]:
        return self.correct / jnp.maximum(self.weight, 1e-9)


def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    matrix: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    options: CrossEntropy = CrossEntropy(),
    limits: Limits | None = None,
    told: Told | ToldTopK | None = None,
) -> LossSums:
    """The sums for the logits `hidden @ matrix.T`, which are formed in float32 from operands of hidden's dtype.

    Its loss can be differentiated once, by hidden and matrix; whichever is not asked for costs nothing.
    limits: None: what is fastest where it runs.
    told: what a teacher says of the same positions and classes; see `jaxfusion.training.distillation`. The z-loss keeps
        its whole weight beside it, since it is no target's.
    """
    limits = limits or (ON_CPU if platform() == "cpu" else ON_GPU)
    arrays = (hidden, matrix, targets, weights)
    if told is None:
        loss, correct = _sums(options, None, limits, *arrays)
        return LossSums(loss, jnp.sum(weights), correct)
    limits = limits._replace(max_logits=limits.max_logits // 2)  # there are as many of the teacher's
    loss, correct, divergence = _sums(options, told.soft, limits, *arrays, *told.said)
    return LossSums(loss, jnp.sum(weights), correct, divergence)


def logits_loss(
    logits: Float[Array, "*N V"],
    targets: Int[Array, "*N"],
    weights: Float[Array, "*N"],
    options: CrossEntropy = CrossEntropy(),
) -> LossSums:
    """The sums for float32 logits that are there already, and bent."""
    loss, correct, _ = _read(logits, targets, weights, options)
    return LossSums(loss, jnp.sum(weights), correct)


def _read(
    logits: Array, targets: Array, weights: Array, options: CrossEntropy, share: float = 1.0
) -> tuple[Array, Array, Array]:
    """(loss, correct, log-normaliser of each position). share: of the cross-entropy in the loss."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A sum over a comparison, not a gather: its gradient is one fused pass and not a scatter into all logits.
    classes = jnp.arange(logits.shape[-1])
    is_target = classes == targets[..., None]
    spread = options.label_smoothing
    likely = (1 - spread) * jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    if spread:
        likely += spread * jnp.mean(logits, axis=-1)
    losses = share * (normaliser - likely)
    if options.z_loss:
        losses += options.z_loss * normaliser**2
    # The first of the highest, as jnp.argmax, whose pairs of value and index XLA's CPU takes one at a time.
    highest = jnp.max(logits, axis=-1, keepdims=True)
    best = jnp.min(jnp.where(logits == highest, classes, logits.shape[-1]), axis=-1)
    return jnp.sum(weights * losses), jnp.sum(weights * (best == targets)), normaliser


def _by_logits(
    logits: Array, targets: Array, normaliser: Array, vocab: int, options: CrossEntropy, share: float
) -> Array:
    """The gradient of a position's loss, as `_read` has it, by its logits, of a block of the classes.

    targets: counted from the block's first class.
    """
    found = jnp.exp(logits - normaliser[..., None])
    found *= (share + 2 * options.z_loss * normaliser)[..., None] if options.z_loss else share
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    by_logits = found - jnp.where(is_target, share * (1 - options.label_smoothing), 0)
    if options.label_smoothing:
        by_logits -= share * options.label_smoothing / vocab
    return by_logits


def _bent(logits: Array, cap: float) -> Array:
    return cap * jnp.tanh(logits / cap) if cap else logits


def _slope(bent: Array, cap: float) -> Array | float:
    """The derivative of `_bent`, from what it gave."""
    return 1 - (bent / cap) ** 2 if cap else 1.0


Soft = SoftTargets | None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sums(options: CrossEntropy, soft: Soft, limits: Limits, *arrays: Array) -> tuple[Array, ...]:
    return _on_mesh(options, soft, limits, False, False, *arrays)[0]


def _forward(options: CrossEntropy, soft: Soft, limits: Limits, *primals: CustomVJPPrimal) -> tuple[tuple, tuple]:
    hidden, matrix, *_ = primals
    sums, *gradients = _on_mesh(
        options, soft, limits, hidden.perturbed, matrix.perturbed, *(primal.value for primal in primals)
    )
    return sums, (tuple(gradients), (None,) * (len(primals) - 2))


def _backward(options: CrossEntropy, soft: Soft, limits: Limits, kept: tuple, cotangents: tuple) -> tuple:
    (gradients, others), of_loss = kept, cotangents[0]
    if isinstance(of_loss, SymbolicZero):
        return None, None, *others
    scaled = [None if g is None else (of_loss * g.astype(jnp.float32)).astype(g.dtype) for g in gradients]
    return *scaled, *others


_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def _on_mesh(
    options: CrossEntropy, soft: Soft, limits: Limits, for_hidden: bool, for_matrix: bool, *arrays: Array
) -> tuple:
    """`_run`, by each device of a mesh on its own rows: what they find is added up once, and not once a chunk."""
    run, axes = partial(_run, options, soft, limits, for_hidden, for_matrix), row_axes()
    if not axes:
        return run(*arrays)

    def run_and_add(*arrays: Array) -> tuple:
        sums, by_hidden, by_matrix = run(*arrays)
        sums, by_matrix = jax.lax.psum((sums, by_matrix), axes)
        return sums, by_hidden, by_matrix

    rows, whole = PartitionSpec(axes), PartitionSpec()
    told = {0: (), 2: (rows, whole), 3: (rows, rows, rows)}[len(arrays) - 4]  # see `Told.said` and `ToldTopK.said`
    inputs, outputs = (rows, whole, rows, rows, *told), (whole, rows, whole)
    return by_itself(run_and_add, axes, inputs, outputs)(*arrays)


def _run(
    options: CrossEntropy,
    soft: Soft,
    limits: Limits,
    for_hidden: bool,
    for_matrix: bool,
    hidden: Shaped[Array, "B T D"],
    matrix: Shaped[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *said: Array,
) -> tuple[tuple[Array, ...], Array | None, Array | None]:
    """((loss, correct, and with a teacher the divergence), gradient of the loss by hidden, by matrix)

    said: what a teacher says, arrays of positions, and its matrix, where there is one.
    """
    said, told_matrix = (said[:1], said[1:]) if len(said) == 2 else (said, ())
    share = 1.0 if soft is None else 1 - soft.weight
    narrow = matrix.astype(hidden.dtype)
    vocab, width = matrix.shape
    step = chunk_size(targets.size, vocab, limits)
    block = min(vocab, max(1, limits.max_logits // (4 * max(width, step)))) if limits.blocks else vocab
    block = -(-vocab // -(-vocab // block))  # as many blocks, of equal size, so that hardly a class is done twice

    def chunk(positions: tuple[Array, ...], by_matrix: Array | None) -> tuple[Any, ...]:
        """positions: hidden, [P, D], targets, weights, and what a teacher says; by_matrix: float32[V, D], to be added
        to."""
        hidden, targets, weights, *told = positions
        logits = jnp.einsum("pd,vd->pv", hidden, narrow, preferred_element_type=jnp.float32)
        logits = _bent(logits, options.softcap)
        loss, correct, normaliser = _read(logits, targets, weights, options, share)
        sums = (loss, correct)
        if soft is not None:
            theirs = soft.teacher_logits(logits, *told, *told_matrix)
            divergences, normalisers = soft.divergence(logits, theirs)
            divergence = jnp.sum(weights * divergences)
            sums = (loss + soft.weight * divergence, correct, divergence)

        def add_block(index: Array, carry: tuple[Array | None, Array | None]) -> tuple[Array | None, Array | None]:
            by_hidden, by_matrix = carry
            first = jnp.minimum(index * block, vocab - block)
            part = jax.lax.dynamic_slice_in_dim(logits, first, block, axis=1)
            by_logits = _by_logits(part, targets - first, normaliser, vocab, options, share)
            if soft is not None:
                says = jax.lax.dynamic_slice_in_dim(theirs, first, block, axis=1)
                by_logits += soft.weight * soft.by_logits(part, says, normalisers)
            by_logits *= _slope(part, options.softcap) * weights[..., None]
            # The last block begins earlier than it would, and what the one before it has done is done.
            new = first + jnp.arange(block) >= index * block
            by_logits = jnp.where(new, by_logits, 0).astype(hidden.dtype)
            if for_hidden:
                rows = jax.lax.dynamic_slice_in_dim(narrow, first, block)
                by_hidden += jnp.einsum("pv,vd->pd", by_logits, rows, preferred_element_type=jnp.float32)
            if for_matrix:
                more = jnp.einsum("pv,pd->vd", by_logits, hidden, preferred_element_type=jnp.float32)
                more += jax.lax.dynamic_slice_in_dim(by_matrix, first, block)
                by_matrix = jax.lax.dynamic_update_slice_in_dim(by_matrix, more, first, axis=0)
            return by_hidden, by_matrix

        by_hidden = jnp.zeros(hidden.shape, jnp.float32) if for_hidden else None
        if for_hidden or for_matrix:
            by_hidden, by_matrix = _for_each(-(-vocab // block), add_block, (by_hidden, by_matrix))
        return sums, by_hidden.astype(hidden.dtype) if for_hidden else None, by_matrix

    nothing = jnp.zeros(matrix.shape, jnp.float32) if for_matrix else None
    positions = (hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1))
    positions += tuple(values.reshape(targets.size, *values.shape[2:]) for values in said)
    if step < targets.size:
        num_sums = 2 if soft is None else 3
        sums, by_hidden, by_matrix = _run_chunks(chunk, step, for_hidden, positions, nothing, num_sums)
    else:
        sums, by_hidden, by_matrix = chunk(positions, nothing)
    by_hidden = by_hidden.reshape(hidden.shape) if for_hidden else None
    return sums, by_hidden, by_matrix.astype(matrix.dtype) if for_matrix else None


def chunk_size(num_positions: int, vocab: int, limits: Limits) -> int:
    """Positions of a chunk."""
    size = min(limits.max_logits // vocab, num_positions // CHUNKS) // limits.multiple * limits.multiple
    return min(num_positions, max(size, limits.min_positions))


def _for_each(count: int, body: Any, carry: Any) -> Any:
    return body(0, carry) if count == 1 else jax.lax.fori_loop(0, count, body, carry)


def _run_chunks(
    chunk: Any,
    step: int,
    for_hidden: bool,
    positions: tuple[Shaped[Array, "N ..."], ...],
    by_matrix: Float[Array, "V D"] | None,
    num_sums: int,
) -> tuple[tuple[Array, ...], Array | None, Array | None]:
    """`step` positions at a time, of those with a weight alone, which are moved to the front.

    positions: hidden, targets, weights, and what else `chunk` takes of each.
    """
    weights = positions[2]
    order = jnp.argsort(weights == 0, stable=True)
    num_chunks = -(-jnp.sum(weights != 0) // step)
    padding = -len(order) % step
    moved = tuple(jnp.pad(values[order], ((0, padding),) + ((0, 0),) * (values.ndim - 1)) for values in positions)

    def body(index: Array, carry: tuple) -> tuple:
        sums, by_hidden, by_matrix = carry
        parts = tuple(jax.lax.dynamic_slice_in_dim(values, index * step, step) for values in moved)
        more, part, by_matrix = chunk(parts, by_matrix)
        if for_hidden:
            by_hidden = jax.lax.dynamic_update_slice_in_dim(by_hidden, part, index * step, axis=0)
        return jax.tree.map(jnp.add, sums, more), by_hidden, by_matrix

    nothing = (jnp.zeros((), jnp.float32),) * num_sums
    start = (nothing, jnp.zeros_like(moved[0]) if for_hidden else None, by_matrix)
    sums, by_hidden, by_matrix = jax.lax.fori_loop(0, num_chunks, body, start)
    return sums, by_hidden[jnp.argsort(order)] if for_hidden else None, by_matrix
