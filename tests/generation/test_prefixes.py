"""Prefix reuse: the same answer whatever is found, and what is kept stays within its bounds."""

import numpy as np
import pytest

import jaxfusion
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.generation.answer import Answer, Request
from jaxfusion.generation.decode import reads_in_parts
from jaxfusion.generation.engine import Engine
from jaxfusion.generation.prefixes import PART, PrefixCache, parts
from jaxfusion.models.stack import Unstacked
from jaxfusion.training.compilations import counted_compilations
from tests.models.test_vlm import CASES, make_model, random_params, random_segment

EOS, LIMIT = (5,), 20
DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 2}


def segment_of(visual_index: list[int], num_images: int, seed: int = 0) -> Segment:
    rng, length = np.random.default_rng(seed), len(visual_index)
    tokens, images = rng.integers(1, 23, length).astype(np.int32), rng.integers(0, 256, (num_images, 2, 2, 3), np.uint8)
    whole, index = np.ones(length, bool), np.array(visual_index, np.int32)
    return Segment(tokens, np.roll(tokens, -1), whole.astype(np.float32), whole, index, list(images))


def bounds(segment: Segment, tokens_per_image: int) -> list[int]:
    return [part.start for part in parts(segment, tokens_per_image)]


def test_a_prompt_is_cut_after_each_image():
    segment = segment_of([-1, 0, 1, -1, 2, -1, 3, 4, 5, -1, -1], 3)
    cut = parts(segment, 2)
    assert [part.start for part in cut] == [0, 3, 7, 9]  # text may stand within an image
    assert [part.segment.visual_index.tolist() for part in cut] == [[-1, 0, 1], [-1, 0, -1, 1], [0, 1], [-1, -1]]
    assert [len(part.segment.images) for part in cut] == [1, 1, 1, 0]
    np.testing.assert_array_equal([part.segment.images[0] for part in cut[:3]], segment.images)
    np.testing.assert_array_equal(np.concatenate([part.segment.tokens for part in cut]), segment.tokens)
    assert [part.key is None for part in cut] == [False, False, False, True]
    assert bounds(segment_of([-1, 0, 1], 1), 2) == [0]  # an answer begins in what would be the second part
    assert bounds(segment_of([0, 2, 1, 3, -1], 2), 2) == [0, 4]  # images that are told apart nowhere else


def test_text_is_cut_where_a_part_is_full_and_no_image_is():
    text = [-1] * PART
    assert bounds(segment_of(text, 0), 0) == [0]
    assert bounds(segment_of([*text, *text, -1], 0), 0) == [0, PART, 2 * PART]
    assert bounds(segment_of([*text[2:], *range(4), *text, -1], 1), 4) == [0, PART + 2, 2 * PART + 2]


def test_keys_are_of_all_that_comes_before():
    index = [-1, 0, 1, -1, 2, 3, -1]
    keys = [part.key for part in parts(segment_of(index, 2), 2)[:2]]
    longer = segment_of([*index, -1, -1], 2)._replace(images=segment_of(index, 2).images)
    longer.tokens[: len(index)] = segment_of(index, 2).tokens
    assert [part.key for part in parts(longer, 2)[:2]] == keys

    def with_pixel(image: int) -> Segment:
        segment = segment_of(index, 2)
        segment.images[image][1, 1, 1] ^= 1
        return segment

    def with_token(place: int) -> Segment:
        segment = segment_of(index, 2)
        segment.tokens[place] ^= 1
        return segment

    same = [
        [part.key == key for part, key in zip(parts(other, 2), keys, strict=False)]
        for other in (with_pixel(0), with_pixel(1), with_token(0), with_token(3), with_token(6))
    ]
    assert same == [[False, False], [True, False], [False, False], [True, False], [True, True]]


def test_what_is_kept_is_bounded_and_the_least_recently_used_makes_room():
    one = Unstacked((np.zeros(25, np.float32),))  # 100 bytes
    cache, (a, b, c) = PrefixCache(300), (parts(segment_of([0, -1, 1, -1], 2, seed), 1) for seed in range(3))
    for part in (a[0], a[1], b[0]):
        cache.keep(part.key, one)
    assert cache.num_bytes == 300 and len(cache.leading(a)) == 2 and cache.leading(c) == []
    cache.keep(c[0].key, one)  # for which b makes room, which has not been asked for since
    assert cache.leading(b) == [] and len(cache.leading(a)) == 2
    cache.keep(b[0].key, one)
    assert cache.leading(c) == [] and len(cache.leading(a)) == 2
    cache.keep(c[0].key, one)
    cache.keep(c[1].key, one)  # now a's second makes room, before its first, without which it is worth nothing
    assert len(cache.leading(a)) == 1 and len(cache.leading(c)) == 2 and cache.num_bytes == 300
    cache.keep(a[1].key, Unstacked((np.zeros(76, np.float32),)))  # 304 bytes
    assert cache.num_bytes == 300 and len(cache.leading(a)) == 1
    assert (cache.hits, cache.misses, cache.positions) == (10, 8, 14)
    cache.clear()
    assert cache.num_bytes == 0 and cache.leading(c) == []


