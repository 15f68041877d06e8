"""The n-grams of many texts, counted all at once: arrays of a row an n-gram of a text, never a dictionary a text."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Counted(NamedTuple):
    """The n-grams of one length. Each of a text's own is a row, in the order of texts, then of n-grams.

    num_grams: of this length that are different, over all texts; their numbers count from 0.
    """

    text: Int[np.ndarray, " R"]
    gram: Int[np.ndarray, " R"]
    count: Int[np.ndarray, " R"]
    num_grams: int


def count_ngrams(texts: Sequence[Sequence[str]], longest: int) -> Iterator[Counted]:
    """Of each length from 1 to `longest`."""
    number = dict(zip(dict.fromkeys(itertools.chain.from_iterable(texts)), itertools.count()))
    words = np.array([number[word] for text in texts for word in text], np.int64)
    lengths = np.array([len(text) for text in texts], np.int64)
    text = np.repeat(np.arange(len(texts)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from here to the text's end
    starts, gram, num_grams = np.arange(len(words)), words, len(number)
    for length in range(1, longest + 1):
        if length > 1:
            fits = left[starts] >= length
            starts, gram = starts[fits], gram[fits] * len(number) + words[starts[fits] + length - 1]
            seen, gram = np.unique(gram, return_inverse=True)
            num_grams = len(seen)
        rows, count = np.unique(text[starts] * num_grams + gram, return_counts=True)
        # Of no words at all there is no n-gram to divide by.
        yield Counted(*np.divmod(rows, max(num_grams, 1)), count, num_grams)


def find(wanted: Int[np.ndarray, " W"], keys: Int[np.ndarray, " K"], values: Int[np.ndarray, " K"]) -> np.ndarray:
    """The value of each wanted key, 0 for a key that is not there. keys: ascending, each once."""
    if not len(keys):
        return np.zeros(len(wanted), values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
