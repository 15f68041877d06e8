"""Augmentations: what each does, by the pictures themselves; and that training draws them by the visit alone."""

import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from jaxfusion.config import Config, from_dict
from jaxfusion.data.augment import OPERATIONS, parse
from jaxfusion.data.dataset import check_augment, open_dataset
from jaxfusion.data.images import encode_png, read_image, resize_image
from jaxfusion.data.loader import Reader, train_iterator
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import held_out_samples
from jaxfusion.text.trained import TrainedTokenizer

NOISE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
ALL = "crop(0.5)|flip|colour(0.3)|grey|rotate(20)|shift(0.1)|erase(0.2)"


def drawn(text, seed=0):
    return parse(text).draw(np.random.default_rng(seed))


def changed(text, seed=0, pixels=NOISE):
    return drawn(text, seed).of_pixels(pixels)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_strength_that_changes_nothing_changes_nothing(name):
    for seed in range(5):
        np.testing.assert_array_equal(changed(f"{name}({OPERATIONS[name].same})", seed), NOISE)


def test_a_draw_depends_on_its_seed_alone_and_holds_for_all_pictures():
    for seed in range(5):
        draw = drawn(ALL, seed)
        np.testing.assert_array_equal(draw.of_pixels(NOISE), changed(ALL, seed))
        np.testing.assert_array_equal(draw.of_pixels(NOISE), draw.of_pixels(NOISE))
    assert len({changed(ALL, seed).tobytes() for seed in range(5)}) == 5


def test_crops_are_of_the_area_and_nearly_the_proportions_and_lie_anywhere():
    rows, columns = np.mgrid[:300, :400]
    places = np.stack([rows // 2, columns // 2, 0 * rows], -1).astype(np.uint8)
    found = [changed("crop(0.25)", seed, places) for seed in range(300)]
    areas = np.array([crop.shape[0] * crop.shape[1] / (300 * 400) for crop in found])
    stretch = np.array([crop.shape[1] / crop.shape[0] / (400 / 300) for crop in found])
    assert 0.24 < areas.min() < 0.3 and 0.9 < areas.max() <= 1 and abs(areas.mean() - 0.625) < 0.05
    assert 0.74 < stretch.min() < 0.85 and 1.2 < stretch.max() < 1.35
    for crop in found:  # what is left is one piece of the picture
        np.testing.assert_array_equal(crop[..., 0] - crop[0, 0, 0], crop[:, :1, 0] - crop[0, 0, 0] + 0 * crop[..., 0])
    middles = np.array([crop[..., :2].astype(float).mean((0, 1)) for crop in found])
    assert np.all(middles.std(0) > 10) and np.allclose(middles.mean(0), (75, 100), atol=6)


def test_half_of_the_pictures_are_flipped():
    found = [changed("flip", seed) for seed in range(200)]
    flipped = [np.array_equal(one, NOISE[:, ::-1]) for one in found]
    assert 70 < sum(flipped) < 130
    assert all(np.array_equal(one, NOISE) for one, is_flipped in zip(found, flipped, strict=True) if not is_flipped)
    np.testing.assert_array_equal(changed("flip(1)"), NOISE[:, ::-1])


def test_colours_keep_within_their_strength():
    """Of a grey picture contrast and saturation change nothing, and brightness is a factor."""
    grey = np.full((4, 4, 3), 100, np.uint8)
    levels = np.array([changed("colour(0.2)", seed, grey)[0, 0] for seed in range(200)])
    assert np.all(levels == levels[:, :1])
    assert 79 <= levels.min() < 84 and 116 < levels.max() <= 121
    red = np.zeros((4, 4, 3), np.uint8) + np.uint8([200, 50, 50])
    spread = [np.ptp(changed("colour(0.2)", seed, red)[0, 0].astype(int)) for seed in range(200)]
    assert min(spread) < 125 and max(spread) > 175


def test_grey_has_no_colour():
    expected = np.asarray(Image.fromarray(NOISE).convert("L"))
    np.testing.assert_array_equal(changed("grey(1)"), np.repeat(expected[..., None], 3, -1))
    assert 10 < sum(not np.array_equal(changed("grey", seed), NOISE) for seed in range(200)) < 80


def test_shifts_and_rotations_keep_the_size_and_what_comes_in_is_the_mean():
    mean = NOISE.mean((0, 1))
    for seed in range(20):
        shifted = changed("shift(0.25)", seed).astype(int)
        assert shifted.shape == NOISE.shape
        beyond = np.all(np.abs(shifted - mean) <= 1, axis=-1)
        rows, columns = np.flatnonzero(~beyond.all(1)), np.flatnonzero(~beyond.all(0))
        assert len(rows) >= 18 and len(columns) >= 27
        down, right = rows[0] or len(rows) - 24, columns[0] or len(columns) - 36
        theirs = NOISE[max(-down, 0) : 24 - max(down, 0), max(-right, 0) : 36 - max(right, 0)]
        np.testing.assert_array_equal(shifted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], theirs)
        rotated = changed("rotate(30)", seed)
        assert rotated.shape == NOISE.shape and not np.array_equal(rotated, NOISE)


def test_what_is_erased_is_a_rectangle_of_at_most_that_share():
    shares = []
    for seed in range(200):
        gone = np.any(
            changed("erase(0.25)", seed, np.pad(NOISE, ((8, 8), (8, 8), (0, 0))))
            != np.pad(NOISE, ((8, 8), (8, 8), (0, 0))),
            axis=-1,
        )
        rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
        if len(rows):
            inside = gone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert inside.mean() > 0.95  # noise may have the mean's value by chance
            shares.append(inside.size / gone.size)
    assert 0.2 < max(shares) < 0.27 and abs(np.mean(shares) - 0.125) < 0.03


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("crop(0.8)|flop", "there is no operation 'flop'; did you mean 'flip'?"),
        ("color(0.1)", "there is no operation 'color'; did you mean 'colour'?"),
        ("zoom", "there is no operation 'zoom'; choose from crop, flip"),
        ("crop", "crop needs a number from 0.01 to 1, where 1 changes nothing, as in crop(0.9)"),
        ("crop(0)", "crop(0): it takes a number from 0.01 to 1"),
        ("colour(a)", "colour(a): it takes a number from 0 to 1, where 0 changes nothing; correct it"),
        ("colour(nan)", "colour(nan): it takes"),
        ("erase(0.1, 0.2)", "erase(0.1, 0.2): it takes"),
        ("flip||grey", "'' is no operation; write them as in"),
        ("flip(0.5", "'flip(0.5' is no operation"),
    ],
)
def test_what_is_no_augmentation_is_named(text, told):
    with pytest.raises(UserError, match=r"^config\.data\.augment: ") as error:
        parse(text)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_crop_of_a_scaled_jpeg_has_as_many_pixels_as_are_asked_for():
    buffer = io.BytesIO()
    Image.fromarray(NOISE).resize((800, 800)).save(buffer, "JPEG")
    draw = next(d for d in (drawn("crop(0.1)", seed) for seed in range(99)) if d.least < 0.4)
    sizes = []
    read_image(buffer.getvalue(), int(100 / draw.least), 100, lambda image: sizes.append(draw(image).size) or image)
    assert min(sizes[0]) >= 99 and max(sizes[0]) < 400


