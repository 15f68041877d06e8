"""The whole model: packed rows against the samples alone, for every way of fusing, encoding and decoding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfusion
from jaxfusion.batch import Batch
from jaxfusion.config import Config, from_dict
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError
from jaxfusion.training.losses import loss_sums

VISION = {"kind": "vgg", "image_size": 8, "stage_depths": [1, 1], "stage_widths": [4, 8]}
TRANSFORMER = {"kind": "transformer", "num_layers": 2, "num_heads": 2}


def make_model(**settings):
    base = {"width": 16, "vision": VISION, "text_embedding": {"vocab_size": 23}, "decoder": TRANSFORMER}
    return jaxfusion.build(from_dict(Config, {"model": base | settings}))


def random_params(model, seed=0):
    """Parameters without the zeros that initialisation puts in gates and biases, which would hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = 0.2 * rng.standard_normal(leaf.shape)
        return jnp.asarray(noise + ("scale" in jax.tree_util.keystr(path)), leaf.dtype)

    return jax.tree_util.tree_map_with_path(
        draw, jax.eval_shape(lambda key: jaxfusion.init(model, key), jax.random.key(0))
    )


def random_segment(rng, model, fusion, num_images):
    per_image = model.config.tokens_per_image
    text_length, prompt_text = int(rng.integers(4, 9)), 2
    placed = num_images * per_image if fusion == "place" else 0
    length = placed + text_length
    visual_index = np.full(length, -1, np.int32)
    if fusion == "place":
        visual_index[1 : 1 + placed] = np.arange(placed)
    elif fusion == "add" and num_images:
        visual_index[:] = rng.integers(0, num_images * per_image, length)
    tokens = rng.integers(1, 23, length).astype(np.int32)
    return Segment(
        tokens=tokens,
        targets=np.roll(tokens, -1),
        loss_weights=rng.random(length).astype(np.float32),
        prompt_mask=np.arange(length) < placed + prompt_text,
        visual_index=visual_index,
        images=[rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(num_images)],
    )


def random_rows(rng, model, number):
    """Rows of samples with so many images, in random order."""
    rows = [[random_segment(rng, model, model.config.fusion.kind, images) for images in row] for row in number]
    if model.config.decoder.kind == "pooled-classifier":
        rows = [[segment._replace(targets=segment.targets % 5) for segment in row] for row in rows]
    return [[row[place] for place in rng.permutation(len(row))] for row in rows]


CASES = {
    "prefix": dict(fusion="place"),
    "prefix, prefix-LM": dict(fusion="place", decoder=TRANSFORMER | {"prefix_lm": True}),
    "prefix, window": dict(fusion="place", decoder=TRANSFORMER | {"windows": (3,)}),
    "prefix, grouped-query, swiglu, rms, unrolled": dict(
        fusion="place",
        decoder=TRANSFORMER | {"num_kv_heads": 1, "mlp": "swiglu", "norm": "rms", "scan_layers": False},
    ),
    "prefix, images see themselves, windows and ropes layer by layer": dict(
        fusion="place",
        decoder=TRANSFORMER
        | {
            "num_layers": 3,
            "image_attention": "bidirectional",
            "windows": (3, 0),
            "ropes": ({"theta": 100.0}, {"theta": 0.0}, {"scaling": "linear", "factor": 2.0}),
        },
    ),
    "prefix, as Gemma": dict(
        fusion="place",
        text_embedding={"vocab_size": 23, "scale": 4.0},
        decoder=TRANSFORMER
        | {
            "image_attention": "bidirectional",
            "windows": (3, 0),
            "norm": "rms-offset",
            "norm_position": "sandwich",
            "qk_norm": True,
            "mlp": "geglu",
            "query_scale": 0.3,
            "attention_softcap": 2.0,
            "logit_softcap": 5.0,
        },
    ),
    "BERT before a decoder": dict(
        text_embedding={
            "vocab_size": 23,
            "positions": "learned",
            "max_positions": 64,
            "token_types": 2,
            "norm": True,
        },
        encoder=TRANSFORMER | {"norm_position": "post"},
    ),
    "learned positions, untied": dict(
        fusion="place",
        text_embedding={"vocab_size": 23, "positions": "learned", "max_positions": 64},
        decoder=TRANSFORMER | {"tie_embeddings": False},
    ),
    "add": dict(fusion="add", projector={"kind": "linear", "pool": "mean"}),
    "cross-attention": dict(fusion={"kind": "cross-attention", "num_heads": 2}),
    "cross-attention, every second": dict(fusion={"kind": "cross-attention", "num_heads": 2, "every": 2}),
    "prompt encoder": dict(fusion="place", encoder=TRANSFORMER),
    "prompt LSTM": dict(fusion="place", encoder="bilstm"),
    "LSTM tagger": dict(fusion="add", encoder={"kind": "bilstm", "num_layers": 2}, decoder="token-classifier"),
    "encoder with cross-attention, pooled": dict(
        fusion={"kind": "cross-attention", "num_heads": 2},
        encoder=TRANSFORMER,
        decoder={"kind": "pooled-classifier", "num_classes": 5},
    ),
    "pooled, last": dict(encoder=TRANSFORMER, decoder={"kind": "pooled-classifier", "num_classes": 5, "pool": "last"}),
}


