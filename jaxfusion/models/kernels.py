"""Which axes of a linear layer's parameter are its inputs, and which its outputs, as its path tells."""

from typing import NamedTuple

# Layers of heads: the width to [heads, head_dim], and back.
TO_HEADS, FROM_HEADS = ("query", "key", "value"), ("out",)

# Matrices that are no linear layer's: the output room's and the classifiers' own, see `decoder.Output`.
OUTPUTS = ("output", "decoder")


class MatrixAxes(NamedTuple):
    """Negative, in order; axes before them, such as that of a stack's layers, count matrices."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def matrix_axes(path: str) -> MatrixAxes | None:
    """Of a kernel or an adapter's leaf at a path such as "decoder/layers/attention/query/kernel".

    None for whatever is not multiplied as a linear layer's matrix: embeddings, norms, biases, convolutions, recurrent
    layers, and the matrix that gives logits.
    """
    layer, _, leaf = path.rpartition("/")
    name = layer.rpartition("/")[2]
    if leaf not in ("kernel", "lora_a", "lora_b") or name == "conv" or layer in OUTPUTS:
        return None
    num_inputs = 2 if name in FROM_HEADS and leaf != "lora_b" else 1
    num_outputs = 2 if name in TO_HEADS and leaf != "lora_a" else 1
    axes = range(-num_inputs - num_outputs, 0)
    return MatrixAxes(tuple(axes[:num_inputs]), tuple(axes[num_inputs:]))
