"""How texts are cut into words before they are compared: what counts is the word, not its case or marks around it."""

import re
import unicodedata

from jaxfusion.text.postprocess import HAN
from jaxfusion.text.segmentation import segment

# A number with its marks (3.5, 1,000, 2:50), a word with its hyphens and apostrophes, an abbreviation (u.s.), a sign.
PIECE = re.compile(r"(?:[a-z]\.){2,}|\w+(?:(?:[-'&]|(?<=\d)[.,:](?=\d))\w+)*|\S")
ABBREVIATION = re.compile(r"\b(mr|mrs|ms|dr|prof|st|jr|sr|vs|etc)\.(?=\s|$)")
CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))(?=$|')")

# Words that the Penn Treebank writes as two.
TWO_WORDS = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"}

QUOTES = str.maketrans("‘’ʼ＇`", "'''''")
HAN_OR_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}_]+(?:(?:['-]|(?<=\d)[.,:](?=\d))[^\W{HAN}_]+)*")


def english_words(text: str) -> list[str]:
    """Lower-case words in the manner of the Penn Treebank: "don't" is `do n't`, "a dog's ball." is `a dog 's ball`.

    Punctuation is dropped; other signs ($, %, &) are words. COCO's caption metrics read the words of Stanford's
    tokenizer, which follows the same rules but on rare texts (URLs, fractions, brackets).
    """
    text = unicodedata.normalize("NFC", text).lower().translate(QUOTES)
    words: list[str] = []
    for piece in PIECE.findall(ABBREVIATION.sub(r"\1", text)):
        piece = CLITIC.sub(r" \1", TWO_WORDS.get(piece, piece))
        words += [word for word in piece.split() if not _is_punctuation(word)]
    return words


def plain_words(text: str) -> list[str]:
    """Runs of the letters a to z and digits, in lower case, as ROUGE's reference implementation cuts English."""
    return re.findall(r"[a-z0-9]+", text.lower())


def chinese_characters(text: str) -> list[str]:
    """Each Chinese character by itself, other words and numbers whole, in lower case; punctuation is dropped."""
    return HAN_OR_WORD.findall(unicodedata.normalize("NFKC", text).lower())


def chinese_words(text: str) -> list[str]:
    """Words as jieba cuts them, in lower case; punctuation is dropped."""
    return [word for word in segment(unicodedata.normalize("NFKC", text).lower()) if not _is_punctuation(word)]


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(letter).startswith("P") and letter not in "%&#@*" for letter in word)
