"""Keys and values in fewer bits, and weights in 8: what they cost, what they save, and that rows stay apart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.generation import decode
from jaxfusion.generation.answer import Answer, Request
from jaxfusion.generation.beams import Beams, beam_search
from jaxfusion.generation.decode import decoding_params, empty_cache
from jaxfusion.generation.engine import Engine
from jaxfusion.models.int8 import dequantise, is_int8, quantise_kernel
from jaxfusion.models.kv_cache import KVCache
from jaxfusion.training.compilations import counted_compilations
from tests.generation.test_decode import continued, prompts
from tests.generation.test_prefixes import asked
from tests.models.test_vlm import make_model, random_params, random_segment

DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 40}
LIMIT, EOS = 20, (5,)
# Of log-probabilities, against exact ones. bfloat16 is off by 2**-9 of a number at most, 8 bits by 1/254 of a head's
# largest. What a layer's keys and values make of logits that differ by a nat or so is off by about as much of it; the
# bounds are some three times that.
BOUNDS = {"compute": 1e-5, "bfloat16": 0.005, "int8": 0.015}
CACHES = tuple(BOUNDS)


@pytest.fixture(scope="module")
def model():
    return make_model(decoder=DECODER)


@pytest.fixture(scope="module")
def params(model):
    return decoding_params(random_params(model))


def test_8_bits_have_a_scale_for_each_position_and_head_and_what_comes_later_changes_none():
    rng = np.random.default_rng(0)
    first, second = (jnp.float32(rng.standard_normal((2, 3, 2, 8)) * scale) for scale in (1, 100))
    cache = KVCache.empty((2, 6, 2, 8), jnp.int8)
    cache = cache.write(cache.stored(first, 2 * first), jnp.array([0, 3]))
    before = [np.asarray(part) for part in cache.read(jnp.float32)]
    cache = cache.write(cache.stored(second, second), jnp.array([3, 0]))
    after = [np.asarray(part) for part in cache.read(jnp.float32)]
    for row, (here, there) in enumerate(((slice(0, 3), slice(3, 6)), (slice(3, 6), slice(0, 3)))):
        for old, new, written in zip(before, after, (first, 2 * first), strict=True):
            np.testing.assert_array_equal(old[row, here], new[row, here])
            step = np.abs(written[row]).max(axis=-1, keepdims=True) / 127
            assert np.all(np.abs(new[row, here] - written[row]) <= step / 2 * 1.001)
        np.testing.assert_allclose(after[0][row, there], second[row], atol=100 * 5 / 127 / 2)


def test_caches_and_weights_take_the_memory_of_their_bits(model, params, monkeypatch):
    num_heads, head_dim = 2, model.config.width // 4

    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    numbers = 2 * 3 * 32 * num_heads  # keys and values, rows, positions, heads
    sizes = {dtype: size(empty_cache(model, 3, 32, dtype)) for dtype in CACHES}
    assert sizes == {
        "compute": numbers * head_dim * 4,
        "bfloat16": numbers * head_dim * 2,
        "int8": numbers * (head_dim + 4),  # and a scale
    }
    small = decoding_params(params, "int8")
    kernels = [leaf for leaf in jax.tree.leaves(small["decoder"], is_leaf=is_int8) if is_int8(leaf)]
    assert len(kernels) == 6 and size(small["decoder"]) < size(params["decoder"]) / 2
    assert jax.tree.all(jax.tree.map(np.array_equal, small["vision"], params["vision"]))
    once_more = decoding_params(small, "int8")
    assert jax.tree.all(jax.tree.map(np.array_equal, once_more, small))
    met = set()

    def at_a_time(path, leaf):
        met.add(leaf.shape)
        return quantise_kernel(path, leaf)

    monkeypatch.setattr(decode, "quantise_kernel", at_a_time)
    stacked = decoding_params(random_params(model), "int8")
    assert jax.tree.all(jax.tree.map(np.array_equal, stacked, small))
    assert met <= {leaf.shape for leaf in jax.tree.leaves(params)}  # a layer, and never the stack


@pytest.fixture(scope="module")
def drawn(model):
    """Questions about pictures, some of which share them."""
    rng = np.random.default_rng(1)
    pool = [random_segment(rng, model, "place", number) for number in (1, 2)]
    return [asked(rng, model, pool[place % 2]) for place in range(4)]


def answers_of(engine: Engine, segments: list[Segment], joins: float = 0.4) -> list[Answer]:
    """joins: how often a request comes while others are at it."""
    rng, answers = np.random.default_rng(2), []
    for segment in segments:
        answers.append(engine.submit(Request(segment=segment, limit=LIMIT)))
        if rng.random() < joins:
            engine.turn()
    while engine.turn():
        pass
    return answers


@pytest.fixture(scope="module")
def mixes(model, params, drawn):
    """By cache: each question's answer alone, as nothing was kept; the answers of a mix; how much was compiled."""
    order = np.random.default_rng(3).integers(len(drawn), size=10)
    told = {}
    for cache_dtype in CACHES:
        settings = {"num_positions": 64, "eos": EOS, "prefix_bytes": 2**20, "cache_dtype": cache_dtype}
        engine = Engine(model, params, num_rows=3, **settings)
        with counted_compilations() as count:
            before = count()
            mixed = answers_of(engine, [drawn[place] for place in order])
            compiled = count() - before
        assert engine.prefixes.hits > 0
        alone = []
        for segment in drawn:
            engine.prefixes.clear()
            alone += answers_of(engine, [segment])
        told[cache_dtype] = (alone, list(zip(order, mixed, strict=True)), compiled)
    return told


