"""Caption metrics, as pycocoevalcap defines them: BLEU, ROUGE-L and CIDEr, of many records in seconds."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from jaxfusion.errors import UserError
from jaxfusion.evaluation.bootstrap import Statistic, mean_of
from jaxfusion.evaluation.ngrams import count_ngrams, find
from jaxfusion.evaluation.words import english_words

LONGEST = 4  # n-grams, in BLEU and CIDEr
BETA = 1.2  # how much more recall weighs than precision in ROUGE-L
SIGMA = 6.0  # of CIDEr's penalty for another length, in words
TINY, SMALL = 1e-15, 1e-9  # pycocoevalcap's, so that nothing is divided by 0

Words = Sequence[str]
Tokenise = Callable[[str], Words]


def caption_metrics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenise: Tokenise = english_words
) -> dict[str, float]:
    """BLEU, ROUGE-L and CIDEr of one prediction a record against its references.

    predictions: one text a record.
    references:  one or more texts a record.
    tokenise:    a text's words; for Chinese `chinese_characters` or `chinese_words`, for words apart `str.split`.

    Of the same words, the numbers are pycocoevalcap's:
    cider:       what pycocoevalcap and all that use it call CIDEr, which is the paper's CIDEr-D: n-grams are clipped,
                 and another length is penalised. Up to 10; n-grams in the references of many records weigh little.
    rouge_l:     F-score of the longest common subsequence (Lin 2004), beta 1.2; mean over records.
    bleu_1 to 4: of the corpus, with the reference length that is closest (Papineni et al. 2002).
    cider_plain: the paper's first form, neither clipped nor penalised (Vedantam et al. 2015).

    Raises UserError for a record without a reference, or none at all.
    """
    return {name: statistic.value for name, statistic in caption_statistics(predictions, references, tokenise).items()}


def caption_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenise: Tokenise = english_words
) -> dict[str, Statistic]:
    """`caption_metrics` as sums over records, for `intervals`. The records are resampled under CIDEr's word weights,
    which are those of all of them."""
    if len(predictions) != len(references) or not predictions:
        raise UserError(
            f"references: there are {len(references)} lists of references and {len(predictions)} predictions; "
            "give as many of each, one at least"
        )
    for place, given in enumerate(references):
        if isinstance(given, str) or not len(given):
            wrong = "a text and not a list of texts" if isinstance(given, str) else "no reference"
            raise UserError(f"references: record {place} has {wrong}; give a list with one text at least")
    said = [list(tokenise(text)) for text in predictions]
    known: dict[str, list[str]] = {}
    for text in (text for given in references for text in given):
        if text not in known:
            known[text] = list(tokenise(text))
    right = [[known[text] for text in given] for given in references]
    bleu = _bleu_parts(said, right)
    clipped, plain = _ciders(said, right)
    return {
        "cider": mean_of(clipped),
        "rouge_l": mean_of([_rouge_l(prediction, given) for prediction, given in zip(said, right, strict=True)]),
        **{f"bleu_{n}": Statistic(bleu, _bleu(n)) for n in range(LONGEST, 0, -1)},
        "cider_plain": mean_of(plain),
    }


# --- BLEU -------------------------------------------------------------------------------------------------------------


def _bleu_parts(said: list[list[str]], right: list[list[list[str]]]) -> Float[np.ndarray, "N 10"]:
    """Each record's length, closest reference length, n-grams that are right, and n-grams, by their length."""
    count = len(said)
    record = _record_of(right)
    lengths = np.array([len(words) for words in said], np.float64)
    closest = [min((abs(len(r) - len(p)), len(r)) for r in given)[1] for p, given in zip(said, right, strict=True)]
    correct, guesses = [], []
    for length, grams in enumerate(count_ngrams([*said, *(r for given in right for r in given)], LONGEST), start=1):
        ours = grams.text < count
        theirs, which = np.unique(
            record[grams.text[~ours] - count] * grams.num_grams + grams.gram[~ours], return_inverse=True
        )
        most = np.zeros(len(theirs), np.int64)
        np.maximum.at(most, which, grams.count[~ours])
        allowed = find(grams.text[ours] * grams.num_grams + grams.gram[ours], theirs, most)
        matches = np.minimum(grams.count[ours], allowed)
        correct.append(np.bincount(grams.text[ours], matches, minlength=count))
        guesses.append(np.maximum(lengths - length + 1, 0))
    return np.stack([lengths, closest, *correct, *guesses], axis=1)