# For these, rows of one sample are also given as such, which lets kernels be chosen that know no ranges.
ALSO_UNPACKED = ("prefix", "prefix, prefix-LM", "cross-attention", "prompt encoder", "LSTM tagger")


@pytest.mark.parametrize("name", CASES)
def test_packed_rows_give_each_sample_the_logits_and_gradients_it_has_alone(name):
    """Three random packings; rows of one sample, and empty ones beside the packed, make one shape: compiled once."""
    model = make_model(**CASES[name])
    params = random_params(model)
    number = [(1, 0, 2, 0), (2, 1, 0)] if model.config.fusion.kind != "add" else [(1, 0, 1, 1), (0, 1, 1)]
    room, num_samples = max(sum(row) for row in number), sum(len(row) for row in number)
    length, per_image = 4 * 8 + room * model.config.tokens_per_image, model.config.tokens_per_image
    slots = ImageSlots.of(model.config, room)

    @jax.jit
    def run(params, batch):
        def loss(params):
            logits = jaxfusion.forward(model, params, batch)
            return loss_sums(logits, batch).loss, logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    for seed in range(3):
        rows = random_rows(np.random.default_rng(seed), model, number)
        alone = [[segment] for row in rows for segment in row]
        packed = pack(rows + [[]] * (num_samples - len(rows)), length, per_image, slots, packed=True)
        (packed_loss, packed_logits), packed_gradients = jax.device_get(run(params, packed))
        assert packed_logits.dtype == np.float32
        for is_packed in (True, False) if name in ALSO_UNPACKED else (True,):
            apart = pack(alone, length, per_image, slots, packed=is_packed)
            (loss, logits), gradients = jax.device_get(run(params, apart))
            both = packed_logits[packed.segment_ids > 0], logits[apart.segment_ids > 0]
            np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5 * np.abs(both[1]).max())
            assert packed_loss == pytest.approx(loss, rel=1e-5)
            # Softmax takes no notice of a bias on all keys, so without rotary positions its gradient is rounding alone.
            rounding = 1e-7 * np.sqrt(sum(np.sum(np.square(b)) for b in jax.tree.leaves(gradients)))
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(packed_gradients), jax.tree.leaves(gradients), strict=True
            ):
                error = np.linalg.norm(a - b)
                assert error < 1e-5 * np.linalg.norm(b) + rounding, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize("name", ["prefix", "add", "cross-attention"])
def test_the_picture_matters_to_its_own_sample_alone(name):
    model = make_model(**CASES[name])
    params = random_params(model)
    rng = np.random.default_rng(1)
    segments = [random_segment(rng, model, model.config.fusion.kind, 1) for _ in range(2)]
    first = len(segments[0].tokens)
    batch = pack([segments], first + len(segments[1].tokens), model.config.tokens_per_image)
    other = batch.replace(images=np.stack([batch.images[:, 0], 255 - batch.images[:, 1]], axis=1))
    before, after = (jaxfusion.forward(model, params, b) for b in (batch, other))
    np.testing.assert_array_equal(before[0, :first], after[0, :first])
    assert jnp.abs(before[0, first:] - after[0, first:]).max() > 1e-3


