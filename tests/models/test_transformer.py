"""Transformer layers against float64 NumPy, and the same layers run in different ways against each other."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.config.model import TransformerConfig
from jaxfusion.models.attention import Interval, bidirectional, causal, prefix_lm, sliding_window
from jaxfusion.models.transformer import MLP, Block, Interleaved, KVCache, TransformerLayers, make_norm, rotate
from tests import references

B, T, D = 3, 12, 16
CONFIG = TransformerConfig(num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=24, mlp="swiglu", norm="rms")


def _normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _packing(num_rows: int = B, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return references.random_packing(np.random.default_rng(seed), num_rows, T)


def _layers(config: TransformerConfig = CONFIG, rotary: bool = True) -> tuple[TransformerLayers, dict]:
    module = TransformerLayers(config, rotary, "auto", jnp.float32)
    one = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, D)), Interval(one, one + 1), one)
    return module, references.random_params(shapes["params"], np.random.default_rng(1))


@partial(jax.jit, static_argnums=0)
def _apply(module: TransformerLayers | Block, params: dict, x: jax.Array, *args, **kwargs) -> tuple[jax.Array, KVCache]:
    return module.apply({"params": params}, x, *args, **kwargs)


def _interval(case: str, ids: np.ndarray, prompt: np.ndarray, window: int = 3) -> Interval:
    interval = prefix_lm(jnp.asarray(ids), jnp.asarray(prompt)) if case == "prefix-lm" else causal(jnp.asarray(ids))
    return sliding_window(interval, window) if case == "window" else interval


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [10_000.0, 1e6])
def test_rotate_multiplies_by_complex_numbers(theta):
    x = _normal(2, 5, 3, 8)
    positions = np.array([[0, 1, 2, 3, 4], [0, 7, 1, 100, 900]], np.int32)
    rotated = rotate(x, jnp.asarray(positions), theta)
    np.testing.assert_allclose(rotated, references.rotate(np.asarray(x), positions, theta), atol=3e-4)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


def test_rotated_scores_depend_on_the_distance_alone():
    query, key = _normal(1, 1, 1, 8, seed=1), _normal(1, 1, 1, 8, seed=2)

    def score(query_position: int, key_position: int) -> float:
        rotated = [
            rotate(x, jnp.full((1, 1), position), 100.0)
            for x, position in ((query, query_position), (key, key_position))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    for shift in (1, 10, 200):
        np.testing.assert_allclose(score(9 + shift, 4 + shift), score(9, 4), atol=1e-3)
    assert abs(score(9, 5) - score(9, 4)) > 0.01
    assert abs(score(4, 9) - score(9, 4)) > 0.01


def test_rotate_computes_in_float32_and_keeps_the_dtype():
    x, positions = _normal(1, 3, 1, 8).astype(jnp.bfloat16), jnp.array([[0, 300, 700]])
    rotated = rotate(x, positions, 10_000.0)
    assert rotated.dtype == jnp.bfloat16
    expected = references.rotate(np.asarray(x, np.float32), np.asarray(positions), 10_000.0)
    np.testing.assert_allclose(np.asarray(rotated, np.float32), expected, atol=0.02)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 1e-4), (jnp.bfloat16, 0.03)])
def test_norms(kind, dtype, atol):
    norm = make_norm(kind, 1e-3, dtype, name="norm")
    x = (_normal(B, T, D) * 0.1 + 2).astype(dtype)
    params = references.random_params(norm.init(jax.random.key(0), x)["params"], np.random.default_rng(0))
    out = norm.apply({"params": params}, x)
    assert out.dtype == dtype
    expected = {"layer": references.layer_norm, "rms": references.rms_norm}[kind](
        references.in_float64(x), params, 1e-3
    )
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=atol)


@pytest.mark.parametrize("kind, approximate", [("gelu", True), ("gelu", False), ("swiglu", True)])
def test_mlp(kind, approximate):
    mlp = MLP(hidden_width=20, kind=kind, dtype=jnp.float32, approximate_gelu=approximate)
    x = _normal(B, T, D)
    params = references.random_params(mlp.init(jax.random.key(0), x)["params"], np.random.default_rng(0))
    expected = references.mlp(references.in_float64(x), references.in_float64(params), kind, approximate)
    np.testing.assert_allclose(mlp.apply({"params": params}, x), expected, atol=5e-5)
    if kind == "gelu":
        other = references.mlp(references.in_float64(x), references.in_float64(params), kind, not approximate)
        assert np.abs(other - expected).max() > 2e-4  # the two GELUs can be told apart here


# --- one block --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(norm="rms", mlp="swiglu", num_kv_heads=2, rope_theta=100.0),
        dict(num_kv_heads=1, head_dim=6, rope_theta=10_000.0, approximate_gelu=False, norm_eps=1e-2),
    ],
    ids=["classic", "llama", "mixed"],
)
def test_block_in_float64(settings):
    ids, positions, prompt = _packing()
    block = Block(num_heads=4, mlp_width=24, dtype=jnp.float32, **settings)
    x, interval = _normal(B, T, D), prefix_lm(jnp.asarray(ids), jnp.asarray(prompt))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, interval, jnp.asarray(positions))["params"]
    params = references.random_params(shapes, np.random.default_rng(0))
    out, cache = _apply(block, params, x, interval, jnp.asarray(positions))
    expected = references.block(
        references.in_float64(params),
        references.in_float64(x),
        references.visibility(ids, "prefix-lm", prompt),
        positions,
        norm=settings.get("norm", "layer"),
        mlp_kind=settings.get("mlp", "gelu"),
        rope_theta=settings.get("rope_theta"),
        approximate_gelu=settings.get("approximate_gelu", True),
        eps=settings.get("norm_eps", 1e-6),
    )
    np.testing.assert_allclose(out, expected, atol=2e-4)
    assert cache is None
    has_bias = settings.get("norm", "layer") == "layer"
    assert ("bias" in params["attention"]["query"]) == ("bias" in params["attention"]["out"]) == has_bias


def test_dropout_leaves_branches_out_and_never_the_stream():
    ids, _, _ = _packing()
    x, interval = _normal(B, T, D), bidirectional(jnp.asarray(ids))
    block = Block(num_heads=4, mlp_width=24, dtype=jnp.float32, dropout=0.5)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, interval)["params"]
    params = references.random_params(shapes, np.random.default_rng(0))

    @jax.jit
    def dropped(key: jax.Array) -> jax.Array:
        return block.apply({"params": params}, x, interval, deterministic=False, rngs={"dropout": key})[0]

    one, other = np.asarray(dropped(jax.random.key(0))), np.asarray(dropped(jax.random.key(1)))
    assert not np.allclose(one, other)
    np.testing.assert_allclose(np.isclose(one, x, atol=1e-6).mean(), 0.25, atol=0.06)  # both branches were dropped
    whole, without = (_apply(block.clone(dropout=rate), params, x, interval)[0] for rate in (0.5, 0.0))
    np.testing.assert_allclose(whole, without, atol=1e-6)


# --- the stack of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["causal", "prefix-lm", "window"])
def test_layers_in_float64(case):
    ids, positions, prompt = _packing(seed=2)
    module, params = _layers()
    x = _normal(B, T, D)
    out, _ = _apply(module, params, x, _interval(case, ids, prompt), jnp.asarray(positions))
    rule = "prefix-lm" if case == "prefix-lm" else "causal"
    seen = references.visibility(ids, rule, prompt, window=3 if case == "window" else None)
    expected, exact = references.in_float64(x), references.in_float64(params)
    for index in range(CONFIG.num_layers):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], exact["layers"])
        expected = references.block(
            layer, expected, seen, positions, norm="rms", mlp_kind="swiglu", rope_theta=CONFIG.rope_theta
        )
    expected = references.rms_norm(expected, exact["final_norm"], 1e-6)
    np.testing.assert_allclose(out, expected, atol=2e-4)


def test_scanned_and_unrolled_layers_agree_in_values_and_gradients_dropout_included():
    ids, positions, prompt = _packing()
    interval = _interval("prefix-lm", ids, prompt)
    x, weights = _normal(B, T, D), _normal(B, T, D, seed=7)
    scanned, params = _layers(replace(CONFIG, dropout=0.5))
    unrolled = scanned.clone(config=replace(scanned.config, scan_layers=False))

    def value_and_gradients(module: TransformerLayers) -> tuple:
        def total(params: dict, x: jax.Array) -> jax.Array:
            dropping = dict(deterministic=False, rngs={"dropout": jax.random.key(3)})
            out, _ = module.apply({"params": params}, x, interval, jnp.asarray(positions), **dropping)
            return (out * weights).sum()

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4),
        value_and_gradients(scanned),
        value_and_gradients(unrolled),
    )


@pytest.mark.parametrize("every, scan", [(1, True), (2, True), (2, False)])
def test_interleaved_layers_run_before_every_nth_layer(every, scan):
    ids, positions, _ = _packing()
    config = replace(CONFIG, num_layers=4, scan_layers=scan)
    module, params = _layers(config)
    x, args = _normal(B, T, D), (causal(jnp.asarray(ids)), jnp.asarray(positions))
    shifts = _normal(config.num_layers // every, D, seed=3)
    interleaved = Interleaved(lambda shift, x: x + shift, shifts, every)
    out, _ = jax.jit(lambda x: module.apply({"params": params}, x, *args, interleaved=interleaved))(x)
    block = Block(4, 24, jnp.float32, num_kv_heads=2, mlp="swiglu", norm="rms", rope_theta=CONFIG.rope_theta)
    for index in range(config.num_layers):
        if index % every == 0:
            x = x + shifts[index // every]
        x, _ = _apply(block, jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"]), x, *args)
    expected = references.rms_norm(references.in_float64(x), params["final_norm"], 1e-6)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("case", ["causal", "prefix-lm", "window"])
def test_packed_rows_give_what_their_samples_give_alone(case):
    ids, positions, prompt = _packing(num_rows=4, seed=4)
    places = [np.flatnonzero(row == s) + T * b for b, row in enumerate(ids) for s in range(1, row.max() + 1)]
    assert len(places) >= 6
    x = _normal(4, T, D)
    alone_x, alone_ids, alone_prompt = np.zeros((len(places), T, D), np.float32), *np.zeros((2, len(places), T), int)
    for row, place in enumerate(places):
        alone_x[row, : len(place)] = np.asarray(x).reshape(-1, D)[place]
        alone_ids[row, : len(place)] = 1
        alone_prompt[row, : len(place)] = prompt.reshape(-1)[place]
    columns = np.broadcast_to(np.arange(T), alone_ids.shape)

    module, params = _layers()
    interval = _interval(case, np.concatenate([ids, alone_ids]), np.concatenate([prompt, alone_prompt.astype(bool)]))
    both, _ = _apply(module, params, jnp.concatenate([x, alone_x]), interval, jnp.concatenate([positions, columns]))
    packed, alone = np.asarray(both[:4]).reshape(-1, D), both[4:]
    for row, place in enumerate(places):
        np.testing.assert_allclose(packed[place], alone[row, : len(place)], atol=1e-4)


# --- the cache --------------------------------------------------------------------------------------------------------


def _empty_cache(config: TransformerConfig, num_positions: int) -> KVCache:
    shape = (config.num_layers, B, num_positions, config.num_kv_heads, D // config.num_heads)
    return KVCache(jnp.full(shape, 1e3), jnp.full(shape, 1e3))  # what has not been written must not be seen


def test_cache_write_puts_each_row_at_its_own_place():
    cache = KVCache(jnp.zeros((2, 5, 1, 1)), jnp.zeros((2, 5, 1, 1), jnp.bfloat16))
    new = jnp.arange(1.0, 5.0).reshape(2, 2, 1, 1)
    cache = cache.write(new, 10 * new, jnp.array([0, 3]))
    assert cache.key[..., 0, 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]
    assert cache.value[..., 0, 0].tolist() == [[10, 20, 0, 0, 0], [0, 0, 0, 30, 40]]
    assert cache.value.dtype == jnp.bfloat16


@pytest.mark.parametrize("case, scan", [("causal", True), ("causal", False), ("prefix-lm", True), ("window", True)])
def test_prefill_and_one_token_at_a_time_give_the_full_forward_pass(case, scan):
    """Prompts of different lengths, read as one padded grid; every row goes on from its own length."""
    window, room = 3, T + 2
    lengths = np.array([4, 1, 6])
    longest, num_new = lengths.max(), T - lengths.max()
    module, params = _layers(replace(CONFIG, scan_layers=scan))
    x, columns = _normal(B, T, D), jnp.broadcast_to(jnp.arange(T), (B, T))
    ids, prompt = np.ones((B, T), np.int32), np.asarray(columns) < lengths[:, None]
    full, _ = _apply(module, params, x, _interval(case, ids, prompt, window), columns)

    prompt_ids = prompt[:, :longest].astype(np.int32)
    interval = _interval(case, prompt_ids, prompt[:, :longest], window)
    cache = _empty_cache(CONFIG, room)
    out, cache = _apply(module, params, x[:, :longest], interval, columns[:, :longest], cache=cache)
    np.testing.assert_allclose(out[prompt[:, :longest]], full[prompt], atol=1e-4)

    rows = np.arange(B)
    for index in lengths + np.arange(num_new)[:, None]:
        end = jnp.asarray(index)[:, None] + 1
        interval = Interval(jnp.maximum(end - window, 0) if case == "window" else jnp.zeros_like(end), end)
        new = x[rows, index][:, None]
        out, cache = _apply(module, params, new, interval, end - 1, cache=cache, cache_index=jnp.asarray(index))
        np.testing.assert_allclose(out[:, 0], full[rows, index], atol=1e-4)
