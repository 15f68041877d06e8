"""Chinese word segmentation, and the removal of stop words that leaves a sentence's sentiment alone."""

import functools
import re
from collections.abc import Iterable

from jaxfusion.errors import UserError

# Lists of stop words are made for finding documents by topic. For telling praise from blame they take too much: without
# its 不, 不好 is praise; degree words weigh an opinion; 但是 says which half of the sentence counts; and the lists even
# hold 好 and good. These groups stay, and so does every word with a negation in it (不是, 并非, don't).
NEGATION = {"zh": re.compile("[不没無无非未莫勿别]"), "en": re.compile("n'?t$")}
KEEP = {
    "zh": (
        "很 最 更 太 极 极了 较 非常 十分 特别 比较 有些 只 只有 才 再 也 都 还 又 "
        "但 但是 却 可是 然而 虽 虽然 虽说 反而 "
        "好 多 少 大 小 一般 也好 还好"
    ),
    "en": (
        "no not nor never none nobody nothing neither nowhere without cannot hardly unlikely "
        "very too so more most less least much really quite rather almost only enough few even "
        "but however though although yet "
        "good better best great well like liked welcome poorly important ok okay sorry thanks unfortunately "
        "big small high low right top"
    ),
}


def segment(text: str) -> list[str]:
    """Cut a text into words by jieba's dictionary and hidden Markov model; what is not Chinese is cut at its spaces.

    The words keep their order and spelling, punctuation stands alone, and white space is dropped.
    """
    import rjieba

    return [word for word in rjieba.cut(text) if not word.isspace()]


def remove_stop_words(words: Iterable[str], language: str) -> list[str]:
    """Drop the words that say nothing about the matter, by the stopwords-iso list of an ISO 639-1 language.

    Negations, degrees, turns and judgements stay in Chinese and English (`zh`, `en`), though the list holds them.
    Raises `UserError` on a language with no list.
    """
    stop_words = _stop_words(language)
    return [word for word in words if word.lower() not in stop_words]


@functools.cache
def _stop_words(language: str) -> frozenset[str]:
    import stopwordsiso

    if not stopwordsiso.has_lang(language):
        known = ", ".join(sorted(stopwordsiso.langs()))
        raise UserError(f"no list of stop words for the language {language!r}; choose one of {known}")
    negation = NEGATION.get(language)
    listed = stopwordsiso.stopwords(language).difference(KEEP.get(language, "").split())
    return frozenset(word for word in listed if not (negation and negation.search(word)))
