"""A student learns from a frozen teacher beside the targets: from its probabilities (Hinton, Vinyals & Dean 2015), and
from its last hidden states where that is asked for.

The loss of a position is

    (1 - weight) * cross-entropy + weight * T**2 * KL(teacher || student) + features * (1 - cos(M s, t))

Both models' logits are divided by the temperature T in the second term; T**2 keeps its gradient's size whatever the
temperature. The logits of both are formed chunk by chunk in `jaxfusion.training.cross_entropy`, and only where a
position carries loss. In the third term s and t are the student's and the teacher's last hidden states, which their
output matrices read, and M is a linear map that is learned along where their widths differ, as FitNets' regressor
(Romero et al. 2015), and the identity where they do not; the cosine is DistilBERT's (Sanh et al. 2019). A cosine does
not ask how large a teacher's states are, so the weight means the same whoever teaches.

A teacher may have spoken beforehand: `TopK` holds its k largest probabilities at each position. All other classes are
one then, which has the rest of the probability, with both models; with k classes in all it is the same KL.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Shaped

from jaxfusion.batch import Batch, TopK
from jaxfusion.models.vlm import Model, Params, features, output_matrix

LEAST = -80.0  # of the logarithm of a rest: a probability that float32 still tells from 0


@dataclass(frozen=True)
class SoftTargets:
    """temperature: above 1 the teacher's small probabilities count for more.
    weight:  of what the teacher says; the targets have the rest.
    softcap: the teacher's own, as in `CrossEntropy`.
    """

    temperature: float = 1.0
    weight: float = 0.5
    softcap: float = 0.0

    def teacher_logits(self, logits: Float[Array, "P V"], *said: Array) -> Float[Array, "P V"]:
        """The teacher's, in float32. logits: the student's. said: `Told.said` or `ToldTopK.said` of the positions."""
        if len(said) == 2:
            return _logits(*said, self.softcap)
        # Where the teacher has not told classes apart they share its rest as the student would have it: then neither
        # the divergence nor its gradient by the student's logits know of anything but the rest as a whole.
        ids, log_probs, log_rest = said
        student, rows = logits / self.temperature, jnp.arange(len(ids))[:, None]
        outside = jax.nn.logsumexp(student.at[rows, ids].set(-jnp.inf), axis=-1)
        theirs = (student + (log_rest - outside)[:, None]).at[rows, ids].set(log_probs)
        return self.temperature * theirs

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
    """What a teacher says of a batch, before its output matrix makes logits of it: `hidden @ matrix.T`.

    features: the weight of the hidden states' distance. map: M, where there is one.
    """

    hidden: Shaped[Array, "B T E"]
    matrix: Shaped[Array, "V E"]
    soft: SoftTargets = struct.field(pytree_node=False)
    features: float = struct.field(pytree_node=False, default=0.0)
    map: Float[Array, "D E"] | None = None

    @property
    def said(self) -> tuple[Array, ...]:
        """Arrays that lead with the row, and then those that do not."""
        return self.hidden, self.matrix

    def distances(self, student: Shaped[Array, "B T D"]) -> Float[Array, "B T"]:
        """1 - cos(M s, t) at each position, in float32."""
        theirs = jax.lax.stop_gradient(self.hidden).astype(jnp.float32)
        if self.map is None:
            ours = student.astype(jnp.float32)
        else:
            ours = jnp.einsum(
                "btd,de->bte", student, self.map.astype(student.dtype), preferred_element_type=jnp.float32
            )
        lengths = jnp.sum(ours**2, axis=-1) * jnp.sum(theirs**2, axis=-1)
        return 1 - jnp.sum(ours * theirs, axis=-1) * jax.lax.rsqrt(jnp.maximum(lengths, 1e-12))


@struct.dataclass
class ToldTopK:
    """What a teacher has said of a batch beforehand: `Batch.told`."""

    ids: Int[Array, "B T k"]
    log_probs: Float[Array, "B T k"]
    log_rest: Float[Array, "B T"]
    soft: SoftTargets = struct.field(pytree_node=False)
    features = 0.0

    @property
    def said(self) -> tuple[Array, ...]:
        return self.ids, self.log_probs, self.log_rest


@dataclass(frozen=True)
class Distillation:
    """teacher: without its parameters. temperature, weight: as in `SoftTargets`. features: as in `Told`."""

    teacher: Model
    temperature: float = 1.0
    weight: float = 0.5
    features: float = 0.0

    def tell(self, params: Params, batch: Batch, map: Params | None = None) -> Told:
        """The teacher's last hidden states, without dropout. Nothing that follows has a gradient by its parameters.

        map: see `map_shape`.
        """
        params = jax.lax.stop_gradient(params)
        hidden, matrix = features(self.teacher, params, batch), output_matrix(self.teacher, params)
        soft = SoftTargets(self.temperature, self.weight, self._softcap)
        return Told(hidden, matrix, soft, self.features, map and map["kernel"])

    def say(self, params: Params, batch: Batch, k: int, max_logits: int = 1 << 25) -> TopK:
        """The k largest probabilities at each position, which `FromTopK` learns from, a few columns at a time.

        max_logits: that are held at once, about.
        """
        hidden, matrix = features(self.teacher, params, batch), output_matrix(self.teacher, params)
        rows, columns, width = hidden.shape
        step = max(1, max_logits // (rows * len(matrix)))
        step = next(size for size in range(min(step, columns), 0, -1) if columns % size == 0)

        def one(part: Shaped[Array, "B c E"]) -> TopK:
            logits = _logits(part.reshape(-1, width), matrix, self._softcap)
            return top_k(logits.reshape(rows, step, -1), k, self.temperature)

        parts = jnp.swapaxes(hidden.reshape(rows, -1, step, width), 0, 1)
        said = jax.lax.map(one, parts)
        return TopK(*(jnp.swapaxes(leaf, 0, 1).reshape(rows, columns, *leaf.shape[3:]) for leaf in said))

    @property
    def _softcap(self) -> float:
        return getattr(self.teacher.config.decoder, "logit_softcap", 0.0)

    def map_shape(self, student: Model) -> tuple[int, int] | None:
        """Of the map from the student's hidden states to the teacher's; None: there is none."""
        widths = student.config.width, self.teacher.config.width
        return widths if self.features and widths[0] != widths[1] else None


@dataclass(frozen=True)
class FromTopK:
    """A teacher that has spoken beforehand.

    k: how many of its probabilities there are. temperature, weight: as in `SoftTargets`.
    """

    k: int
    temperature: float = 1.0
    weight: float = 0.5
    features = 0.0

    def tell(self, params: None, batch: Batch, map: None = None) -> ToldTopK:
        return ToldTopK(*batch.told, SoftTargets(self.temperature, self.weight))

    def map_shape(self, student: Model) -> None:
        return None


def _logits(hidden: Shaped[Array, "P E"], matrix: Shaped[Array, "V E"], softcap: float) -> Float[Array, "P V"]:
    logits = jnp.einsum("pe,ve->pv", hidden, matrix.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def top_k(logits: Float[Array, "*N V"], k: int, temperature: float) -> TopK:
    """The k largest of log softmax(logits / T), and what all others have together."""
    scaled = logits / temperature
    normaliser = jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
    largest, ids = jax.lax.top_k(scaled, k)
    others = jnp.put_along_axis(scaled, ids, -jnp.inf, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1) - normaliser[..., 0]
    return TopK(ids, largest - normaliser, jnp.maximum(rest, LEAST))
