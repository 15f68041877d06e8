"""Evaluation: its numbers against counting by hand, whatever the size of its batches."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.config.run import GenerateConfig
from jaxfusion.data.messages import Image, Masked, Sample, answer, ask, with_examples
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import check_samples, evaluate, held_out_losses, sampling_of
from jaxfusion.text.trained import TrainedTokenizer

VISION = {"kind": "vgg", "image_size": 8, "stage_depths": [1], "stage_widths": [4]}
LABELS = ["no", "yes"]
DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 2}


def experiment(task, decoder, **model):
    tokenizer = TrainedTokenizer.train(["x"], 262)
    settings = {
        "model": {
            "width": 16,
            "vision": VISION,
            "projector": {"kind": "linear", "pool": "mean"},
            "text_embedding": {"vocab_size": 262},
            "decoder": decoder,
        }
        | model,
        "data": {"task": task, "row_length": 32},
        "evaluate": {"batch_size": 4},
        "generate": {"max_new_tokens": 4},
    }
    config = from_dict(Config, settings)
    model = jaxfusion.build(config, tokenizer)
    return config, model, jaxfusion.init(model, jax.random.key(0))


def samples(count=6):
    rng = np.random.default_rng(0)
    return [
        Sample(
            id=str(i),
            group=["en", "zh"][i % 2],
            messages=(ask(Image(rng.integers(0, 256, (8, 8, 3), np.uint8)), "ab", Masked("cd")), answer("abcd")),
            label=i % 2,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("task", "decoder", "headline"),
    [
        ("caption", {"kind": "transformer", "num_layers": 1, "num_heads": 2}, "caption_exact_match"),
        ("fill", {"kind": "token-classifier"}, "fill_exact_match"),
        ("classify", {"kind": "pooled-classifier", "num_classes": 2}, "class_accuracy"),
    ],
)
def test_scores_are_counts_and_do_not_depend_on_the_batch_size(task, decoder, headline):
    config, model, params = experiment(task, decoder)
    given = samples()
    if task == "classify":
        given = [dataclasses.replace(s, messages=(s.messages[0], answer(LABELS[s.label]))) for s in given]
    result = evaluate(config, model, params, given, LABELS)
    right = [prediction == sample.reference for prediction, sample in zip(result.predictions, given, strict=True)]
    assert next(iter(result.metrics)) == headline
    assert result.metrics[headline] == pytest.approx(np.mean(right))
    for number, group in enumerate(("en", "zh")):
        assert result.metrics[f"{headline}_{group}"] == pytest.approx(np.mean(right[number::2]))
    whole = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, batch_size=6))
    assert evaluate(whole, model, params, given, LABELS).metrics == pytest.approx(result.metrics, rel=1e-5)
    losses = held_out_losses(config, model, params, given)
    assert losses == pytest.approx({name: result.metrics[name] for name in losses}, rel=1e-5)
    numbers = result.metrics
    assert all(low <= numbers[name] <= high for name, (low, high) in result.intervals.items())
    assert "test_loss" in result.intervals and (headline in result.intervals) == (0 < numbers[headline] < 1)
    if task == "caption":
        assert numbers["perplexity"] == pytest.approx(np.exp(numbers["test_loss"]))
        assert {"cider_en", "cider_zh", "bleu_4_en"} <= numbers.keys() and "cider" not in numbers
        several = [
            dataclasses.replace(sample, answers=(sample.reference, prediction))
            for sample, prediction in zip(given, result.predictions, strict=True)
        ]
        cleaned = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, postprocess=True))
        against_all = evaluate(cleaned, model, params, several, LABELS)
        assert against_all.metrics[headline] == 1 and len(against_all.predictions) == len(given)
        assert against_all.metrics["test_loss"] == pytest.approx(numbers["test_loss"], rel=1e-5)
        letter = next(prediction for prediction in result.predictions if prediction)[-1]
        stopped = dataclasses.replace(config, generate=dataclasses.replace(config.generate, stop=(letter,)))
        cut = evaluate(stopped, model, params, given, LABELS).predictions
        assert cut == [prediction.partition(letter)[0] for prediction in result.predictions] != result.predictions
    if task == "classify":
        assert np.trace(result.confusion) == sum(right)
        assert result.metrics["test_accuracy"] == pytest.approx(np.mean(right))
        labels, predicted = [s.label for s in given], [LABELS.index(text) for text in result.predictions]
        assert result.metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_classes_that_are_generated_are_counted_and_what_is_none_of_them():
    config, model, params = experiment("classify", {"kind": "transformer", "num_layers": 1, "num_heads": 2})
    given = [dataclasses.replace(s, messages=(s.messages[0], answer(LABELS[s.label]))) for s in samples()]
    said = evaluate(config, model, params, given, LABELS)
    assert next(iter(said.metrics)) == "class_accuracy" and "macro_f1" in said.metrics
    assert said.confusion.tolist() == [[0, 0, 3], [0, 0, 3]]  # nothing is learned, so it says no class at all
    names = ["no", said.predictions[0]]  # as if the second class were called what it says of the first sample
    renamed = [dataclasses.replace(s, messages=(s.messages[0], answer(names[s.label]))) for s in given]
    again = evaluate(config, model, params, renamed, names)
    hits = np.array([prediction == names[1] for prediction in said.predictions])
    assert again.confusion[:, 1].tolist() == [hits[::2].sum(), hits[1::2].sum()]


def test_beams_are_not_sampled():
    assert sampling_of(GenerateConfig(num_beams=3)).num_beams == 3
    with pytest.raises(UserError, match=r"^config\.generate\.temperature: beams are not sampled; leave it at 0.0, or"):
        sampling_of(GenerateConfig(num_beams=3, temperature=0.5))
    with pytest.raises(UserError, match=r"^config\.generate\.top_k: -1 was given"):
        sampling_of(GenerateConfig(num_beams=3, top_k=-1))


def test_what_the_context_cannot_hold_is_refused_by_name():
    config, model, params = experiment("caption", DECODER, text_embedding={"vocab_size": 262, "max_positions": 20})
    check_samples(config, model, samples(1))  # bos, picture, abcd, sep, abcd, eos, and 4 new tokens
    (long,) = (dataclasses.replace(s, messages=(s.messages[0], answer("x" * 20))) for s in samples(1))
    for call in (held_out_losses, lambda *arguments: evaluate(*arguments, [])):
        with pytest.raises(UserError, match=r"^config\.model\.text_embedding\.max_positions: sample 0 needs \d+ pos"):
            call(config, model, params, [long])
    (asked,) = samples(1)
    behind = dataclasses.replace(asked, messages=with_examples(asked.messages, [asked.messages] * 2))
    for call in (lambda *_: check_samples(config, model, [behind]), held_out_losses):
        with pytest.raises(UserError, match=r"^config\.evaluate\.shots: sample 0 behind its examples needs \d+ pos"):
            call(config, model, params, [behind])
    wide = dataclasses.replace(config, generate=dataclasses.replace(config.generate, max_new_tokens=16))
    with pytest.raises(UserError, match=r"^config\.generate\.max_new_tokens: the prompt of sample 0 takes"):
        check_samples(wide, model, samples(1))
