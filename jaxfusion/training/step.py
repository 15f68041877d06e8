"""One training step and one evaluation step, pure functions that run on one device, a mesh or under pmap."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import Batch
from jaxfusion.config.run import TrainConfig
from jaxfusion.models.float8 import MatMul, multiplied
from jaxfusion.models.remat import Remat, rematerialised
from jaxfusion.models.rows import by_itself, copy_axes
from jaxfusion.models.sizes import batch_sizes
from jaxfusion.models.vlm import Model, Params
from jaxfusion.training.distillation import Distillation, FromTopK
from jaxfusion.training.losses import LossSums, forward_loss
from jaxfusion.training.state import MAP, TrainState
from jaxfusion.training.trainable import join, split

Metrics = dict[str, Shaped[Array, ""]]


def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    axis_name: str | None = None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    remat: Remat = "none",
    matmul: MatMul = "compute",
    accumulate: int = 1,
    distillation: Distillation | FromTopK | None = None,
) -> tuple[TrainState, Metrics]:
    """One update with the gradient of the mean loss over all of the batch's loss weights.

    What `state.trainable` leaves out is never differentiated: no gradient, no clipping, no decay, the same bits.
    Where the loss or the gradient's norm is not finite, all but the step stays what it was, bit for bit.

    axis_name: under pmap, the axis whose devices each hold a part of the rows. They add up sums, so the result is that
        of one device with all rows, however the loss weights lie (dropout apart: each device has its own).
    z_loss, label_smoothing: as in `CrossEntropy`; what is minimised, and what the metrics call loss.
    remat: what the backward pass computes again, see `jaxfusion.models.remat`.
    matmul: how linear layers of stacks are multiplied, see `jaxfusion.models.float8`.
    accumulate: parts of the rows that are taken one after the other. Their gradients are added up, in float32, and
        divided once, so the update is that of all rows at once but for dropout, which each part has its own, and on a
        mesh each device. It must divide the rows that each device holds.
    distillation: a frozen teacher, whose parameters are `state.teacher`, has a share in the loss.
        `state.feature_map` learns along.
    Metrics, scalars on the device: loss (nats) and accuracy, means over loss weights; with a teacher the divergence
        from it (nats), as it is in the loss, and the feature_distance, where hidden states count; gradient_norm, before
        clipping; skipped_updates, 1 or 0; and the batch's sizes, see `jaxfusion.models.sizes`.
    """
    dropout_rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    if axis_name is not None:
        dropout_rng = jax.random.fold_in(dropout_rng, jax.lax.axis_index(axis_name))

    trainable, frozen = split(state.params, state.trainable)
    if state.feature_map is not None:  # no part of the model, but a parameter to the optimizer like any other
        trainable = trainable | {MAP: state.feature_map}

    def summed_loss(trainable: Params, fixed: Params, batch: Batch, rng: Array) -> tuple[Float[Array, ""], LossSums]:
        frozen, teacher = fixed
        told = distillation and distillation.tell(teacher, batch, trainable.get(MAP))
        params, options = join(_of_model(trainable), frozen), {"z_loss": z_loss, "label_smoothing": label_smoothing}
        with rematerialised(remat), multiplied(matmul):
            sums = forward_loss(model, params, batch, rng, **options, told=told)
        return sums.loss, sums

    differentiate = jax.grad(summed_loss, has_aux=True)
    if accumulate > 1:
        differentiate = _in_parts(differentiate, accumulate, distillation)
    gradients, sums = differentiate(trainable, (frozen, state.teacher), batch, dropout_rng)
    sizes = batch_sizes(model.config, batch)
    if axis_name is not None:
        gradients, sums, sizes = jax.lax.psum((gradients, sums, sizes), axis_name)
    # A batch without any loss weight is a step without any gradient, not a division by zero.
    weight = jnp.where(sums.weight > 0, sums.weight, 1.0)
    gradients = jax.tree.map(lambda gradient: gradient / weight, gradients)

    loss, norm = sums.loss / weight, optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    updated = optax.apply_updates(trainable, updates)
    # A select becomes part of the update's own loops, which read the old values anyway; a conditional would cut them
    # off from the gradient's, and hold new values beside old ones.
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updated, opt_state = jax.tree.map(partial(jnp.where, finite), (updated, opt_state), (trainable, state.opt_state))
    params = join(_of_model(updated), frozen)
    metrics = {
        "loss": loss,
        "accuracy": sums.correct / weight,
        "gradient_norm": norm,
        "skipped_updates": 1 - finite.astype(jnp.int32),
        **sizes,
    }
    if distillation is not None:
        metrics["divergence"] = sums.divergence / weight
    if sums.distance is not None:
        metrics["feature_distance"] = sums.distance / weight
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, feature_map=updated.get(MAP))
    return new, metrics


def _of_model(trainable: Params) -> Params:
    return {room: leaves for room, leaves in trainable.items() if room != MAP}


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    settings: TrainConfig,
    distillation: Distillation | FromTopK | None = None,
) -> Callable[..., Any]:
    """`train_step` of a run: what is left are the state, the batch and the axis name."""
    names = ("z_loss", "label_smoothing", "remat", "matmul", "accumulate")
    chosen = {name: getattr(settings, name) for name in names}
    return partial(train_step, model, optimizer, **chosen, distillation=distillation)


def _in_parts(
    differentiate: Callable[..., tuple[Params, LossSums]], count: int, taught: Distillation | FromTopK | None
) -> Callable[..., Any]:
    """`differentiate(trainable, fixed, batch, rng)` of `count` parts of the rows one after the other, added up.

    On a mesh each device takes its own rows in parts, and sums over devices that hold the same parameters are added up
    once, after the last. Over those that share the parameters out there is a sum a part: no device holds a whole one.
    """

    def run(trainable: Params, fixed: Params, batch: Batch, rng: Array) -> tuple[Params, LossSums]:
        def add(total: tuple[Params, LossSums], part: tuple[Batch, Array]) -> tuple[tuple[Params, LossSums], None]:
            return jax.tree.map(jnp.add, total, differentiate(trainable, fixed, *part)), None

        found = 3 + (taught is not None) + bool(taught and taught.features)
        nothing = LossSums(*(jnp.zeros((), jnp.float32),) * found)
        start = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trainable), nothing)
        sums, _ = jax.lax.scan(add, start, (_parts(batch, count), jax.random.split(rng, count)))
        return sums

    axes = copy_axes()
    if not axes:
        return run

    def run_and_add(trainable: Params, fixed: Params, batch: Batch, rng: Array) -> tuple[Params, LossSums]:
        return jax.lax.psum(run(trainable, fixed, batch, jax.random.fold_in(rng, jax.lax.axis_index(axes))), axes)

    whole, rows = PartitionSpec(), PartitionSpec(axes)
    inputs = (whole, whole, rows, whole)
    return by_itself(run_and_add, axes, inputs, whole)


def _parts(batch: Batch, count: int) -> Batch:
    """Every count-th row, on a new leading axis."""

    def split_rows(leaf: Array) -> Array:
        return jnp.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split_rows, batch)


def eval_step(model: Model, params: Params, batch: Batch, axis_name: str | None = None) -> LossSums:
    """Loss sums of the whole batch, without dropout; under pmap, added up over the devices of `axis_name`."""
    sums = forward_loss(model, params, batch, None)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)
