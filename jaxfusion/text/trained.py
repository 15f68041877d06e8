"""A tokenizer that learns from a run's own texts: a byte-level BPE of the `tokenizers` library."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxfusion.errors import UserError

PAD, BOS, EOS, SEP, IMAGE, MASK = "<pad>", "<bos>", "<eos>", "<sep>", "<image>", "<mask>"
SPECIAL_TOKENS = (PAD, BOS, EOS, SEP, IMAGE, MASK)


class TrainedTokenizer:
    """A `Tokenizer` (jaxfusion.text.tokenizer) with the special tokens of this project."""

    chat_template = prefix = None

    def __init__(self, backend: Any):
        """backend: a `tokenizers.Tokenizer` that knows SPECIAL_TOKENS."""
        backend.encode_special_tokens = True
        self._backend = backend
        ids = (backend.token_to_id(token) for token in SPECIAL_TOKENS)
        self.pad_id, self.bos_id, self.eos_id, self.sep_id, self.image_id, self.mask_id = ids
        self.stop_ids = (self.eos_id,)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TrainedTokenizer":
        """Learns merges from texts. Digits and Chinese characters stay tokens of their own; no text is unknown.

        vocab_size: an upper bound; at least the 256 bytes and the special tokens.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise UserError(f"config.data.vocab_size: {vocab_size} cannot hold all bytes; use at least {smallest}")
        backend = Tokenizer(models.BPE())
        single = pre_tokenizers.Split(Regex(r"\p{Han}| ?\p{Nd}"), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([single, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> "TrainedTokenizer":
        """Reads a tokenizer.json. Raises UserError where there is none, or it is not one of this project's."""
        from tokenizers import Tokenizer

        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no tokenizer; the directory is not a trained workdir")
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a readable tokenizer ({error}); restore the file") from error
        if missing := [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]:
            raise UserError(f"{path}: the tokens {' '.join(missing)} are missing; use the tokenizer of this run")
        return cls(backend)

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json, whole or not at all."""
        path = directory / "tokenizer.json"
        partial = path.with_name(path.name + ".partial")
        self._backend.save(str(partial))
        os.replace(partial, path)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def image_ids(self, num_tokens: int) -> list[int]:
        return [self.image_id] * num_tokens

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first EOS, special tokens left out."""
        ids = [int(i) for i in ids]
        end = ids.index(self.eos_id) if self.eos_id in ids else len(ids)
        return self.text(ids[:end]).strip()

    def text(self, ids: Iterable[int]) -> str:
        """Text of all ids, special tokens left out, with the white space at its ends."""
        return self._backend.decode(list(ids), skip_special_tokens=True)
