"""The encoder room's bidirectional LSTM. (The Transformer encoder is `transformer.TransformerLayers` itself.)"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import rnn
from jaxtyping import Array, Float, Int

from jaxfusion.models import alike
from jaxfusion.models.rows import on_own_rows, platform

LSTMKernel = Literal["auto", "scan", "cudnn"]


class BiLSTM(nn.Module):
    """Bidirectional LSTM layers (Hochreiter & Schmidhuber 1997; Graves & Schmidhuber 2005) over packed rows.

    Each direction has half the width, gates in torch's order (input, forget, cell, output) and one bias. The state
    starts from zero at the first position of a segment in reading direction, so segments cannot see each other.
    implementation: "scan" is XLA's; "cudnn" needs an NVIDIA GPU, float32 and one segment a row; "auto" chooses.
    """

    num_layers: int
    implementation: LSTMKernel
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], packed: bool) -> Float[Array, "B T D"]:
        """packed: False promises one segment a row from position 0. Outputs at padding (segment 0) mean nothing."""
        width = x.shape[-1]
        hidden = width // 2
        layers = []
        for index in range(self.num_layers):
            uniform = nn.initializers.uniform(2 * hidden**-0.5)

            def init(rng: jax.Array, shape: tuple[int, ...], uniform=uniform, hidden=hidden) -> jax.Array:
                return uniform(rng, shape) - hidden**-0.5

            layers.append(
                {
                    "input_kernel": self.param(f"layer_{index}_input_kernel", init, (2, width, 4 * hidden)),
                    "hidden_kernel": self.param(f"layer_{index}_hidden_kernel", init, (2, hidden, 4 * hidden)),
                    "bias": self.param(f"layer_{index}_bias", init, (2, 4 * hidden)),
                }
            )
        kernel = choose_kernel(self.implementation, self.dtype, packed)
        # XLA cannot share out cuDNN's call, and of a scan it would add up the weights' gradients at every time step.
        run = {"cudnn": _cudnn, "scan": _scan}[kernel]
        if alike.is_active():
            return alike.one_by_one(lambda x, ids: run(x, ids, layers), x, segment_ids)
        return on_own_rows(run, x, segment_ids, whole=(layers,))


def choose_kernel(implementation: LSTMKernel, dtype: jnp.dtype, packed: bool) -> Literal["scan", "cudnn"]:
    """What is forced, or cuDNN where it can be had: on GPUs, in float32 (all that JAX passes on), with one segment a
    row."""
    if implementation != "auto":
        return implementation
    return "cudnn" if platform() == "gpu" and dtype == jnp.float32 and not packed else "scan"


def _scan(x: Array, segment_ids: Array, layers: list[dict[str, Array]]) -> Array:
    dtype = x.dtype
    for layer in layers:
        x = _scan_layer(x, segment_ids, jax.tree.map(lambda leaf: leaf.astype(dtype), layer))
    return x


def _scan_layer(x: Array, segment_ids: Array, layer: dict[str, Array]) -> Array:
    """Both directions in one scan over time; the input's projections are one matrix product before it."""

    def both_ways(leaf: Array) -> Array:  # [B, T, ...] -> [T, 2, B, ...], the second one in reverse time
        return jnp.moveaxis(jnp.stack([leaf, jnp.flip(leaf, axis=1)]), 2, 0)

    ids = both_ways(segment_ids)
    starts = jnp.concatenate([jnp.ones_like(ids[:1], bool), ids[1:] != ids[:-1]])
    project = partial(jnp.einsum, "btd,edg->bteg")
    inputs = alike.by_tiles(lambda x: project(x, layer["input_kernel"]), x) + layer["bias"]
    forward, backward = jnp.moveaxis(inputs, 2, 0)
    projected = jnp.moveaxis(jnp.stack([forward, jnp.flip(backward, axis=1)]), 2, 0)

    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        projection, start = inputs
        hidden, cell = jax.tree.map(lambda state: jnp.where(start[..., None], 0, state), carry)
        gates = projection + jnp.einsum("ebh,ehg->ebg", hidden, layer["hidden_kernel"])
        enter, forget, candidate, leave = jnp.split(gates, 4, axis=-1)
        cell = nn.sigmoid(forget) * cell + nn.sigmoid(enter) * jnp.tanh(candidate)
        hidden = nn.sigmoid(leave) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zero = jnp.zeros((2, x.shape[0], layer["hidden_kernel"].shape[1]), x.dtype)
    _, states = jax.lax.scan(step, (zero, zero), (projected, starts))
    forward, backward = jnp.moveaxis(states, 0, 2)
    return jnp.concatenate([forward, jnp.flip(backward, axis=1)], axis=-1)


def _cudnn(x: Array, segment_ids: Array, layers: list[dict[str, Array]]) -> Array:
    lengths, hidden = jnp.sum(segment_ids > 0, axis=1, dtype=jnp.int32), x.shape[-1] // 2
    zero = jnp.zeros((2 * len(layers), x.shape[0], hidden), x.dtype)
    output, _, _ = rnn.lstm(
        x,
        zero,
        zero,
        pack_cudnn_weights(layers),
        lengths,
        input_size=x.shape[-1],
        hidden_size=hidden,
        num_layers=len(layers),
        dropout=0.0,
        bidirectional=True,
    )
    return output


def pack_cudnn_weights(layers: list[dict[str, Array]]) -> Float[Array, " W"]:
    """The layers' parameters as cuDNN's one vector: for each layer and direction first the matrices, transposed, then
    for each the two biases, of which ours is the first (layout: jax.experimental.rnn.unpack_lstm_weights)."""
    directions = [(layer, way) for layer in layers for way in range(2)]
    matrices = [layer[name][way].T.ravel() for layer, way in directions for name in ("input_kernel", "hidden_kernel")]
    biases = [part for layer, way in directions for part in (layer["bias"][way], jnp.zeros_like(layer["bias"][way]))]
    return jnp.concatenate(matrices + biases)
