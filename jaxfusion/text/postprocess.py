"""Predicted text made fit to read: what the tokenizer and the sampler left behind is cleaned away.

English and Chinese, together or apart. Cleaning twice changes nothing that cleaning once left.
"""

import re

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WIDE = str.maketrans(",.;:?!", "，。；：？！")
ENDS = ",;.!?，；。！？"
WIDE_MARKS = "，。；：？！、（）《》「」『』【】"

SPECIAL = re.compile(
    r"<\|[^<>|\s]*\|>|</?s>|<(?:pad|unk|bos|eos|cls|sep|mask|image|start_of_turn|end_of_turn)>"
    r"|\[(?:PAD|UNK|CLS|SEP|MASK)\]"
)
MARKS_BY_HAN = re.compile(rf"(?<=[{HAN}])\s*[,.;:?!]+|\s*[,.;:?!]+\s*(?=[{HAN}])|\s*[,.;:?!]+$")
SPACE_BY_HAN = re.compile(
    rf"(?<=[{WIDE_MARKS}])\s|\s(?=[{WIDE_MARKS}])"
    rf"|(?<=[{HAN}\d])\s(?=[{HAN}])|(?<=[{HAN}])\s(?=\d)"
)
SPACE_BEFORE_MARK = re.compile(r"\s+([,.;:?!])(?=\s|[,.;:?!]|$)")

# What counts as a loop and not as style: `very very` and 看看 stay. A phrase is at most 40 words or characters long.
REPEATS = (
    re.compile(r"\b(\w+)(?: \1\b){2,}"),  # one word, three times or more
    re.compile(r"\b(\w+(?: \w+){1,39}?)(?: \1\b)+"),  # several words, twice or more
    re.compile(rf"([{HAN}][{HAN}\d]{{2,39}}?)\1+(?!\d)"),  # three or more Chinese characters, twice or more
    # a clause between two marks, twice or more
    re.compile(rf"(?:(?<![^{ENDS}])|(?<=[{ENDS}] ))([^{ENDS} ][^{ENDS}]{{2,}}?)(?:[{ENDS}] ?\1)+(?![^{ENDS}])"),
)


def postprocess(text: str, *, drop_repeats: bool = True, sentence: bool = False) -> str:
    """Clean a predicted text for reading.

    Left-over special tokens (`<|im_end|>`, `</s>`, `[PAD]`, ...) go, white space becomes single spaces, none stand
    before punctuation or between Chinese characters, and punctuation beside Chinese is full-width. `drop_repeats`
    keeps one of a phrase or clause that is said again at once, as a model does that is caught in a loop; numbers are
    never dropped. `sentence` makes the first letter a capital and sees to a full stop at the end.
    """
    text = " ".join(SPECIAL.sub(" ", text).split())
    if re.search(f"[{HAN}]", text):
        text = SPACE_BY_HAN.sub("", MARKS_BY_HAN.sub(_widen, text))
    text = SPACE_BEFORE_MARK.sub(r"\1", text)
    if drop_repeats:
        text = _drop_repeats(text)
    if sentence and text:
        text = text[0].upper() + text[1:]
        if text[-1] not in ".!?。！？…":
            text += "。" if re.search(f"[{HAN}]", text) else "."
    return text


def _widen(match: re.Match) -> str:
    # An ellipsis stays as it was typed.
    return match[0] if ".." in match[0] else match[0].strip().translate(WIDE)


def _drop_repeats(text: str) -> str:
    while True:
        shorter = text
        for repeat in REPEATS:
            shorter = repeat.sub(lambda match: match[1] if any(map(str.isalpha, match[1])) else match[0], shorter)
        if shorter == text:
            return text
        text = shorter
