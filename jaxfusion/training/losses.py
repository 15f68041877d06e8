"""Cross-entropy over a batch's weighted targets, as sums that devices and accumulation steps can add up."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxfusion.batch import Batch
from jaxfusion.models.vlm import Model, Params, forward


@struct.dataclass
class LossSums:
    """Sums over positions: weight * cross-entropy (nats), weight, and weight where the arg max is the target."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    correct: Float[Array, ""]

    @property
    def mean_loss(self) -> Float[Array, ""]:
        return self.loss / jnp.maximum(self.weight, 1e-9)

    @property
    def accuracy(self) -> Float[Array, ""]:
        return self.correct / jnp.maximum(self.weight, 1e-9)


def loss_sums(logits: Float[Array, "B T V"], batch: Batch) -> LossSums:
    """Cross-entropy of float32 logits against `batch.targets`, weighted by `batch.loss_weights`."""
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A sum over a comparison, not a gather: its gradient is one fused pass and not a scatter into [B, T, V].
    is_target = jnp.arange(logits.shape[-1]) == batch.targets[..., None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    weights = batch.loss_weights
    correct = jnp.argmax(logits, axis=-1) == batch.targets
    return LossSums(
        loss=jnp.sum(weights * (log_normaliser - target_logit)),
        weight=jnp.sum(weights),
        correct=jnp.sum(weights * correct),
    )


def forward_loss(model: Model, params: Params, batch: Batch, dropout_rng: Array | None = None) -> LossSums:
    """The loss sums of the model's own logits."""
    return loss_sums(forward(model, params, batch, dropout_rng), batch)


def loss(model: Model, params: Params, batch: Batch, dropout_rng: Array | None = None) -> Float[Array, ""]:
    """Mean cross-entropy (nats) over the batch's loss weights."""
    return forward_loss(model, params, batch, dropout_rng).mean_loss
