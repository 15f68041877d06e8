"""One parameter while it is being filled: its shards, on the devices where they stay.

A CPU device's memory is the host's, so there a shard is a NumPy array that is filled in place and handed over without
a copy. To an accelerator the host passes one layer after the other, laid out as in the file, and the device turns its
axes and puts it into the shard.
"""

from collections.abc import Iterator
from functools import partial
from threading import Lock
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxfusion.pretrained.blocks import copy_finite, empty, is_finite

Index = tuple[tuple[int, int], ...]  # start and stop along each axis of the whole leaf


class NotFiniteError(ValueError):
    """An infinity or a NaN among the weights; the message is the dtype in which they are that."""


class Leaf(Protocol):
    """Made from the leaf's shape, dtype and sharding; without a sharding it is on the default device."""

    shape: tuple[int, ...]

    def __init__(self, shape: jax.ShapeDtypeStruct) -> None: ...

    def put(self, layer: int | None, value: np.ndarray) -> None:
        """Copies one layer, or all of a leaf that has none, to the shards that hold some of it.

        Several threads may do so at once. Raises NotFiniteError.
        """

    def finish(self) -> jax.Array:
        """The leaf, when all of it is there."""


def make_leaf(shape: jax.ShapeDtypeStruct) -> Leaf:
    devices = shape.sharding.device_set if shape.sharding else jnp.zeros(()).devices()
    return (HostLeaf if all(device.platform == "cpu" for device in devices) else DeviceLeaf)(shape)


class HostLeaf(Leaf):
    """On CPU devices, of which those that hold the same part share its memory."""

    def __init__(self, shape: jax.ShapeDtypeStruct) -> None:
        self.shape, self.sharding = shape.shape, shape.sharding
        self.indices = _indices(shape)
        self.shards = {index: empty(_size(index), np.dtype(shape.dtype)) for index in self.indices.values()}

    def put(self, layer: int | None, value: np.ndarray) -> None:
        for index, (where, what) in _parts(self.shards, layer):
            target = self.shards[index][*where, ...]
            if not copy_finite(target, value[*what, ...]):
                raise NotFiniteError(target.dtype)

    def finish(self) -> jax.Array:
        arrays = [jax.device_put(self.shards[index], device) for device, index in self.indices.items()]
        return _assemble(self.shape, self.sharding, arrays)


class DeviceLeaf(Leaf):
    """On any devices, each shard updated in place."""

    def __init__(self, shape: jax.ShapeDtypeStruct) -> None:
        self.shape, self.sharding = shape.shape, shape.sharding
        self.indices = _indices(shape)
        self.shards = {
            device: jnp.zeros(_size(index), shape.dtype, device=device) for device, index in self.indices.items()
        }
        self.lock = Lock()  # an update takes the place of the array that it changes

    def put(self, layer: int | None, value: np.ndarray) -> None:
        for index, (where, what) in _parts(set(self.indices.values()), layer):
            flat, axes = _as_in_memory(value[*what, ...])
            if not is_finite(flat):
                raise NotFiniteError(flat.dtype)
            for device in [device for device, its in self.indices.items() if its == index]:
                given = jax.device_put(flat, device)
                with self.lock:
                    self.shards[device] = _update(self.shards[device], given, where, axes)
                given.block_until_ready()  # before the host's copy goes

    def finish(self) -> jax.Array:
        return _assemble(self.shape, self.sharding, list(self.shards.values()))


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _update(shard: jax.Array, value: jax.Array, where: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    return shard.at[*where, ...].set(value.transpose(axes).astype(shard.dtype))


def _indices(shape: jax.ShapeDtypeStruct) -> dict[jax.Device | None, Index]:
    """The part of the leaf that each of this process's devices holds; None is the default device."""
    if shape.sharding is None:
        return {None: tuple((0, size) for size in shape.shape)}
    found = shape.sharding.addressable_devices_indices_map(shape.shape)
    return {
        device: tuple(part.indices(size)[:2] for part, size in zip(index, shape.shape, strict=True))
        for device, index in found.items()
    }


def _parts(indices: set[Index], layer: int | None) -> Iterator[tuple[Index, tuple[tuple[int, ...], tuple[slice, ...]]]]:
    """Of each shard that holds some of the layer: where in the shard, and what of the layer."""
    for index in indices:
        if layer is None:
            yield index, ((), tuple(slice(*part) for part in index))
        elif index[0][0] <= layer < index[0][1]:
            yield index, ((layer - index[0][0],), tuple(slice(*part) for part in index[1:]))


def _as_in_memory(value: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The value with its axes as they lie in memory, and the axes to transpose it back with."""
    order = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
    return np.asarray(value.transpose(order), order="C"), tuple(order.index(axis) for axis in range(value.ndim))


def _size(index: Index) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in index)


def _assemble(shape: tuple[int, ...], sharding: jax.sharding.Sharding | None, arrays: list[jax.Array]) -> jax.Array:
    return arrays[0] if sharding is None else jax.make_array_from_single_device_arrays(shape, sharding, arrays)
