"""Float32 answers to the last bit: their log-probabilities, which differ long before a token does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.generation.answer import Request
from jaxfusion.generation.decode import Wanted, decode_block, decoding_params, empty_state, prefill
from jaxfusion.generation.engine import Engine
from jaxfusion.generation.sampling import GREEDY
from jaxfusion.models.alike import FEW, MANY, by_tiles, rows_alike
from tests.models.test_vlm import CASES, TRANSFORMER, make_model, random_params

NEW, BLOCK = 33, 32
# Wide enough that its products are cut in other ways when there are more rows, as those of 23 tokens are not.
VOCAB = 300
WIDE = {"width": 128, "text_embedding": {"vocab_size": VOCAB}}
MODELS = {
    "prefix, as Gemma": {"text_embedding": WIDE["text_embedding"] | {"scale": 4.0}},
    "cross-attention, a picture is one token": {
        "fusion": {"kind": "cross-attention", "num_heads": 2},
        "projector": {"kind": "linear", "pool": "mean"},
    },
    "prompt LSTM": {"lora": [{"layers": "decoder/*", "rank": 2}]},
    "prefix, 8 bits": {"fusion": "place", "decoder": TRANSFORMER},
}


@pytest.fixture(autouse=True, scope="module")
def as_users_compile():
    """With XLA's optimisations, which the other tests do without: what is fused with what moves last bits, too."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def wide(name: str):
    model = make_model(**CASES.get(name, {}) | WIDE | MODELS[name])
    return model, decoding_params(random_params(model), "int8" if name.endswith("8 bits") else "given")


def prompt(rng: np.random.Generator, model, length: int) -> Segment:
    """Of so many tokens, with an image."""
    per_image = model.config.tokens_per_image
    index = np.full(length, -1, np.int32)
    if model.config.fusion.kind == "place":
        index[1 : 1 + per_image] = np.arange(per_image)
    elif model.config.fusion.kind == "add":
        index[:] = 0
    tokens, whole = rng.integers(1, VOCAB - 1, length).astype(np.int32), np.ones(length, bool)
    images = [rng.integers(0, 256, (8, 8, 3), np.uint8)]
    return Segment(tokens, tokens, np.zeros(length, np.float32), whole, index, images)


def answers(model, params, segments: list[Segment], row_length: int, num_positions: int, slots: int = 1) -> np.ndarray:
    """[B, NEW] log-probabilities of greedy answers. slots: for images of a row."""
    slots = ImageSlots.of(model.config, slots)
    batch = pack([[segment] for segment in segments], row_length, model.config.tokens_per_image, slots, packed=False)
    number = len(segments)
    wanted = Wanted.of([GREEDY] * number, [0] * number, [NEW] * number)
    first, state = prefill(model, num_positions, (), params, jax.tree.map(jnp.asarray, batch), wanted)
    others, _ = decode_block(model, BLOCK, (), params, state)
    return np.concatenate([first.logprobs, others.logprobs], axis=1)


@pytest.mark.parametrize("name", list(MODELS)[:3])
def test_log_probabilities_are_alike_to_the_bit_in_any_batch_row_and_length(name):
    model, params = wide(name)
    rng = np.random.default_rng(0)
    segments = [prompt(rng, model, length) for length in (7, 30, 12, 70, 21, 33)]
    # Alone; and with a prompt longer than a tile of positions, in more rows than a tile has, a longer cache, and room
    # for two images.
    batches = [([1], 32, 96, 1), (rng.permutation([*range(6), 0, 1, 2, 4, 5]).tolist(), 96, 160, 2)]
    found: dict[int, np.ndarray] = {}
    for places, *sizes in batches:
        rows = answers(model, params, [segments[place] for place in places], *sizes)
        for place, row in zip(places, rows, strict=True):
            np.testing.assert_array_equal(row, found.setdefault(place, row), err_msg=f"{place} in {places}")
    assert len(found) == 6 and len(np.unique(np.stack(list(found.values())))) > 100


def test_a_product_is_the_same_in_any_number_of_rows_and_positions():
    """One that is large enough for a library to cut it in other ways, which those of small models are not."""
    rng = np.random.default_rng(2)
    x, matrix = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((9, 70, 768), (768, 768)))

    @partial(jax.jit, static_argnums=1)
    def product(x, tile):
        with rows_alike(tile):
            return by_tiles(lambda x: x @ matrix, x)

    for tile in (FEW, MANY):
        expected = product(x[:1, :1], tile)[0, 0]
        for rows, length in ((1, 2), (9, 1), (3, 70)):
            np.testing.assert_array_equal(product(x[:rows, :length], tile)[0, 0], expected)
    np.testing.assert_allclose(product(x[:3], MANY), x[:3] @ matrix, atol=1e-3)


def test_an_engine_that_reuses_parts_says_the_same_to_the_bit():
    model, params = wide("prefix, 8 bits")
    rng = np.random.default_rng(1)
    segments = [prompt(rng, model, length) for length in (70, 9, 20)]
    alone = [answers(model, params, [segment], 96, 160)[0] for segment in segments]
    engine = Engine(model, params, num_rows=9, num_positions=150, eos=(), prefix_bytes=2**20)
    for _ in range(2):  # the second time with what was kept of the first
        asked = [engine.submit(Request(segment=segment, limit=NEW)) for segment in segments]
        while engine.turn():
            pass
        for answer, expected in zip(asked, alone, strict=True):
            np.testing.assert_array_equal(np.float32(answer.logprobs), expected)
    assert engine.prefixes.hits


def test_16_bits_take_all_rows_at_once():
    """Their products are not cut, for speed."""
    text = {dtype: _decode_program(make_model(**CASES["prefix"], dtype=dtype)) for dtype in ("float32", "bfloat16")}
    assert text["float32"].count("stablehlo.while") > text["bfloat16"].count("stablehlo.while")


def _decode_program(model) -> str:
    return decode_block.lower(model, 1, (), random_params(model), empty_state(model, 2, 32)).as_text()