# --- in training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(small_data):
    vision = {"kind": "vgg", "image_size": 24, "stage_depths": [1], "stage_widths": [4]}
    settings = {
        "model": {"vision": vision, "projector": {"kind": "linear", "pool": "mean"}},
        "data": {"data_dir": str(small_data), "row_length": 160, "images_per_row": 1, "augment": ALL},
    }
    config = from_dict(Config, settings)
    dataset = open_dataset(config.data)
    return dataset, Reader(config.data, config.model, dataset.labels), TrainedTokenizer.train(["x"], 262)


def batches(parts, number=3, state=None, **settings):
    dataset, reader, tokenizer = parts
    reader = replace(reader, data=replace(reader.data, **settings))
    made = train_iterator(dataset.train, reader, tokenizer, batch_size=4, seed=0)
    if state:
        made.set_state(json.loads(state))
    found = [next(made) for _ in range(number)]
    state = json.dumps(made.get_state())
    if settings.get("num_workers"):
        made.close()
    return found, state


def same(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


def test_training_pictures_change_and_a_run_goes_on_as_it_would_have(parts):
    (first, second, third), _ = batches(parts)
    _, state = batches(parts, 1)
    assert same(batches(parts, 2, state)[0], [second, third])
    assert same(batches(parts, 1, num_workers=1)[0], [first])
    plain = batches(parts, 1, augment="")[0][0]
    assert np.mean(plain.images != first.images) > 0.5
    assert not same(batches(parts, 60)[0][50:51], [first])  # a later visit draws anew


def test_evaluation_sees_pictures_as_they_are(parts):
    dataset, reader, _ = parts
    plain = replace(reader, data=replace(reader.data, augment=""))
    for ours, theirs in zip(*(held_out_samples(dataset.test, r, 5) for r in (reader, plain)), strict=True):
        np.testing.assert_array_equal(ours.messages[0].images[0].value, theirs.messages[0].images[0].value)


def test_all_frames_of_a_video_change_alike(parts):
    _, reader, _ = parts
    frames = [NOISE, NOISE // 2, NOISE]
    settings = {"modalities": ("image", "text"), "frame_times": False}
    reader = replace(reader, data=replace(reader.data, **settings), drawn=drawn("crop(0.3)|rotate(30)", 3))
    for video in (frames, [encode_png(frame) for frame in frames]):
        (sample,) = reader.samples({"id": 1, "video": video, "caption_en": "x", "origin": "x"})
        first, second, third = (image.value for image in sample.messages[0].images)
        np.testing.assert_array_equal(first, third)
        np.testing.assert_array_equal(first, resize_image(reader.drawn.of_pixels(NOISE), 24))
        assert np.abs(first // 2 - second.astype(int)).max() <= 2


def test_where_nothing_could_be_done_with_them_they_are_refused():
    def refused(match, **settings):
        config = from_dict(Config, {"data": {"augment": "flip"} | settings.pop("data", {}), "model": settings})
        with pytest.raises(UserError, match=rf"^config\.data\.augment: .*{match}"):
            check_augment(config.data, config.model)

    refused("prepared pictures are the same", data={"prepared": "somewhere"})
    refused("sees no pixels", data={"modalities": ["text"]})
    refused("vision room: lookup", vision="lookup")
    refused("vision room: none", vision=None)
    refused("'flep'", data={"augment": "flep"})