@pytest.mark.parametrize("name", ["prefix", "cross-attention"])
def test_a_text_only_sample_is_the_same_with_and_without_pictures_beside_it(name):
    model = make_model(**CASES[name])
    params = random_params(model)
    rng = np.random.default_rng(5)
    text, seeing = (random_segment(rng, model, model.config.fusion.kind, images) for images in (0, 1))
    length = max(len(text.tokens), len(seeing.tokens))
    alone = pack([[text]], length, model.config.tokens_per_image)
    beside = pack([[text], [seeing]], length, model.config.tokens_per_image)
    assert alone.images is None
    logits = [jaxfusion.forward(model, params, batch)[0, : len(text.tokens)] for batch in (alone, beside)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


FEATURES = {"kind": "features", "num_tokens": 4, "feature_width": 6}


def _with_features(tokens: int = 9, start: int = 2) -> Batch:
    """One row: an image of four visual tokens in the middle of text."""
    ids = np.arange(1, tokens + 1, dtype=np.int32)[None]
    ids[0, start : start + 4] = 0
    images = np.random.default_rng(6).normal(size=(1, 1, 4, 6)).astype(np.float32)
    return Batch.from_tokens(ids, images, image_token_id=0)


@pytest.mark.parametrize("image_attention", ["causal", "bidirectional"])
def test_an_images_first_token_sees_its_last_only_where_images_see_themselves(image_attention):
    model = make_model(vision=FEATURES, decoder=TRANSFORMER | {"image_attention": image_attention})
    params = random_params(model)
    batch = _with_features()
    other = batch.replace(images=batch.images.at[0, 0, 3].multiply(-1))
    before, after = (jaxfusion.forward(model, params, b) for b in (batch, other))
    changed = np.abs(before - after).max(axis=(0, 2)) > 1e-3
    image = 2 if image_attention == "bidirectional" else 5
    assert changed.tolist() == [place >= image for place in range(9)]


def test_the_embeddings_scale_is_of_text_alone():
    plain, scaled = (
        make_model(vision=FEATURES, text_embedding={"vocab_size": 23, "scale": scale}) for scale in (1.0, 3.0)
    )
    params = random_params(plain)
    batch = _with_features()

    def embedded(model) -> jax.Array:
        module = model.module.bind({"params": params})
        return module.encode(batch, module.see(batch))[0]

    text = np.asarray(batch.visual_index < 0)
    np.testing.assert_allclose(embedded(scaled)[text], 3 * embedded(plain)[text], rtol=1e-6)
    np.testing.assert_array_equal(embedded(scaled)[~text], embedded(plain)[~text])


def test_logits_are_softly_capped():
    free, capped = (make_model(decoder=TRANSFORMER | {"logit_softcap": cap}) for cap in (0.0, 0.5))
    params = random_params(free)
    batch = Batch.from_tokens(np.arange(12, dtype=np.int32).reshape(2, 6))
    logits = np.asarray(jaxfusion.forward(free, params, batch))
    assert np.abs(logits).max() > 1
    np.testing.assert_allclose(jaxfusion.forward(capped, params, batch), 0.5 * np.tanh(logits / 0.5), atol=1e-6)


def test_at_initialisation_cross_attention_leaves_the_language_model_untouched():
    seeing = make_model(fusion={"kind": "cross-attention", "num_heads": 2})
    params = jaxfusion.init(seeing, jax.random.key(0))
    blind = make_model(vision=None)
    text_params = {room: params[room] for room in ("text_embedding", "decoder")}
    rng = np.random.default_rng(2)
    batch = pack([[random_segment(rng, seeing, "cross-attention", 2)]], 16, seeing.config.tokens_per_image)
    with_images = jaxfusion.forward(seeing, params, batch)
    np.testing.assert_array_equal(with_images, jaxfusion.forward(blind, text_params, batch.replace(images=None)))

    # And it can learn: the gates get a gradient, so that the rest gets one as soon as they have moved.
    gradient = jax.jit(jax.grad(partial(jaxfusion.loss, seeing)))(params, batch)["fusion"]["layers"]
    assert jnp.all(gradient["attention_gate"] != 0)


def test_scanned_and_unrolled_layers_share_their_parameters():
    scanned, unrolled = (make_model(decoder=TRANSFORMER | {"scan_layers": scan}) for scan in (True, False))
    params = random_params(scanned)
    assert jax.tree.structure(params) == jax.tree.structure(jaxfusion.init(unrolled, jax.random.key(0)))
    batch = Batch.from_tokens(np.arange(12, dtype=np.int32).reshape(2, 6) % 23)
    results = [jaxfusion.forward(model, params, batch) for model in (scanned, unrolled)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_an_answer_cannot_see_its_future_through_a_prompt_encoder():
    model = make_model(encoder=TRANSFORMER, fusion="place")
    params = random_params(model)
    rng = np.random.default_rng(3)
    segment = random_segment(rng, model, "place", 1)
    changed = segment._replace(tokens=np.append(segment.tokens[:-1], (segment.tokens[-1] + 1) % 23).astype(np.int32))
    logits = [
        jaxfusion.forward(model, params, pack([[s]], len(s.tokens), model.config.tokens_per_image))
        for s in (segment, changed)
    ]
    np.testing.assert_array_equal(logits[0][:, :-1], logits[1][:, :-1])
    assert jnp.any(logits[0][:, -1] != logits[1][:, -1])


def test_dropout_is_on_only_with_a_key():
    model = make_model(decoder=TRANSFORMER | {"dropout": 0.5})
    params = random_params(model)
    batch = Batch.from_tokens(np.arange(6, dtype=np.int32).reshape(1, 6))
    forward = partial(jaxfusion.forward, model, params, batch)
    np.testing.assert_array_equal(forward(), forward())
    once, again, other = (forward(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert jnp.any(once != other)
    assert jnp.any(once != forward())


def test_a_model_that_names_the_gpus_kernel_can_be_made_anywhere():
    vit = {
        "kind": "vit",
        "image_size": 8,
        "patch_size": 4,
        "width": 16,
        "num_layers": 1,
        "num_heads": 2,
        "mlp_width": 32,
    }
    model = make_model(vision=vit, attention="cudnn", dtype="bfloat16")
    assert jaxfusion.init(model, jax.random.key(0)).keys() == {"text_embedding", "vision", "projector", "decoder"}


PERCEIVER = {"kind": "perceiver", "num_queries": 4, "num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize("settings", [dict(projector=PERCEIVER), dict(fusion="cross-attention")], ids=str)
def test_a_forced_kernel_is_in_every_attention(settings):
    model = make_model(**settings, attention="pallas")
    params = jax.eval_shape(partial(jaxfusion.init, model), jax.random.key(0))
    segment = random_segment(np.random.default_rng(0), model, model.config.fusion.kind, 1)
    batch = pack([[segment]], 16, model.config.tokens_per_image)
    program = str(jax.make_jaxpr(partial(jaxfusion.forward, model))(params, batch))
    # One in the decoder's layers, and one in the projector or in the layers between.
    assert program.count("name=flash_attention_forward") == 2


def test_bfloat16_computation_stays_near_float32_and_gives_float32_logits():
    exact, rough = make_model(), make_model(dtype="bfloat16")
    params = jaxfusion.init(exact, jax.random.key(0))
    rng = np.random.default_rng(4)
    batch = pack([[random_segment(rng, exact, "place", 1)]], 16, exact.config.tokens_per_image)
    expected, logits = jaxfusion.forward(exact, params, batch), jaxfusion.forward(rough, params, batch)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.02 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (dict(text_embedding={}), "text_embedding.vocab_size"),
        (dict(width=18, decoder=TRANSFORMER | {"num_heads": 4}), "decoder.num_heads"),
        (dict(decoder=TRANSFORMER | {"num_kv_heads": 3}), "decoder.num_kv_heads"),
        (dict(decoder=TRANSFORMER | {"num_heads": 0}), "decoder.num_heads"),
        (dict(decoder=TRANSFORMER | {"num_layers": 0}), "decoder.num_layers"),
        (dict(decoder=TRANSFORMER | {"head_dim": 3}), "decoder.head_dim"),
        (dict(decoder=TRANSFORMER | {"windows": (2,)}, attention="cudnn"), "attention"),
        (dict(decoder=TRANSFORMER | {"attention_softcap": 2.0}, attention="cudnn"), "attention"),
        (dict(decoder=TRANSFORMER | {"image_attention": "bidirectional"}, attention="cudnn"), "attention"),
        (dict(decoder=TRANSFORMER | {"image_attention": "bidirectional"}, fusion="add"), "decoder.image_attention"),
        (dict(decoder=TRANSFORMER, fusion="cross-attention", attention="cudnn"), "attention"),
        (dict(projector="perceiver", attention="cudnn"), "attention"),
        (dict(decoder=TRANSFORMER | {"windows": ()}), "decoder.windows"),
        (dict(decoder=TRANSFORMER | {"windows": (4, -1)}), "decoder.windows"),
        (dict(decoder=TRANSFORMER | {"ropes": ()}), "decoder.ropes"),
        (dict(decoder=TRANSFORMER | {"ropes": [{}, {"scaling": "yarn"}]}), r"decoder.ropes\[1\].original_positions"),
        (dict(decoder=TRANSFORMER | {"ropes": [{"factor": 0.0}]}), r"decoder.ropes\[0\]"),
        (dict(projector={"kind": "pixel-shuffle", "factor": 3}), "projector.factor"),
        (dict(projector={"kind": "pixel-shuffle", "factor": 0}), "projector.factor"),
        (dict(projector={"kind": "pool", "factor": 3}), "projector.factor"),
        (dict(projector={"kind": "perceiver", "num_heads": 3}), "projector.num_heads"),
        (dict(vision={"kind": "vit", "width": 10, "num_heads": 4}), "vision.num_heads"),
        (dict(vision={"kind": "vgg", "stage_depths": [1, 1]}), "vision.stage_widths"),
        (dict(vision=VISION | {"image_size": 3}), "vision"),
        (dict(fusion={"kind": "cross-attention", "num_heads": 3}), "fusion.num_heads"),
        (dict(width=15, encoder="bilstm", decoder="token-classifier"), "width"),
        (dict(decoder="pooled-classifier"), "decoder.num_classes"),
        (dict(fusion="cross-attention", encoder="bilstm", decoder="token-classifier"), "fusion"),
        (dict(fusion={"kind": "cross-attention", "every": 3}), "fusion.every"),
    ],
)
def test_rooms_that_do_not_fit_together_are_refused_by_name(settings, names):
    with pytest.raises(UserError, match=rf"config\.model\.{names}: "):
        make_model(**settings)
