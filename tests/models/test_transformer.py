"""Transformer layers against float64 NumPy, and the same layers run in different ways against each other."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.config.model import RopeConfig, TransformerConfig
from jaxfusion.models.attention import Interval, bidirectional, causal, prefix_lm
from jaxfusion.models.kv_cache import KVCache
from jaxfusion.models.rope import rotation
from jaxfusion.models.transformer import MLP, Block, Interleaved, TransformerLayers, make_norm
from tests import references

B, T, D = 3, 12, 16
THETA = 100.0
NO_BIAS = dict(qkv_bias=False, out_bias=False, mlp_bias=False)
CONFIG = TransformerConfig(
    num_heads=4,
    num_kv_heads=2,
    mlp_width=24,
    mlp="swiglu",
    norm="rms",
    ropes=(RopeConfig(theta=THETA),),
    **NO_BIAS,
)


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


def _interval(case: str, ids: np.ndarray, prompt: np.ndarray) -> Interval:
    return prefix_lm(jnp.asarray(ids), jnp.asarray(prompt)) if case == "prefix-lm" else causal(jnp.asarray(ids))


def _windowed(case: str, **settings) -> TransformerConfig:
    """The model of a case: "window" has one in every layer, "mixed" a window, a rope or none layer by layer."""
    match case:
        case "window":
            settings |= dict(windows=(3,))
        case "mixed":
            none = RopeConfig(theta=0.0)
            settings |= dict(num_layers=4, windows=(3, 0), ropes=(RopeConfig(theta=THETA), RopeConfig(theta=7.0), none))
    return replace(CONFIG, **settings)


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", references.NORMS)
@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 1e-4), (jnp.bfloat16, 0.03)])
def test_norms(kind, dtype, atol):
    norm = make_norm(kind, 1e-3, dtype, name="norm")
    x = (_normal(B, T, D) * 0.1 + 2).astype(dtype)
    params = references.random_params(norm.init(jax.random.key(0), x)["params"], np.random.default_rng(0))
    out = norm.apply({"params": params}, x)
    assert out.dtype == dtype
    expected = references.NORMS[kind](references.in_float64(x), params, 1e-3)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [*references.ACTIVATIONS, *references.GATES])
def test_mlp(kind, bias):
    mlp = MLP(hidden_width=20, kind=kind, dtype=jnp.float32, use_bias=bias)
    x = _normal(B, T, D)
    params = references.random_params(mlp.init(jax.random.key(0), x)["params"], np.random.default_rng(0))
    assert all(("bias" in layer) == bias for layer in params.values())
    expected = references.mlp(references.in_float64(x), references.in_float64(params), kind)
    np.testing.assert_allclose(mlp.apply({"params": params}, x), expected, atol=5e-5)
    for other in {*references.ACTIVATIONS, *references.GATES} - {kind}:
        if (other in references.GATES) == (kind in references.GATES):  # and can be told apart here
            differs = references.mlp(references.in_float64(x), references.in_float64(params), other)
            assert np.abs(differs - expected).max() > 2e-4


# --- one block --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(norm="rms", mlp="swiglu", num_kv_heads=2, theta=100.0, **NO_BIAS),
        dict(num_kv_heads=1, head_dim=6, theta=10_000.0, mlp="gelu-exact", norm_eps=1e-2),
        dict(norm="rms", qk_norm=True, mlp="swiglu", theta=100.0, **NO_BIAS | {"qkv_bias": True}),
        dict(
            norm="rms-offset",
            norm_position="sandwich",
            qk_norm=True,
            mlp="geglu",
            theta=100.0,
            query_scale=0.2,
            attention_softcap=0.5,
            **NO_BIAS,
        ),
        dict(norm_position="post", mlp="gelu-exact", out_bias=False),
    ],
    ids=["classic", "llama", "mixed", "qwen", "gemma", "bert"],
)
def test_block_in_float64(settings):
    settings = dict(settings)
    theta = settings.pop("theta", None)
    ids, positions, prompt = _packing()
    config = TransformerConfig(num_heads=4, mlp_width=24, **settings)
    block = Block(config, jnp.float32)
    x, interval = _normal(B, T, D), prefix_lm(jnp.asarray(ids), jnp.asarray(prompt))
    turn = None if theta is None else rotation(RopeConfig(theta=theta), config.head_dim or D // 4)
    args = (interval, jnp.asarray(positions), turn)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, *args)["params"]
    params = references.random_params(shapes, np.random.default_rng(0))
    out, cache = _apply(block, params, x, *args)
    expected = references.block(
        references.in_float64(params),
        references.in_float64(x),
        references.visibility(ids, "prefix-lm", prompt),
        positions,
        norm=config.norm,
        norm_position=config.norm_position,
        mlp_kind=config.mlp,
        rope_theta=theta,
        eps=config.norm_eps,
        scale=config.query_scale,
        softcap=config.attention_softcap,
    )
    np.testing.assert_allclose(out, expected, atol=5e-4)
    assert cache is None
    biases = {"query": config.qkv_bias, "key": config.qkv_bias, "value": config.qkv_bias, "out": config.out_bias}
    assert {name: "bias" in params["attention"][name] for name in biases} == biases
    assert ("query_norm" in params["attention"]) == config.qk_norm


def test_dropout_leaves_branches_out_and_never_the_stream():
    ids, _, _ = _packing()
    x, interval = _normal(B, T, D), bidirectional(jnp.asarray(ids))
    block = Block(TransformerConfig(num_heads=4, mlp_width=24, dropout=0.5), jnp.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, interval)["params"]
    params = references.random_params(shapes, np.random.default_rng(0))

    @jax.jit
    def dropped(key: jax.Array) -> jax.Array:
        return block.apply({"params": params}, x, interval, deterministic=False, rngs={"dropout": key})[0]

    one, other = np.asarray(dropped(jax.random.key(0))), np.asarray(dropped(jax.random.key(1)))
    assert not np.allclose(one, other)
    np.testing.assert_allclose(np.isclose(one, x, atol=1e-6).mean(), 0.25, atol=0.06)  # both branches were dropped
    without_dropout = block.clone(config=replace(block.config, dropout=0.0))
    whole, without = (_apply(module, params, x, interval)[0] for module in (block, without_dropout))
    np.testing.assert_allclose(whole, without, atol=1e-6)


# --- the stack of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["causal", "prefix-lm", "window"])
def test_layers_in_float64(case):
    ids, positions, prompt = _packing(seed=2)
    module, params = _layers(_windowed(case))
    x = _normal(B, T, D)
    out, _ = _apply(module, params, x, _interval(case, ids, prompt), jnp.asarray(positions))
    rule = "prefix-lm" if case == "prefix-lm" else "causal"
    seen = references.visibility(ids, rule, prompt, window=3 if case == "window" else None)
    expected, exact = references.in_float64(x), references.in_float64(params)
    for index in range(CONFIG.num_layers):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], exact["layers"])
        expected = references.block(layer, expected, seen, positions, norm="rms", mlp_kind="swiglu", rope_theta=THETA)
    expected = references.rms_norm(expected, exact["final_norm"], 1e-6)
    np.testing.assert_allclose(out, expected, atol=2e-4)


@pytest.mark.parametrize("case", ["prefix-lm", "mixed"])
def test_scanned_and_unrolled_layers_agree_in_values_and_gradients_dropout_included(case):
    ids, positions, prompt = _packing()
    interval = _interval(case, ids, prompt)
    x, weights = _normal(B, T, D), _normal(B, T, D, seed=7)
    scanned, params = _layers(_windowed(case, dropout=0.5))
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


@pytest.mark.parametrize("scan", [True, False])
def test_windows_and_ropes_repeat_over_the_layers(scan):
    ids, positions, _ = _packing(seed=3)
    config = replace(_windowed("mixed", scan_layers=scan), num_layers=5)
    module, params = _layers(config)
    x = _normal(B, T, D)
    out, _ = _apply(module, params, x, causal(jnp.asarray(ids)), jnp.asarray(positions))
    expected, exact = references.in_float64(x), references.in_float64(params)
    for index, (window, theta) in enumerate([(3, THETA), (None, 7.0), (3, None), (None, THETA), (3, 7.0)]):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], exact["layers"])
        seen = references.visibility(ids, "causal", window=window)
        expected = references.block(layer, expected, seen, positions, norm="rms", mlp_kind="swiglu", rope_theta=theta)
    np.testing.assert_allclose(out, references.rms_norm(expected, exact["final_norm"], 1e-6), atol=2e-4)


def test_a_norm_after_each_branch_leaves_none_for_the_end():
    module, params = _layers(TransformerConfig(num_layers=2, norm_position="post"), rotary=False)
    assert set(params) == {"layers"}
    ids, positions, _ = _packing()
    x = _normal(B, T, D)
    out, _ = _apply(module, params, x, bidirectional(jnp.asarray(ids)), jnp.asarray(positions))
    expected, exact = references.in_float64(x), references.in_float64(params)
    for index in range(2):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], exact["layers"])
        expected = references.block(layer, expected, references.visibility(ids, "bidirectional"), norm_position="post")
    np.testing.assert_allclose(out, expected, atol=2e-4)


@pytest.mark.parametrize("every, scan", [(1, True), (2, True), (2, False)])
def test_interleaved_layers_run_before_every_nth_layer(every, scan):
    ids, positions, _ = _packing()
    config = replace(CONFIG, num_layers=4, scan_layers=scan)
    module, params = _layers(config)
    x, args = _normal(B, T, D), (causal(jnp.asarray(ids)), jnp.asarray(positions))
    shifts = _normal(config.num_layers // every, D, seed=3)
    interleaved = Interleaved(lambda shift, x: x + shift, shifts, every)
    out, _ = jax.jit(lambda x: module.apply({"params": params}, x, *args, interleaved=interleaved))(x)
    block, turn = Block(CONFIG, jnp.float32), rotation(RopeConfig(theta=THETA), D // CONFIG.num_heads)
    for index in range(config.num_layers):
        if index % every == 0:
            x = x + shifts[index // every]
        x, _ = _apply(block, jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"]), x, *args, turn)
    expected = references.rms_norm(references.in_float64(x), params["final_norm"], 1e-6)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("case", ["causal", "prefix-lm", "window", "mixed"])
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

    module, params = _layers(_windowed(case))
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
    cache = cache.write(cache.stored(new, 10 * new), jnp.array([0, 3]))
    assert cache.key[..., 0, 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]
    assert cache.value[..., 0, 0].tolist() == [[10, 20, 0, 0, 0], [0, 0, 0, 30, 40]]
    assert cache.value.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "case, scan",
    [("causal", True), ("causal", False), ("prefix-lm", True), ("window", True), ("mixed", True), ("mixed", False)],
)
def test_prefill_and_one_token_at_a_time_give_the_full_forward_pass(case, scan):
    """Prompts of different lengths, read as one padded grid; every row goes on from its own length."""
    lengths = np.array([4, 1, 6])
    longest, num_new = lengths.max(), T - lengths.max()
    config = _windowed(case, scan_layers=scan)
    module, params = _layers(config)
    x, columns = _normal(B, T, D), jnp.broadcast_to(jnp.arange(T), (B, T))
    ids, prompt = np.ones((B, T), np.int32), np.asarray(columns) < lengths[:, None]
    full, _ = _apply(module, params, x, _interval(case, ids, prompt), columns)

    prompt_ids = prompt[:, :longest].astype(np.int32)
    interval = _interval(case, prompt_ids, prompt[:, :longest])
    cache = _empty_cache(config, T + 2)
    out, cache = _apply(module, params, x[:, :longest], interval, columns[:, :longest], cache=cache)
    np.testing.assert_allclose(out[prompt[:, :longest]], full[prompt], atol=1e-4)

    rows = np.arange(B)
    for index in lengths + np.arange(num_new)[:, None]:
        end = jnp.asarray(index)[:, None] + 1
        interval = Interval(jnp.zeros_like(end), end)
        new = x[rows, index][:, None]
        out, cache = _apply(module, params, new, interval, end - 1, cache=cache, cache_index=jnp.asarray(index))
        np.testing.assert_allclose(out[:, 0], full[rows, index], atol=1e-4)
