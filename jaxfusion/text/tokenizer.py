"""What the data side, generation and evaluation ask of a tokenizer, of whichever kind."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from jaxfusion.text.template import ChatTemplate


class Tokenizer(Protocol):
    """Text to token ids and back. Special tokens never come out of text: "<image>" typed by a person is just text.

    vocab_size:    ids are below it.
    pad_id:        fills up what carries neither loss nor attention.
    bos_id, sep_id, eos_id: begin a text, end its prompt and end the whole, where no chat template says otherwise.
    stop_ids:      each of which ends a generated text; the first fills up what comes after.
    image_id:      stands for one visual token; None where the model sees no images.
    mask_id:       stands for a hidden token; None where the model knows none.
    chat_template: lays conversations out; None: the fixed layout of `jaxfusion.data.tokenise` does.
    prefix:        what stands before a lone prompt, and nothing behind it, where the model has learned no layout; else
                   None.
    """

    vocab_size: int
    pad_id: int
    bos_id: int
    sep_id: int
    eos_id: int
    stop_ids: tuple[int, ...]
    image_id: int | None
    mask_id: int | None
    chat_template: "ChatTemplate | None"
    prefix: tuple[int, ...] | None

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without any special token."""

    def image_ids(self, num_tokens: int) -> list[int]:
        """An image of so many visual tokens, with what the family puts around it."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first that stops, special tokens left out."""

    def text(self, ids: Iterable[int]) -> str:
        """Text of all ids, special tokens left out, with the white space at its ends."""

    def save(self, directory: Path) -> None:
        """Writes files from which `open_tokenizer` makes the same tokenizer."""


def open_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a run's directory. Raises UserError where there is none, or its files are broken."""
    from jaxfusion.text.pretrained import load_tokenizer
    from jaxfusion.text.trained import TrainedTokenizer

    directory = Path(directory).expanduser()
    if (directory / "tokenizer_config.json").is_file():
        return load_tokenizer(directory)
    return TrainedTokenizer.load(directory / "tokenizer.json")
