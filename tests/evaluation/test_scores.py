"""What a task is scored by: every record once, against all its references, in all groups and in each."""

import dataclasses

import numpy as np
import pytest

from jaxfusion.data.messages import Sample, answer, ask
from jaxfusion.evaluation import caption_metrics, chinese_characters
from jaxfusion.evaluation.bootstrap import mean_of
from jaxfusion.evaluation.metrics import perplexity_statistic
from jaxfusion.evaluation.scores import Answered, score


def answered(predictions, references, groups=("en",), records=None, labels=()):
    samples = [
        Sample(
            id=str(place),
            group=groups[place % len(groups)],
            messages=(ask("q"), answer(given[0])),
            label=labels.index(given[0]) if labels else None,
            answers=tuple(given),
            record=records[place] if records else None,
        )
        for place, given in enumerate(references)
    ]
    return Answered(samples, predictions, references, labels)


def test_captions_of_each_language_by_its_words():
    predictions = ["a red ball", "红色的球", "a dog", "蓝色的球"]
    references = [["a ball", "a red ball"], ["红色的球"], ["two dogs"], ["绿色的球"]]
    found, ends = score("caption", answered(predictions, references, ["en", "zh"]), {"test_loss": mean_of(range(4))})
    assert list(found)[:5] == [f"caption_exact_match{of}" for of in ("", "_en", "_zh")] + ["cider_en", "cider_zh"]
    assert list(found)[-1] == "test_loss"
    assert [found[f"caption_exact_match{of}"] for of in ("", "_en", "_zh")] == [0.5, 0.5, 0.5]
    english = caption_metrics(predictions[::2], references[::2])
    chinese = caption_metrics(predictions[1::2], references[1::2], chinese_characters)
    assert {name: found[f"{name}_en"] for name in english} == pytest.approx(english)
    assert {name: found[f"{name}_zh"] for name in chinese} == pytest.approx(chinese)
    assert ends.keys() == found.keys()
    alone, _ = score("caption", answered(predictions[::2], references[::2]))
    assert alone == pytest.approx({"caption_exact_match": 0.5} | english)


def test_answers_in_their_normal_form_and_by_ten_people_where_there_are_so_many():
    predictions, references = ["Two", "yes.", "red"], [["2", "3"], ["yes"], ["blue"]]
    found, _ = score("question_answer", answered(predictions, references))
    assert found == {"answer_accuracy": 0.0, "normalised_accuracy": pytest.approx(2 / 3)}
    people = [["2", "2", "three", *["4"] * 7], ["yes"] * 10, ["Blue"] * 10]
    found, _ = score("question_answer", answered(predictions, people))
    assert found["vqa_accuracy"] == pytest.approx((0.6 + 1 + 0) / 3)


def test_choices_are_counted_by_the_letter_that_is_given():
    given = answered(["B", "(b) green", "C", "red"], [["B"], ["B"], ["B"], ["A"]])
    samples = [dataclasses.replace(sample, choices=("red", "green", "blue")) for sample in given.samples]
    found, _ = score("question_answer", dataclasses.replace(given, samples=samples))
    assert found == pytest.approx({"answer_accuracy": 0.25, "normalised_accuracy": 0.25, "choice_accuracy": 0.75})
    mixed = dataclasses.replace(given, samples=[*samples[:3], given.samples[3]])  # one without choices
    assert "choice_accuracy" not in score("question_answer", mixed)[0]


def test_summaries_by_rouge_and_to_the_letter_in_each_language():
    predictions = ["two guests: food praised", "菜品差评", "no guests"]
    references = [["two guests: food praised"], ["菜品好评", "菜品未提及"], ["3 people", "two guests"]]
    found, ends = score("summarize", answered(predictions, references, ["en", "zh"]))
    names = ("rouge_l", "summary_exact_match", "rouge_1", "rouge_2")
    assert list(found) == [f"{name}{of}" for name in names for of in ("", "_en", "_zh")]
    assert found["rouge_l"] == pytest.approx((1 + 3 / 4 + 1 / 2) / 3) and found["rouge_l_zh"] == 3 / 4
    assert found["summary_exact_match"] == pytest.approx(1 / 3)
    assert {"rouge_l", "rouge_l_en", "summary_exact_match"} <= ends.keys()


def test_of_documents_nothing_is_asked():
    losses = [1.0, 2.0, 3.0, 0.0]
    more = {"test_loss": mean_of(losses), "perplexity": perplexity_statistic(losses, [1] * 4)}
    texts = answered([""] * 4, [["a"]] * 4, ["en", "zh"], records=[0, 0, 1, 1])
    found, ends = score("text", texts, more)
    assert list(found) == ["perplexity", "perplexity_en", "perplexity_zh", "test_loss"]
    values = {"perplexity": np.exp(1.5), "perplexity_en": np.exp(2), "perplexity_zh": np.exp(1), "test_loss": 1.5}
    assert found == pytest.approx(values) and ends.keys() == found.keys() - {"perplexity", "test_loss"}  # these agree


def test_what_is_no_class_is_a_miss_and_no_class_more():
    labels = ["good", "bad"]
    references = [["good"], ["good"], ["bad"], ["bad"]]
    found, _ = score("classify", answered(["good", "nonsense", "bad", "good"], references, labels=labels))
    assert found == pytest.approx({"class_accuracy": 0.5, "macro_f1": (0.5 + 2 / 3) / 2})


def test_questions_on_one_picture_are_resampled_together():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.integers(2, size=60), 8)  # a picture that is understood, or not
    predictions, references = np.where(right, "a", "b").tolist(), [["a"]] * 480
    records = np.repeat(np.arange(60), 8).tolist()
    _, ends = score("question_answer", answered(predictions, references, records=records))
    _, as_if = score("question_answer", answered(predictions, references))
    widths = [high - low for low, high in (ends["answer_accuracy"], as_if["answer_accuracy"])]
    assert widths[0] == pytest.approx(2 * 1.96 * right.std() / np.sqrt(60), rel=0.15)
    assert widths[0] > 2 * widths[1]
