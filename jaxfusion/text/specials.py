"""Special tokens that only we can write: text that spells one is text."""

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


class Specials:
    """A tokenizer in which every special token goes by a secret name, so that no text a person types can be one.

    A chat template mixes special tokens with a person's text, and the text between two special tokens must be encoded
    in one go, or words and spaces would be cut otherwise than the model has learned them. So the roads are:
    `escape` the person's text, render the template with it, `disguise` what came out, and `encode` the whole.
    What a template looks at in the text, to trim it or to cut out a thought, it finds there as it was typed.
    """

    def __init__(self, backend: "tokenizers.Tokenizer", names: Iterable[str]) -> None:
        """names: of the special tokens, all known to the backend, which stays as it is."""
        salt = secrets.token_hex(8)
        names = list(names)
        self._secrets = {name: f"x{salt}s{number}x" for number, name in enumerate(names)}
        self._quotes = {name: f"x{salt}q{number}x" for number, name in enumerate(names)}
        self._spelled = {quote: name for name, quote in self._quotes.items()}
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or r"(?!)")
        self._quoted = re.compile(f"x{salt}q[0-9]+x")
        self._original = backend

    @cached_property
    def _backend(self) -> "tokenizers.Tokenizer":
        """Made when it is first asked, for a large vocabulary takes seconds, and not all who load weights encode."""
        backend = _renamed(self._original, self._secrets)
        for name, secret in self._secrets.items():
            if backend.token_to_id(secret) != self._original.token_to_id(name):
                raise ValueError(f"{name!r} has another id in a copy of its tokenizer")
        return backend

    def secret(self, name: str) -> str:
        """What stands for a special token in disguised text."""
        return self._secrets[name]

    def escape(self, text: str) -> str:
        """A person's text without the special tokens that it spells; `disguise` brings them back, as text."""
        return self._special.sub(lambda match: self._quotes[match[0]], text)

    def disguise(self, rendered: str) -> str:
        """For `encode`: special tokens under their secret names, and escaped text as it was."""
        disguised = self._special.sub(lambda match: self._secrets[match[0]], rendered)
        return self._quoted.sub(lambda match: self._spelled[match[0]], disguised)

    def first(self, disguised: str) -> str | None:
        """The name of the first special token in disguised text."""
        found = [(disguised.find(secret), name) for name, secret in self._secrets.items() if secret in disguised]
        return min(found)[1] if found else None

    def encode(self, disguised: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters [start, end) that each stands for; no special token but the disguised ones."""
        encoding = self._backend.encode(disguised, add_special_tokens=False)
        return encoding.ids, encoding.offsets


def _renamed(backend: "tokenizers.Tokenizer", names: Mapping[str, str]) -> "tokenizers.Tokenizer":
    """A copy with other names for some tokens, and the same ids.

    They are renamed in the vocabulary too, where a Unigram model would find them in plain text.
    """
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str()) | {"post_processor": None, "truncation": None, "padding": None}
    for token in state["added_tokens"]:
        if token["content"] in names:
            token["content"] = name = names[token["content"]]
            # Wherever we write one it counts, even where a normalizer changes the name, or letters stand beside it.
            stays = backend.normalizer is None or backend.normalizer.normalize_str(name) == name
            token |= {"single_word": False, "normalized": token["normalized"] and stays}
    model: dict[str, Any] = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:  # one that makes a special token of text, or uses it, is never wanted
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[a, b] for a, b in pairs if not (a in names or b in names or a + b in names)]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(state))
