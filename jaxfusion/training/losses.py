"""The training loss of a model: cross-entropy over a batch's weighted targets, as sums that devices can add up."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfusion.batch import Batch
from jaxfusion.models.vlm import Model, Params, features, output_matrix
from jaxfusion.training.cross_entropy import CrossEntropy, LossSums, linear_cross_entropy, logits_loss
from jaxfusion.training.distillation import Told, ToldTopK


def loss_sums(logits: Float[Array, "B T V"], batch: Batch) -> LossSums:
    """Cross-entropy of float32 logits against `batch.targets`, weighted by `batch.loss_weights`."""
    return logits_loss(logits, batch.targets, batch.loss_weights)


def forward_loss(
    model: Model,
    params: Params,
    batch: Batch,
    dropout_rng: Array | None = None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    told: Told | ToldTopK | None = None,
) -> LossSums:
    """The loss sums of the model's own logits, which are never all there at once. The options are `CrossEntropy`'s.

    told: what a teacher says of the batch, which has its share in the loss; see `jaxfusion.training.distillation`.
    """
    softcap = getattr(model.config.decoder, "logit_softcap", 0.0)
    options = CrossEntropy(softcap=softcap, z_loss=z_loss, label_smoothing=label_smoothing)
    hidden = features(model, params, batch, dropout_rng)
    matrix = output_matrix(model, params)
    sums = linear_cross_entropy(hidden, matrix, batch.targets, batch.loss_weights, options, told=told)
    if told is None or not told.features:
        return sums
    distance = jnp.sum(batch.loss_weights * told.distances(hidden))
    return sums.replace(loss=sums.loss + told.features * distance, distance=distance)


def loss(model: Model, params: Params, batch: Batch, dropout_rng: Array | None = None) -> Float[Array, ""]:
    """Mean cross-entropy (nats) over the batch's loss weights."""
    return forward_loss(model, params, batch, dropout_rng).mean_loss
