"""The Pallas kernels, in their interpreter, against dense float64 attention (tests/references.py), gradients too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxfusion.models import flash_attention
from jaxfusion.models.attention import (
    Interval,
    attention,
    bidirectional,
    bidirectional_images,
    causal,
    prefix_lm,
    sliding_window,
)
from tests import references

# Three blocks of queries and of keys, the last one short; a head that is no power of two; four heads a group.
B, T, N, G, H = 2, 150, 8, 2, 12


def _segments(rng: np.random.Generator) -> np.ndarray:
    """Segments over block borders, and padding of more than a block in the second row."""
    cuts = [np.sort(rng.choice(np.arange(1, T), 3, replace=False)) for _ in range(B)]
    ids = np.stack([1 + np.searchsorted(cut, np.arange(T), side="right") for cut in cuts])
    ids[1, 10:] = 0
    return ids


def _intervals(rng: np.random.Generator) -> list[Interval]:
    ids = _segments(rng)
    position = np.arange(T) - np.array([[np.argmax(row == s) for s in row] for row in ids])
    prompt, visual = position < 7, np.where((position < 6) & (ids > 0), position + 6 * ids, -1)
    ids, prompt, visual = jnp.asarray(ids), jnp.asarray(prompt), jnp.asarray(visual)
    anything = rng.integers(0, T + 1, size=(2, B, T))
    return [
        causal(ids),
        bidirectional(ids),
        prefix_lm(ids, prompt),
        sliding_window(causal(ids), 9),
        sliding_window(prefix_lm(ids, prompt), 3),
        bidirectional_images(causal(ids), ids, visual, 3),
        Interval(*(jnp.asarray(x, jnp.int32) for x in anything)),  # half of them empty
    ]


def _arrays(rng: np.random.Generator, length: int = T) -> list[np.ndarray]:
    """query, key, value, and a cotangent of the output."""
    return [rng.normal(size=(B, length, n, H)).astype(np.float32) for n in (N, G, G, N)]


@pytest.mark.parametrize(("softcap", "programs"), [(0.0, 24), (2.0, 1)], ids=["half a group", "a group, softcap"])
def test_output_and_gradients_in_every_case(monkeypatch, softcap, programs):
    monkeypatch.setattr(flash_attention, "PROGRAMS", programs)
    rng = np.random.default_rng(0)
    *inputs, cotangent = _arrays(rng)

    @jax.jit
    def run(start, end):
        def attend(*inputs):
            return attention(*inputs, Interval(start, end), scale=0.4, softcap=softcap, implementation="pallas")

        out, pull_back = jax.vjp(attend, *inputs)
        return out, *pull_back(jnp.asarray(cotangent))

    for interval in _intervals(rng):
        start, end = np.asarray(interval.start), np.asarray(interval.end)
        key = np.arange(T)
        seen = (key >= start[..., None]) & (key < end[..., None])
        expected = (
            references.attention(*inputs, seen, 0.4, softcap),
            *references.attention_gradients(*inputs, seen, cotangent, 0.4, softcap),
        )
        for ours, theirs in zip(run(start, end), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4)


def test_bfloat16_products_and_float32_sums():
    rng = np.random.default_rng(1)
    query, key, value, _ = (jnp.asarray(x, jnp.bfloat16) for x in _arrays(rng, 32))
    interval = causal(jnp.ones((B, 32), jnp.int32))
    out = attention(query, key, value, interval, implementation="pallas")
    assert out.dtype == jnp.bfloat16
    rounded = (np.asarray(x, np.float32) for x in (query, key, value))
    expected = references.attention(*rounded, references.visibility(np.ones((B, 32)), "causal"))
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.03)


def test_on_a_mesh_each_device_has_its_own_rows():
    """XLA cannot look into the kernel: without help it would gather every row on every device. The numbers of eight
    devices are compared in tests/test_parallel.py."""
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    query, key, value, _ = map(jnp.asarray, _arrays(np.random.default_rng(2), 32))
    interval = causal(jnp.ones((B, 32), jnp.int32))

    def program() -> str:
        return str(jax.make_jaxpr(partial(attention, implementation="pallas"))(query, key, value, interval))

    with jax.sharding.use_abstract_mesh(mesh):
        shared = program()
    assert "shard_map" in shared and f"f32[{B // 2},32,{N},{H}]" in shared
    assert "shard_map" not in program()