@pytest.mark.parametrize("cache_dtype", CACHES)
def test_an_answer_is_the_same_to_the_bit_alone_and_among_others_whatever_was_kept(mixes, cache_dtype):
    alone, mixed, _ = mixes[cache_dtype]
    for place, answer in mixed:
        assert (answer.tokens, answer.logprobs) == (alone[place].tokens, alone[place].logprobs)


def test_a_small_cache_needs_no_more_programs(mixes):
    exact, *small = (mixes[cache_dtype][2] for cache_dtype in CACHES)
    assert exact >= small[0] == small[1] > 0  # the first has what they share


@pytest.mark.parametrize("cache_dtype", CACHES)
def test_log_probabilities_are_close_to_exact_ones(model, params, drawn, mixes, cache_dtype):
    worst = 0.0
    for segment, answer in zip(drawn, mixes[cache_dtype][0], strict=True):
        for token in answer.tokens:
            segment = continued(segment, token, -1)
        batch = pack([[segment]], 64, model.config.tokens_per_image, ImageSlots.of(model.config, 2))
        exact = np.asarray(jax.nn.log_softmax(jaxfusion.forward(model, params, batch)[0]))
        places = np.arange(-1, len(answer.tokens) - 1) + len(segment.tokens) - len(answer.tokens)
        worst = max(worst, np.abs(exact[places, answer.tokens] - answer.logprobs).max())
    assert worst < BOUNDS[cache_dtype] and (worst > 1e-5) == (cache_dtype != "compute")  # something was rounded


def test_a_prompt_that_is_read_whole_is_answered_as_one_that_is_read_in_parts(model, params, drawn, mixes):
    """But for rounding, which in 8 bits can move a number by a whole step."""
    engine = Engine(model, params, num_rows=3, num_positions=64, eos=EOS, cache_dtype="int8")
    for whole, parts in zip(answers_of(engine, drawn), mixes["int8"][0], strict=True):
        assert whole.tokens == parts.tokens
        np.testing.assert_allclose(whole.logprobs, parts.logprobs, atol=BOUNDS["int8"])


def test_beams_read_weights_and_cache_in_8_bits(model, params):
    """As they read the same weights in floats; and rows stay apart."""
    _, batch = prompts(model)
    small = decoding_params(params, "int8")
    search = partial(beam_search, model, beams=Beams(num_beams=2), max_new_tokens=8, cache_dtype="int8")
    together = search(small, batch)
    np.testing.assert_array_equal(search(dequantise(small), batch), together)
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(search(small, jax.tree.map(lambda leaf: leaf[order], batch)), together[order])


@pytest.mark.parametrize("wrong", ["int4", "float8", ""])
def test_what_is_not_known_is_refused(model, params, wrong):
    with pytest.raises(UserError, match=f"^cache_dtype: '{wrong}' was given; use one of compute, bfloat16, int8$"):
        Engine(model, params, eos=(), cache_dtype=wrong)
    with pytest.raises(UserError, match=f"^weights: '{wrong}' was given; use one of given, int8$"):
        decoding_params(params, wrong)


@pytest.mark.parametrize("setting", ["cache_dtype", "weights"])
def test_a_wrong_setting_is_refused_by_its_name(setting):
    with pytest.raises(UserError, match=rf"generate\.{setting}: ") as error:
        from_dict(Config, {"generate": {setting: "int4"}})
    assert "int8" in str(error.value) and "\n" not in str(error.value)