def _bleu(longest: int) -> Callable[[Float[np.ndarray, "... 10"]], Float[np.ndarray, "..."]]:
    """Of sums of `_bleu_parts`."""

    def bleu(sums: Float[np.ndarray, "... 10"]) -> Float[np.ndarray, "..."]:
        length, reference, correct, guesses = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:]
        precisions = (correct + TINY) / (guesses + SMALL)
        mean = np.prod(precisions[..., :longest], axis=-1) ** (1 / longest)
        shorter = np.minimum((length + TINY) / (reference + SMALL), 1)
        return mean * np.exp(1 - 1 / shorter)

    return bleu


# --- ROUGE-L ----------------------------------------------------------------------------------------------------------


def _rouge_l(said: Words, right: Sequence[Words]) -> float:
    common = [(common_words(reference, said), reference) for reference in right]
    if not said:
        return float(any(not reference for reference in right))
    precision = max(shared for shared, _ in common) / len(said)
    recall = max(shared / max(len(reference), 1) for shared, reference in common)
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_words(a: Words, b: Words) -> int:
    """The length of the longest common subsequence, a row of the usual table at a time, as bits (Hyyro 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    row = whole = (1 << len(a)) - 1
    for word in b:
        shared = row & places.get(word, 0)
        row = (row + shared | row - shared) & whole
    return len(a) - row.bit_count()


# --- CIDEr ------------------------------------------------------------------------------------------------------------


def _ciders(
    said: list[list[str]], right: list[list[list[str]]]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Each record's CIDEr, clipped and with the penalty of length, and without either."""
    count, record = len(said), _record_of(right)
    texts = [*said, *(reference for given in right for reference in given)]
    clipped, plain = np.zeros((2, len(record)))
    for grams in count_ngrams(texts, LONGEST):
        ours = grams.text < count
        of_record = grams.text.copy()
        of_record[~ours] = record[grams.text[~ours] - count]
        key = of_record * grams.num_grams + grams.gram
        in_records = np.bincount(np.unique(key[~ours]) % max(grams.num_grams, 1), minlength=grams.num_grams)
        rarity = np.log(count) - np.log(np.maximum(in_records, 1))
        weight = grams.count * rarity[grams.gram]
        norm = np.sqrt(np.bincount(grams.text, weight**2, minlength=len(texts)))
        theirs = weight[~ours]
        same = find(key[~ours], key[ours], weight[ours])  # what the prediction of their record gives the same n-gram
        norms = norm[count:] * norm[record]
        norms[norms == 0] = 1
        place = grams.text[~ours] - count
        clipped += np.bincount(place, np.minimum(same, theirs) * theirs, minlength=len(record)) / norms
        plain += np.bincount(place, same * theirs, minlength=len(record)) / norms
    lengths = np.array([max(len(text) - 1, 0) for text in texts], np.float64)  # counted in pairs of words
    clipped *= np.exp(-((lengths[count:] - lengths[record]) ** 2) / (2 * SIGMA**2))
    scale = 10 / LONGEST / np.bincount(record, minlength=count)
    return np.bincount(record, clipped, minlength=count) * scale, np.bincount(record, plain, minlength=count) * scale


def _record_of(right: list[list[list[str]]]) -> np.ndarray:
    """The record of each reference, in order."""
    return np.repeat(np.arange(len(right)), [len(given) for given in right])
