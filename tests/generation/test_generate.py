"""Text in, text out: prompts and images in every form that people give them."""

import jax
import numpy as np
import pytest
from PIL import Image

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.data.messages import Image as ImagePart
from jaxfusion.data.messages import answer, ask
from jaxfusion.errors import UserError
from jaxfusion.generation.classify import classify
from jaxfusion.generation.generate import answer_messages
from jaxfusion.text.trained import TrainedTokenizer

VISION = {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]}


def make(decoder, **settings):
    text = {"vocab_size": 262, "max_positions": 64}
    model = {"width": 16, "vision": VISION, "text_embedding": text, "decoder": decoder} | settings
    built = jaxfusion.build(from_dict(Config, {"model": model}), TrainedTokenizer.train(["x"], 262))
    return built, jaxfusion.init(built, jax.random.key(0))


@pytest.fixture(scope="module")
def generator():
    return make({"kind": "transformer", "num_layers": 1, "num_heads": 2})


def test_an_image_is_the_same_as_a_path_as_bytes_and_as_an_array(generator, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path / "scene.png"
    Image.fromarray(pixels).save(path)
    forms = [path, str(path), path.read_bytes(), pixels, [pixels]]
    answers = jaxfusion.generate(*generator, ["what?"] * len(forms), forms, max_new_tokens=5)
    assert len(set(answers)) == 1


def test_prompts_with_and_without_images_share_a_call(generator):
    pixels = np.full((8, 8, 3), 200, np.uint8)
    both = jaxfusion.generate(*generator, ["a", "b"], [pixels, None], max_new_tokens=5)
    alone = [jaxfusion.generate(*generator, [p], [i], max_new_tokens=5)[0] for p, i in (("a", pixels), ("b", None))]
    assert both == alone
    assert jaxfusion.generate(*generator, [], max_new_tokens=5) == []


def test_bad_calls_are_named(generator):
    with pytest.raises(UserError, match="images: 1 entries for 2 prompts"):
        jaxfusion.generate(*generator, ["a", "b"], [None], max_new_tokens=5)
    with pytest.raises(UserError, match="max_new_tokens: 0 was given"):
        jaxfusion.generate(*generator, ["word " * 20], max_new_tokens=0)
    with pytest.raises(UserError, match="exceeds the model's context of 64"):
        jaxfusion.generate(*generator, ["word " * 20], max_new_tokens=5)
    model, params = generator
    with pytest.raises(UserError, match="no tokenizer"):
        jaxfusion.generate(jaxfusion.build(model.config), params, ["a"], max_new_tokens=5)


def test_a_classifier_names_the_most_probable_class():
    model, params = make({"kind": "pooled-classifier", "num_classes": 3}, encoder="transformer")
    texts, labels = ["good", "a much longer text", "bad"], ["x", "y", "z"]
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    together = classify(model, params, texts, list(pixels), labels=labels)
    alone = [classify(model, params, [t], [p], labels=labels)[0] for t, p in zip(texts, pixels, strict=True)]
    assert together == alone
    assert set(together) <= set(labels)


def test_examples_are_a_conversation_before_each_prompt(tmp_path):
    decoder = {"kind": "transformer", "num_layers": 1, "num_heads": 2}
    generator = make(decoder, projector={"kind": "linear", "pool": "mean"})
    rng = np.random.default_rng(0)
    a, b, q = (rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3))
    Image.fromarray(a).save(tmp_path / "a.png")
    examples = [(tmp_path / "a.png", "a dax"), ([b, a], "a wug")]
    found = jaxfusion.generate(*generator, ["it?"], [q], examples=examples, max_new_tokens=5)
    seen = [ImagePart(pixels) for pixels in (a, b, a, q)]
    talk = (ask(seen[0], "it?"), answer("a dax"), ask(*seen[1:3], "it?"), answer("a wug"), ask(seen[3], "it?"))
    assert found == answer_messages(*generator, [talk], max_new_tokens=5)
    assert found != jaxfusion.generate(*generator, ["it?"], [q], max_new_tokens=5)
