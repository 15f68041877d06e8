"""A student learns from a frozen teacher's probabilities, beside the targets (Hinton, Vinyals & Dean 2015).

The loss of a position is (1 - weight) * cross-entropy + weight * T**2 * KL(teacher || student), both models' logits
divided by the temperature T in the second term; T**2 keeps its gradient's size whatever the temperature. The logits of
both are formed chunk by chunk in `jaxfusion.training.cross_entropy`, and only where a position carries loss.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from jaxfusion.batch import Batch
from jaxfusion.models.vlm import Model, Params, features, output_matrix


@dataclass(frozen=True)
class SoftTargets:
    """temperature: above 1 the teacher's small probabilities count for more.
    weight:  of what the teacher says; the targets have the rest.
    softcap: the teacher's own, as in `CrossEntropy`.
    """

    temperature: float = 1.0
    weight: float = 0.5
    softcap: float = 0.0

    def divergence(
        self, logits: Float[Array, "P V"], teacher: Float[Array, "P V"]
    ) -> tuple[Float[Array, " P"], "Normalisers"]:
        """T**2 * KL(teacher || student) of each position, in nats; and what `by_logits` needs."""
        student, teacher = logits / self.temperature, teacher / self.temperature
        found = Normalisers(jax.nn.logsumexp(student, axis=-1), jax.nn.logsumexp(teacher, axis=-1))
        log_ratio = (teacher - found.teacher[:, None]) - (student - found.student[:, None])
        kl = jnp.sum(jnp.exp(teacher - found.teacher[:, None]) * log_ratio, axis=-1)
        return self.temperature**2 * kl, found

    def by_logits(
        self, logits: Float[Array, "P C"], teacher: Float[Array, "P C"], found: "Normalisers"
    ) -> Float[Array, "P C"]:
        """The gradient of `divergence` by the student's logits, for a block of the classes."""
        student = jnp.exp(logits / self.temperature - found.student[:, None])
        return self.temperature * (student - jnp.exp(teacher / self.temperature - found.teacher[:, None]))


class Normalisers(NamedTuple):
    """log sum exp(logits / T) of each position."""

    student: Float[Array, " P"]
    teacher: Float[Array, " P"]


@struct.dataclass
class Told:
    """What a teacher says of a batch, before its output matrix makes logits of it: `hidden @ matrix.T`."""

    hidden: Shaped[Array, "B T E"]
    matrix: Shaped[Array, "V E"]
    soft: SoftTargets = struct.field(pytree_node=False)


@dataclass(frozen=True)
class Distillation:
    """teacher: without its parameters. temperature, weight: as in `SoftTargets`."""

    teacher: Model
    temperature: float = 1.0
    weight: float = 0.5

    def tell(self, params: Params, batch: Batch) -> Told:
        """The teacher's last hidden states, without dropout. Nothing that follows has a gradient by its parameters."""
        softcap = getattr(self.teacher.config.decoder, "logit_softcap", 0.0)
        soft = SoftTargets(self.temperature, self.weight, softcap)
        params = jax.lax.stop_gradient(params)
        return Told(features(self.teacher, params, batch), output_matrix(self.teacher, params), soft)
