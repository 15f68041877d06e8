"""Copying weights on the host at the speed of its memory: transposed, cast, and checked in one pass."""

import ctypes
from math import prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap

import numpy as np

# Rows in the buffer of a transpose: each column of it is then whole cache lines of the output, and the lines that
# it is gathered from stay in the first-level cache. Elements in a block of a plain copy: of a second-level cache.
TRANSPOSED, STRAIGHT = 128, 1 << 17
LIBC = ctypes.CDLL(None)
POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, which `mmap` has no name for
PAD = 32  # elements: rows of a power of two bytes apart would fall on the same few lines of the cache


def copy_finite(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Copies theirs into ours, element by element; False where ours then holds an infinity or a NaN.

    ours:   any float dtype, its last axis contiguous, such as a slice of a fresh array.
    theirs: a float array of the same shape, whose axes may lie in memory in any order, as `einops.rearrange` leaves
            them. Large transposes go in blocks through a small buffer, at several times the speed of NumPy's copy.
    """
    if ours.ndim == 0:
        ours, theirs = ours[None], theirs[None]
    order = sorted(range(theirs.ndim), key=lambda axis: -abs(theirs.strides[axis]))
    if order[-1] == theirs.ndim - 1 or theirs.size < STRAIGHT:
        return _copy_straight(ours, theirs)
    ours, theirs = ours.transpose(order), theirs.transpose(order)
    return _copy_transposed(ours, theirs, order.index(ours.ndim - 1))


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


def fault_in(values: np.ndarray) -> None:
    """Has the system lay all pages of a contiguous array's memory out at once, for a third less of its time than one
    by one as they are first written. Where it cannot (before Linux 5.14), that is what happens."""
    start = values.ctypes.data // PAGESIZE * PAGESIZE
    size = values.ctypes.data + values.nbytes - start
    LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), POPULATE_WRITE)


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


def _copy_transposed(ours: np.ndarray, theirs: np.ndarray, pivot: int) -> bool:
    """Both with axes in the order of theirs in memory; ours has contiguous elements along axis `pivot`."""
    bits = f"u{ours.dtype.itemsize}"
    row = theirs.shape[pivot + 1 :]
    buffer = np.empty((TRANSPOSED, prod(row) + PAD), ours.dtype)[:, : prod(row)].reshape(TRANSPOSED, *row)
    finite = True
    for outer in np.ndindex(theirs.shape[:pivot]):
        for start in range(0, theirs.shape[pivot], TRANSPOSED):
            source = theirs[outer][start : start + TRANSPOSED]
            block = buffer[: len(source)]
            finite &= _cast_finite(block, source)
            ours[outer][start : start + TRANSPOSED].view(bits)[...] = block.view(bits)
    return finite