def test_models_that_read_a_prompt_in_both_directions_or_look_back_keep_nothing():
    left_to_right = {name for name, settings in CASES.items() if "classifier" not in str(settings)}
    left_to_right = {name for name in left_to_right if reads_in_parts(make_model(**CASES[name]))}
    assert {"prefix", "prefix, window", "prefix, as Gemma", "learned positions, untied"} <= left_to_right
    assert left_to_right.isdisjoint({"prefix, prefix-LM", "add", "cross-attention", "BERT before a decoder"})


def contexts(rng, model) -> list[Segment]:
    return [random_segment(rng, model, "place", number) for number in (1, 2, 2, 0)]


def asked(rng, model, context: Segment) -> Segment:
    """The context's pictures, or so much of its text, and another question."""
    kept = 1 + len(context.images) * model.config.tokens_per_image if context.images else len(context.tokens)
    question = rng.integers(1, 23, rng.integers(1, 9)).astype(np.int32)
    tokens = np.concatenate([context.tokens[:kept], question])
    index = np.concatenate([context.visual_index[:kept], np.full(len(question), -1, np.int32)])
    whole = np.ones(len(tokens), bool)
    return Segment(tokens, np.roll(tokens, -1), whole.astype(np.float32), whole, index, context.images)


def alone(model, params, segment: Segment) -> list[int]:
    batch = pack([[segment]], 44, model.config.tokens_per_image, ImageSlots.of(model.config, 2), packed=False)
    tokens = jaxfusion.generate_tokens(model, params, batch, max_new_tokens=LIMIT, eos_token_id=EOS)[0].tolist()
    return tokens[: tokens.index(EOS[0]) + 1] if EOS[0] in tokens else tokens


def run(engine: Engine) -> None:
    while engine.turn():
        pass


@pytest.mark.parametrize(
    "name", ["prefix, images see themselves, windows and ropes layer by layer", "learned positions, untied"]
)
def test_an_answer_is_the_same_alone_among_others_in_any_row_and_after_reuse(name, monkeypatch):
    """Also where text is cut often, and where so little is kept that parts come and go."""
    monkeypatch.setattr("jaxfusion.generation.prefixes.PART", 4)
    model = make_model(**CASES[name])
    settings = {"num_rows": 3, "num_positions": 64, "eos": EOS}
    params, rng = random_params(model), np.random.default_rng(0)
    pool = contexts(rng, model)
    drawn = [asked(rng, model, pool[rng.integers(len(pool))]) for _ in range(12)]
    segments = [drawn[place] for place in rng.integers(len(drawn), size=24)]
    expected = {id(segment): alone(model, params, segment) for segment in drawn}
    kept = []
    for prefix_bytes in (2**20, 40_000):
        engine, answers = Engine(model, params, prefix_bytes=prefix_bytes, **settings), list[Answer]()
        for segment in segments:
            answers.append(engine.submit(Request(segment=segment, limit=LIMIT)))
            if rng.random() < 0.4:
                engine.turn()
        run(engine)
        assert engine.prefixes.num_bytes <= prefix_bytes
        kept.append((engine.prefixes, [answer.logprobs[0] for answer in answers]))
        for segment, answer in zip(segments, answers, strict=True):
            assert answer.tokens == expected[id(segment)]
    (all_kept, first), (few_kept, second) = kept
    assert all_kept.hits > few_kept.hits > 0 and few_kept.misses > all_kept.misses
    assert first == second  # whatever was found: float32, to the bit

    for segment in drawn[:4]:
        engine.prefixes.clear()
        before, found = engine.prefixes.hits, []
        for _ in range(2):
            found.append(engine.submit(Request(segment=segment, limit=LIMIT)))
            run(engine)
        assert engine.prefixes.hits > before
        assert found[0].tokens == found[1].tokens and found[0].logprobs == found[1].logprobs


def test_nothing_is_compiled_for_what_is_found_in_known_shapes_and_a_failure_lets_it_go(monkeypatch):
    model, rng = make_model(decoder=DECODER), np.random.default_rng(1)
    engine = Engine(model, random_params(model), num_rows=1, num_positions=64, eos=EOS, prefix_bytes=2**20)

    def ask(context: Segment) -> Answer:
        answer = engine.submit(Request(segment=asked(rng, model, context), limit=3))
        run(engine)
        return answer

    first, second = (random_segment(rng, model, "place", 1) for _ in range(2))
    ask(first), ask(first)
    with counted_compilations() as count:
        before = count()
        assert all(ask(context).end for context in (first, second, second, first))
        assert count() == before
    assert (engine.prefixes.hits, engine.prefixes.misses) == (4, 2) and engine.prefixes.num_bytes > 0

    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr("jaxfusion.generation.engine.begin", fails)
    with pytest.raises(MemoryError):
        ask(first)
    assert engine.prefixes.num_bytes == 0
    with pytest.raises(UserError, match="prefix_bytes: -1"):
        Engine(model, {}, prefix_bytes=-1)
