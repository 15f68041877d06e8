"""Which metrics a task is judged by, over all samples and for each group of them, with 95 % intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxfusion.data.choices import letter_said
from jaxfusion.data.messages import Sample
from jaxfusion.evaluation.bootstrap import Interval, Statistic, intervals, mean_of
from jaxfusion.evaluation.captions import caption_statistics
from jaxfusion.evaluation.metrics import macro_f1_statistic, matches
from jaxfusion.evaluation.rouge import NAMES, rouge
from jaxfusion.evaluation.vqa import ENOUGH, normalise_answer, vqa_scores
from jaxfusion.evaluation.words import chinese_characters, english_words, plain_words

# How captions and summaries of a language are cut; of one that is not here, as English.
WORDS = {"zh": chinese_characters}


@dataclass(frozen=True)
class Answered:
    """Samples of one task, with what the model said and what is right, in the form in which they are compared.

    labels: names of the classes, for classification, in that form too.
    """

    samples: Sequence[Sample]
    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    labels: Sequence[str] = ()

    @property
    def groups(self) -> list[str]:
        return sorted({sample.group for sample in self.samples})

    def at(self, places: Sequence[int]) -> "Answered":
        values = ([column[place] for place in places] for column in (self.samples, self.predictions, self.references))
        return Answered(*values, self.labels)


def score(
    task: str, answered: Answered, more: Mapping[str, Statistic] | None = None
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Metrics by name, the task's headline first, and their intervals.

    more: further statistics over all the samples. Where the headline is one of them, nothing was asked.
    """
    scores, more = SCORES[task], more or {}
    groups = answered.groups
    places = {"": list(range(len(answered.samples)))}
    if len(groups) > 1:
        places |= {g: [i for i in places[""] if answered.samples[i].group == g] for g in groups}
    if scores.headline in more:
        tables = {group: {scores.headline: more[scores.headline].at(chosen)} for group, chosen in places.items()}
    else:
        tables = {group: _statistics(scores, answered.at(chosen)) for group, chosen in places.items()}
    names = dict.fromkeys([scores.headline, *(name for table in tables.values() for name in table), *more])
    tables[""] |= more
    numbers = [sample.record for sample in answered.samples]
    records = np.array(numbers) if None not in numbers else np.arange(len(numbers))
    found = {group: intervals(table, records[places[group]]) for group, table in tables.items()}
    order = [
        (name, group, f"{name}_{group}" if group else name)
        for name in names
        for group, table in tables.items()
        if name in table
    ]
    return (
        {full: tables[group][name].value for name, group, full in order},
        {full: found[group][name] for name, group, full in order if name in found[group]},
    )


def _statistics(scores: "Scores", answered: Answered) -> dict[str, Statistic]:
    found = {scores.whole or scores.headline: mean_of(matches(answered.predictions, answered.references))}
    if len(answered.groups) == 1 or not scores.by_language:
        found |= scores.metrics(answered)
    return found


def _captions(answered: Answered) -> dict[str, Statistic]:
    tokenise = WORDS.get(answered.groups[0], english_words)
    return caption_statistics(answered.predictions, answered.references, tokenise)


def _answers(answered: Answered) -> dict[str, Statistic]:
    right = matches(answered.predictions, answered.references, normalise_answer)
    found = {"normalised_accuracy": mean_of(right)}
    if all(len(given) > ENOUGH for given in answered.references):
        found["vqa_accuracy"] = mean_of(vqa_scores(answered.predictions, answered.references))
    if all(sample.choices for sample in answered.samples):
        said = [
            letter_said(text, sample.choices)
            for text, sample in zip(answered.predictions, answered.samples, strict=True)
        ]
        found["choice_accuracy"] = mean_of(matches(said, answered.references))
    return found


def _summaries(answered: Answered) -> dict[str, Statistic]:
    scored = [
        rouge(said, right, WORDS.get(sample.group, plain_words))
        for said, right, sample in zip(answered.predictions, answered.references, answered.samples, strict=True)
    ]
    return {name: mean_of([of[name] for of in scored]) for name in NAMES}


def classes_said(answered: Answered) -> list[int]:
    """The class that each prediction names; -1: none."""
    number = {label: place for place, label in enumerate(answered.labels)}
    return [number.get(text, -1) for text in answered.predictions]


def _classes(answered: Answered) -> dict[str, Statistic]:
    true = [sample.label for sample in answered.samples]
    return {"macro_f1": macro_f1_statistic(true, classes_said(answered), len(answered.labels))}


class Scores(NamedTuple):
    """headline: what the share of samples that are right as a whole is called; where nothing is asked, the statistic
    that counts. metrics: further ones.
    by_language: whether these make sense of one group of samples alone.
    whole: what that share is called where the headline is one of the metrics."""

    headline: str
    metrics: Callable[[Answered], dict[str, Statistic]] = lambda answered: {}
    by_language: bool = False
    whole: str = ""


SCORES = {
    "caption": Scores("caption_exact_match", _captions, by_language=True),
    "question_answer": Scores("answer_accuracy", _answers),
    "summarize": Scores("rouge_l", _summaries, whole="summary_exact_match"),
    "fill": Scores("fill_exact_match"),
    "classify": Scores("class_accuracy", _classes),
    "dialogue": Scores("answer_accuracy"),
    "text": Scores("perplexity"),
}
