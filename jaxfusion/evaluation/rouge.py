"""ROUGE of summaries, as the `rouge_score` package has it: F-scores of n-grams and of the longest common subsequence.

Captions' `rouge_l` is another one: COCO's, which weighs recall more and takes precision and recall of different
references (`jaxfusion.evaluation.captions`).
"""

from collections import Counter
from collections.abc import Callable, Sequence

from jaxfusion.evaluation.captions import common_words
from jaxfusion.evaluation.words import plain_words

Words = Sequence[str]

NAMES = ("rouge_l", "rouge_1", "rouge_2")


def rouge(
    prediction: str, references: Sequence[str], tokenise: Callable[[str], Words] = plain_words
) -> dict[str, float]:
    """`rouge_l`, `rouge_1` and `rouge_2` of one summary (Lin 2004): of each, the F-score with the reference that it
    fits best. Words are not stemmed, and `rouge_l` takes a text as one sentence.

    tokenise: a text's words; for Chinese `chinese_characters`.
    """
    said = list(tokenise(prediction))
    scores = [_scores(said, list(tokenise(reference))) for reference in references]
    return {name: max(of[place] for of in scores) for place, name in enumerate(NAMES)}


def _scores(said: Words, right: Words) -> tuple[float, float, float]:
    return _f1(common_words(right, said), len(said), len(right)), _ngrams(said, right, 1), _ngrams(said, right, 2)


def _ngrams(said: Words, right: Words, length: int) -> float:
    ours, theirs = (
        Counter(tuple(words[start : start + length]) for start in range(len(words) - length + 1))
        for words in (said, right)
    )
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _f1(shared: int, said: int, right: int) -> float:
    return 2 * shared / (said + right) if shared else 0.0
