"""Interval attention against dense float64 attention whose visibility is asked pair by pair (tests/references.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.models.attention import (
    Interval,
    attention,
    bidirectional,
    bidirectional_images,
    causal,
    choose_kernel,
    prefix_lm,
    sliding_window,
)
from tests import references

B, T, H = 4, 21, 8
HEADS = [(4, 4), (4, 2), (4, 1)]  # GQA ratios 1, 2, 4
WINDOW = 5
K = 4  # tokens an image


def _intervals(segment_ids: np.ndarray, prompt_mask: np.ndarray) -> dict[str, tuple[Interval, np.ndarray]]:
    """Every case on a packing: our interval, and who sees whom by the meaning of the case."""
    ids, prompt = jnp.asarray(segment_ids), jnp.asarray(prompt_mask)

    def seen(rule: str, window: int | None = None) -> np.ndarray:
        return references.visibility(segment_ids, rule, prompt_mask, window)

    visual_index = _random_images(segment_ids)
    image = np.where(visual_index < 0, -1, visual_index // K)

    def with_images(interval: Interval) -> Interval:
        return bidirectional_images(interval, ids, jnp.asarray(visual_index), K)

    def seen_with_images(rule: str, window: int | None = None) -> np.ndarray:
        return references.visibility(segment_ids, rule, prompt_mask, window, image)

    return {
        "causal": (causal(ids), seen("causal")),
        "bidirectional": (bidirectional(ids), seen("bidirectional")),
        "prefix-lm": (prefix_lm(ids, prompt), seen("prefix-lm")),
        "causal window": (sliding_window(causal(ids), WINDOW), seen("causal", WINDOW)),
        "bidirectional window": (sliding_window(bidirectional(ids), WINDOW), seen("bidirectional", WINDOW)),
        "prefix-lm window": (sliding_window(prefix_lm(ids, prompt), WINDOW), seen("prefix-lm", WINDOW)),
        "window of one": (sliding_window(causal(ids), 1), seen("causal", 1)),
        "images": (with_images(causal(ids)), seen_with_images("causal")),
        "prefix-lm images": (with_images(prefix_lm(ids, prompt)), seen_with_images("prefix-lm")),
        "images window": (sliding_window(with_images(causal(ids)), 3), seen_with_images("causal", 3)),
    }


def _random_images(segment_ids: np.ndarray) -> np.ndarray:
    """A visual index for a packing: images of K tokens here and there, some side by side, never over two segments."""
    rng, visual_index = np.random.default_rng(0), np.full(segment_ids.shape, -1, np.int32)
    for row, index in zip(segment_ids, visual_index, strict=True):
        at = images = 0
        while at + K <= len(row):
            if row[at] and np.all(row[at : at + K] == row[at]) and rng.random() < 0.7:
                index[at : at + K] = images * K + np.arange(K)
                images, at = images + 1, at + K
            else:
                at += 1
    return visual_index


def _arrays(rng: np.random.Generator, num_heads: int, num_kv_heads: int, num_keys: int = T) -> list[np.ndarray]:
    """query, key, value, and a cotangent of the output."""
    shapes = [
        (B, T, num_heads, H),
        (B, num_keys, num_kv_heads, H),
        (B, num_keys, num_kv_heads, H),
        (B, T, num_heads, H),
    ]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@jax.jit
def _forward_and_gradients(query, key, value, cotangent, interval):
    out, pull_back = jax.vjp(lambda q, k, v: attention(q, k, v, interval), query, key, value)
    return out, pull_back(cotangent)


def _assert_agree(interval: Interval, seen: np.ndarray, arrays: list[np.ndarray]) -> None:
    query, key, value, cotangent = arrays
    out, gradients = _forward_and_gradients(query, key, value, cotangent, interval)
    np.testing.assert_allclose(out, references.attention(query, key, value, seen), atol=2e-5, rtol=1e-4)
    expected = references.attention_gradients(query, key, value, seen, cotangent)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_heads, num_kv_heads", HEADS)
def test_packed_rows_in_every_case(num_heads, num_kv_heads, seed):
    rng = np.random.default_rng(seed)
    segment_ids, _, prompt_mask = references.random_packing(rng, B, T)
    arrays = _arrays(rng, num_heads, num_kv_heads)
    for interval, seen in _intervals(segment_ids, prompt_mask).values():
        assert interval.kind == "ranges"
        _assert_agree(interval, seen, arrays)


@pytest.mark.parametrize("seed", range(5))
def test_intervals_are_exactly_what_each_case_means(seed):
    """Seen pairs, not just their effect on an output, and in the smallest rows too."""
    rng = np.random.default_rng(100 + seed)
    for num_tokens in (3, T):
        segment_ids, _, prompt_mask = references.random_packing(rng, B, num_tokens)
        for name, (interval, seen) in _intervals(segment_ids, prompt_mask).items():
            j = np.arange(num_tokens)
            ours = (j >= interval.start[..., None]) & (j < interval.end[..., None])
            np.testing.assert_array_equal(ours, seen, err_msg=name)


def test_padded_rows_of_one_segment():
    """The kinds "causal" and "full" promise nothing about what padding gets, so only real positions are compared."""
    lengths = np.array([T, 1, 13, 7])
    segment_ids = (np.arange(T) < lengths[:, None]).astype(np.int32)
    arrays = _arrays(np.random.default_rng(0), 4, 2)
    arrays[-1] *= segment_ids[:, :, None, None]
    query, key, value, cotangent = arrays
    real = segment_ids > 0
    for make, kind, rule in ((causal, "causal", "causal"), (bidirectional, "full", "bidirectional")):
        interval, seen = make(jnp.asarray(segment_ids), packed=False), references.visibility(segment_ids, rule)
        assert interval.kind == kind
        out, gradients = _forward_and_gradients(*arrays, interval)
        expected = references.attention(query, key, value, seen)
        np.testing.assert_allclose(out[real], expected[real], atol=2e-5, rtol=1e-4)
        expected = references.attention_gradients(query, key, value, seen, cotangent)
        for ours, theirs in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=5e-5, rtol=1e-4)


def test_any_intervals_over_a_longer_key_set():
    rng = np.random.default_rng(1)
    num_keys = T + 9
    start, end = rng.integers(0, num_keys + 1, size=(2, B, T)).astype(np.int32)  # end <= start is an empty interval
    seen = np.array(
        [
            [[s <= j < e for j in range(num_keys)] for s, e in zip(*row, strict=True)]
            for row in zip(start, end, strict=True)
        ]
    )
    assert (~seen.any(axis=-1)).any()
    interval = Interval(jnp.asarray(start), jnp.asarray(end))
    _assert_agree(interval, seen, _arrays(rng, 4, 2, num_keys))


def test_decoding_gives_the_last_row_of_the_full_causal_attention():
    """One new query a row against a cache that is longer than what has been written to it."""
    rng = np.random.default_rng(2)
    query, key, value, _ = _arrays(rng, 4, 2)
    lengths = np.array([T, 1, 13, 7])
    full = references.attention(query, key, value, references.visibility(np.ones((B, T), np.int32), "causal"))
    for b, length in enumerate(lengths):  # what stands in the cache beyond the length must not matter
        key[b, length:], value[b, length:] = 1e4, -1e4
    new = query[np.arange(B), lengths - 1][:, None]
    interval = Interval(jnp.zeros((B, 1), jnp.int32), jnp.asarray(lengths)[:, None])
    out = attention(jnp.asarray(new), jnp.asarray(key), jnp.asarray(value), interval)
    np.testing.assert_allclose(out[:, 0], full[np.arange(B), lengths - 1], atol=2e-5, rtol=1e-4)


def test_what_is_not_plain_causal_or_full_promises_nothing():
    ids, prompt = jnp.ones((1, T), jnp.int32), jnp.ones((1, T), bool)
    plain = [causal(ids, packed=False), bidirectional(ids, packed=False)]
    assert [interval.kind for interval in plain] == ["causal", "full"]
    others = [prefix_lm(ids, prompt), *(sliding_window(interval, WINDOW) for interval in plain)]
    assert {interval.kind for interval in others} == {"ranges"}


def test_an_empty_interval_gives_zeros_and_takes_no_gradient():
    query, key, value, cotangent = _arrays(np.random.default_rng(3), 4, 2)
    interval = causal(jnp.zeros((B, T), jnp.int32))
    out, gradients = _forward_and_gradients(100 * query, 100 * key, value, cotangent, interval)
    for array in (out, *gradients):
        np.testing.assert_array_equal(array, np.zeros(array.shape))


def test_large_scores_stay_finite():
    arrays = _arrays(np.random.default_rng(4), 4, 4)
    arrays[0] *= 1e3
    segment_ids = np.ones((B, T), np.int32)
    out, gradients = _forward_and_gradients(*arrays, causal(jnp.asarray(segment_ids)))
    expected = references.attention(*arrays[:3], references.visibility(segment_ids, "causal"))
    np.testing.assert_allclose(out, expected, atol=1e-2)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("scale, softcap", [(0.7, 0.0), (0.0, 1.5), (2.0, 4.0)])
def test_scaled_and_softly_capped_scores(scale, softcap):
    rng = np.random.default_rng(7)
    segment_ids, _, prompt_mask = references.random_packing(rng, B, T)
    arrays = _arrays(rng, 4, 2)[:3]
    seen = references.visibility(segment_ids, "prefix-lm", prompt_mask)
    interval = prefix_lm(jnp.asarray(segment_ids), jnp.asarray(prompt_mask))
    out = attention(*map(jnp.asarray, arrays), interval, scale=scale, softcap=softcap)
    np.testing.assert_allclose(out, references.attention(*arrays, seen, scale, softcap), atol=2e-5)
    assert np.abs(out - references.attention(*arrays, seen)).max() > 0.05


def test_bfloat16():
    rng = np.random.default_rng(5)
    segment_ids, _, prompt_mask = references.random_packing(rng, B, T)
    half = [jnp.asarray(array, jnp.bfloat16) for array in _arrays(rng, 4, 2)]
    rounded = [np.asarray(array, np.float32) for array in half]
    for interval, seen in _intervals(segment_ids, prompt_mask).values():
        out, gradients = _forward_and_gradients(*half, interval)
        assert out.dtype == jnp.bfloat16
        expected = (
            references.attention(*rounded[:3], seen),
            *references.attention_gradients(*rounded[:3], seen, rounded[3]),
        )
        for ours, theirs in zip((out, *gradients), expected, strict=True):
            np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=0.06, rtol=0.03)


def test_bfloat16_scores_are_not_rounded_before_the_softmax():
    """Scores 256 and 256.5, where neighbouring bfloat16 numbers are 2 apart."""
    query = jnp.full((1, 1, 1, 4), 16, jnp.bfloat16)
    key = jnp.full((1, 2, 1, 4), 8, jnp.bfloat16).at[0, 1, 0, 0].set(8.0625)
    value = jnp.stack([jnp.zeros((1, 1, 4)), jnp.ones((1, 1, 4))], axis=1).astype(jnp.bfloat16)
    out = attention(query, key, value, Interval(jnp.array([[0]]), jnp.array([[2]])))
    np.testing.assert_allclose(np.asarray(out, np.float32), 1 / (1 + np.exp(-0.5)), atol=0.01)


@pytest.mark.parametrize(
    "backend, dtype, kind, head_dim, num_keys, expected",
    [
        ("gpu", jnp.bfloat16, "causal", 64, T, "cudnn"),
        ("gpu", jnp.float16, "full", 128, T, "cudnn"),
        ("gpu", jnp.bfloat16, "ranges", 64, T, "xla"),
        ("gpu", jnp.float32, "causal", 64, T, "xla"),
        ("gpu", jnp.bfloat16, "causal", 136, T, "xla"),
        ("gpu", jnp.bfloat16, "causal", 60, T, "xla"),
        ("gpu", jnp.bfloat16, "causal", 64, T + 1, "xla"),  # a cache: the key positions are not the queries'
        ("cpu", jnp.bfloat16, "causal", 64, T, "xla"),
        ("tpu", jnp.bfloat16, "causal", 64, T, "xla"),
    ],
)
def test_choose_kernel(monkeypatch, backend, dtype, kind, head_dim, num_keys, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    query, key = jnp.zeros((1, T, 2, head_dim), dtype), jnp.zeros((1, num_keys, 2, head_dim), dtype)
    bounds = jnp.zeros((1, T), jnp.int32)
    assert choose_kernel(query, key, Interval(bounds, bounds, kind)) == expected
    assert choose_kernel(query, key, Interval(bounds, bounds, kind), softcap=50.0) == "xla"


def test_cudnn_refuses_what_it_cannot_do():
    query = jnp.zeros((1, 2, 1, 8))
    with pytest.raises(ValueError, match="plain causal or full"):
        attention(query, query, query, causal(jnp.ones((1, 2), jnp.int32)), implementation="cudnn")
    with pytest.raises(ValueError, match="no softcap"):
        attention(query, query, query, causal(jnp.ones((1, 2), jnp.int32), False), softcap=1.0, implementation="cudnn")


def test_the_reference_gradients_are_its_finite_differences():
    rng = np.random.default_rng(6)
    segment_ids, _, prompt_mask = references.random_packing(rng, 2, 7)
    seen = references.visibility(segment_ids, "prefix-lm", prompt_mask)
    shapes = [(2, 7, 4, H), (2, 7, 2, H), (2, 7, 2, H), (2, 7, 4, H)]
    *inputs, cotangent = (rng.normal(size=shape) for shape in shapes)
    gradients = references.attention_gradients(*inputs, seen, cotangent)
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)

        def along(step: float, index=index, direction=direction) -> float:
            moved = [x + step * direction if n == index else x for n, x in enumerate(inputs)]
            return float((references.attention(*moved, seen) * cotangent).sum())

        np.testing.assert_allclose((along(1e-5) - along(-1e-5)) / 2e-5, (gradient * direction).sum(), rtol=1e-7)
