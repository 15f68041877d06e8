"""Copying weights on the host at the speed of its memory: transposed, cast, and checked in one pass."""

from math import prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np

# A tile of a transpose stays in a second-level cache, before and after, and each of its rows is long enough on either
# side to come and go at the memory's speed. Elements in a block of a plain copy: of such a cache as well.
TILE_ROWS, TILE_BYTES, STRAIGHT = 1024, 512, 1 << 17
PAD = 32  # elements: rows of a power of two bytes apart would fall on the same few lines of the cache


def copy_finite(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Copies theirs into ours, element by element; False where ours then holds an infinity or a NaN.

    ours:   any float dtype, its last axis contiguous, such as a slice of a fresh array.
    theirs: a float array of the same shape, whose axes may lie in memory in any order, as `einops.rearrange` leaves
            them. Large transposes go in tiles through the cache, at several times the speed of NumPy's copy.
    """
    if ours.ndim == 0:
        ours, theirs = ours[None], theirs[None]
    order = sorted(range(theirs.ndim), key=lambda axis: -abs(theirs.strides[axis]))
    if order[-1] == theirs.ndim - 1 or theirs.size < STRAIGHT:
        return _copy_straight(ours, theirs)
    return _copy_transposed(*_merged(ours.transpose(order), theirs.transpose(order)))


def is_finite(values: np.ndarray) -> bool:
    """Of any float dtype. Two maxima over the bits, which have no arithmetic to overflow and take no memory."""
    size = values.dtype.itemsize
    infinity = int(np.array(np.inf, values.dtype).view(f"u{size}"))
    sign = 1 << (8 * size - 1)
    bits = values.view(f"u{size}")
    return not bits.size or bool(bits.view(f"i{size}").max() < infinity and bits.max() < sign + infinity)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.empty, at the start of a page, where JAX's CPU devices take an array as it is, without a copy.

    NumPy would ask for huge pages, which the system can be slow to find; here its own setting decides.
    """
    size = prod(shape)
    pages = mmap(-1, max(1, size * dtype.itemsize), MAP_PRIVATE | MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype, size).reshape(shape)


def _cast_finite(block: np.ndarray, source: np.ndarray) -> bool:
    """Looks at whichever has fewer bytes. What is finite stays so in a wider dtype, though not in a narrower one."""
    np.copyto(block, source, casting="unsafe")
    return is_finite(source if source.itemsize < block.itemsize else block)


def _copy_straight(ours: np.ndarray, theirs: np.ndarray) -> bool:
    step = max(1, STRAIGHT // max(1, prod(ours.shape[1:])))
    finite = True
    for start in range(0, len(ours), step):
        source, block = theirs[start : start + step], ours[start : start + step]
        finite &= _cast_finite(block, source)
    return finite


def _merged(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views with as few axes as both can have: neighbours that follow on each other in both are one."""
    for axis in reversed(range(ours.ndim - 1)):
        size = ours.shape[axis + 1]
        if all(a.strides[axis] == size * a.strides[axis + 1] for a in (ours, theirs)):
            shape = (*ours.shape[:axis], ours.shape[axis] * size, *ours.shape[axis + 2 :])
            ours, theirs = ours.reshape(shape), theirs.reshape(shape)
    return ours, theirs


def _copy_transposed(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Both with axes in the order of theirs in memory; ours has contiguous elements along an axis before the last."""
    pivot = min(range(ours.ndim), key=lambda axis: ours.strides[axis])
    ours, theirs = np.moveaxis(ours, pivot, -2), np.moveaxis(theirs, pivot, -2)
    # What moves is the narrower dtype: cast on the way in where that is ours, else on the way out.
    dtype = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    bits, width = f"u{dtype.itemsize}", TILE_BYTES // dtype.itemsize
    tile = np.empty((TILE_ROWS, width + PAD), dtype)
    turned = np.empty((width, TILE_ROWS), dtype)
    finite = True
    for outer in np.ndindex(ours.shape[:-2]):
        for row in range(0, ours.shape[-2], TILE_ROWS):
            for column in range(0, ours.shape[-1], width):
                where = (*outer, slice(row, row + TILE_ROWS), slice(column, column + width))
                rows, columns = theirs[where].shape
                a, b = tile[:rows, :columns], turned[:columns, :rows]
                np.copyto(a, theirs[where], casting="unsafe")
                finite &= is_finite(a)
                b.view(bits)[...] = a.view(bits).T
                np.copyto(ours[where].T, b, casting="unsafe")
    return finite
