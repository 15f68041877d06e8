"""A checkpoint's own tokenizer, read by transformers (which needs no torch for it) from the checkpoint's own files."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxfusion.config.model import ModelConfig
from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import read_json
from jaxfusion.text.specials import Specials
from jaxfusion.text.template import ChatTemplate, ImageTokens, added_before

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
OWN = (
    *FILES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
ADDED_IMAGE = "<image>"  # for a tokenizer that has no token for images
OURS = "jaxfusion"  # what tokenizer_config.json has no word for stands there under this key


class PretrainedTokenizer:
    """A `Tokenizer` (jaxfusion.text.tokenizer) around transformers' `PreTrainedTokenizerFast`.

    image_token: the name of `image_id`.
    What a checkpoint lacks is served by what it has. bos_id: the class token, or else eos, which in training stood
    before every text, too. sep_id: the line break. pad_id: eos, since padding carries neither loss nor attention.
    """

    def __init__(
        self, tokenizer: Any, image: ImageTokens | None, stop_ids: Iterable[int] = (), bare: bool = False
    ) -> None:
        """tokenizer: transformers', which has a chat template or none. image: None for a model that sees none.

        stop_ids: of the checkpoint; the tokenizer's own eos and the chat template's end of turn come to them.
        bare:     whether the model has learned no layout, if there is no chat template.
        """
        self._tokenizer, self._image = tokenizer, image
        backend = tokenizer.backend_tokenizer
        vocabulary = backend.get_vocab(with_added_tokens=True)
        names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        # Not only what the file calls special: also what transformers takes as such, and what stands for an image.
        names |= {*tokenizer.all_special_tokens, *([image.token] if image else [])} & vocabulary.keys()
        self._specials = Specials(backend, sorted(names, key=vocabulary.get))
        self.vocab_size = max(vocabulary.values()) + 1

        source = tokenizer.chat_template
        self.chat_template = ChatTemplate(source, tokenizer, self._specials, image) if source else None
        self.prefix = tuple(added_before(tokenizer)) if bare and not source else None
        end_of_turn = self.chat_template.end_of_turn if self.chat_template else None
        known = (_first(tokenizer.eos_token_id, tokenizer.sep_token_id), *stop_ids, vocabulary.get(end_of_turn))
        self.stop_ids = tuple(dict.fromkeys(index for index in known if index is not None))
        if not self.stop_ids:
            raise UserError("tokenizer_config.json: there is no eos_token; name the token that ends a text")
        self.eos_id = self.stop_ids[0]
        self.pad_id = _first(tokenizer.pad_token_id, self.eos_id)
        self.bos_id = _first(tokenizer.bos_token_id, tokenizer.cls_token_id, self.eos_id)
        self.mask_id = tokenizer.mask_token_id
        self.image_token = image.token if image else None
        self.image_id = vocabulary[image.token] if image else None

    @cached_property
    def sep_id(self) -> int:
        own = self._tokenizer.sep_token_id
        return _first(*(self.encode("\n")[-1:] if own is None else [own]), self.eos_id)

    @property
    def eos_token(self) -> str:
        """The name of `eos_id`."""
        return self._tokenizer.convert_ids_to_tokens(self.eos_id)

    def encode(self, text: str) -> list[int]:
        return self._specials.encode(text)[0]

    def image_ids(self, num_tokens: int) -> list[int]:
        ids = self._specials.encode(self._specials.disguise(self._image.text))[0]
        where = ids.index(self.image_id)
        return [*ids[:where], *[self.image_id] * num_tokens, *ids[where + 1 :]]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first that stops, special tokens left out."""
        ids = [int(i) for i in ids]
        end = next((place for place, index in enumerate(ids) if index in self.stop_ids), len(ids))
        return self.text(ids[:end]).strip()

    def text(self, ids: Iterable[int]) -> str:
        """Text of all ids, special tokens left out, with the white space at its ends."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, directory: Path) -> None:
        """Writes what transformers reads; tokenizer_config.json, by which we know such a directory, comes last."""
        ours = {
            "stop_ids": list(self.stop_ids),
            "image": asdict(self._image) if self._image else None,
            "bare": self.prefix is not None,
        }
        self._tokenizer.init_kwargs[OURS] = ours
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tokenizer") as partial:
            self._tokenizer.save_pretrained(partial)
            _for_older_readers(Path(partial) / "tokenizer_config.json")
            for path in sorted(Path(partial).iterdir(), key=lambda path: path.name == "tokenizer_config.json"):
                os.replace(path, directory / path.name)

    def export(self, directory: Path, own: Mapping[str, bytes], *, of_parts: bool) -> None:
        """As `save`, but leaves the checkpoint's own files as they came where they hold the same tokenizer, and nothing
        but a chat template has to say how prompts are laid out.

        own:      name -> content, with the config.json that will stand beside them.
        of_parts: the chat template has to take messages as lists of parts, as transformers' processors give them.
        """
        template = self.chat_template.source if self.chat_template else None
        found, templates = _read(own)
        known = template is not None or self.prefix is not None
        if known and found is not None and _state(found) == _state(self._tokenizer):
            for name in own.keys() & {*OWN}:
                (directory / name).write_bytes(own[name])
        else:
            self.save(directory)
            templates = []
        if template is not None and (of_parts or template not in templates):
            text = self.chat_template.of_parts if of_parts else template
            (directory / "chat_template.jinja").write_text(text, encoding="utf-8")


def load_tokenizer(
    directory: str | Path,
    config: ModelConfig | None = None,
    *,
    image: ImageTokens | None = None,
    chat_template: str | None = None,
    bare: bool = False,
) -> PretrainedTokenizer | None:
    """The tokenizer in a checkpoint's directory; None where there is none.

    config:        of the model it is for. If that sees images and the checkpoint has no token for them, one is added,
                   and `vocab_size` tells by how much the model's table may have to grow. None: it is as it was saved.
    image:         how the family writes an image; None: by its image token alone.
    chat_template: Jinja, in place of the checkpoint's own, or where it has none.
    bare:          whether a model without a chat template has learned no layout of prompts, where the directory was not
                   written here and says so itself.
    Raises UserError for files that cannot be read, and for a tokenizer that only code of the checkpoint's could run.
    """
    directory = Path(directory)
    if not any((directory / name).is_file() for name in FILES):
        return None
    tokenizer = _open(directory)
    saved = tokenizer.init_kwargs.get(OURS, {})
    if image is None and saved.get("image"):
        image = ImageTokens(**saved["image"])
    if image is None and (config is None or config.vision is not None):
        name = _image_token(tokenizer, directory) or (config and ADDED_IMAGE)
        image = ImageTokens(name) if name else None
    if config is not None and config.vision is None:
        image = None
    if image is not None and getattr(tokenizer, "image_token", None) != image.token:
        tokenizer = _open(directory, image_token=image.token)
    tokenizer.chat_template = chat_template or _chat_template(tokenizer, directory, sees=image is not None)
    try:
        stop_ids = [*saved.get("stop_ids", []), *_stop_ids(directory)]
        return PretrainedTokenizer(tokenizer, image, stop_ids, saved.get("bare", bare))
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def _read(files: Mapping[str, bytes]) -> tuple[Any, list[str]]:
    """transformers' tokenizer of these files, None where they do not make one, and all the chat templates in them."""
    if not any(name in files for name in FILES):
        return None, []
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            Path(directory, name).write_bytes(content)
        try:
            tokenizer = _open(Path(directory))
        except UserError:  # some kinds have files that are not kept
            return None, []
        source = tokenizer.chat_template
        templates = list(source.values()) if isinstance(source, dict) else [source]
        return tokenizer, [*templates, _json(Path(directory, "chat_template.json")).get("chat_template")]


def _state(tokenizer: Any) -> dict[str, Any]:
    """All that decides over ids; which tokens are special does not."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {"vocab": tokenizer.get_vocab()} | {k: state[k] for k in ("model", "normalizer", "pre_tokenizer", "decoder")}


def _for_older_readers(file: Path) -> None:
    """Puts what transformers 4 knows in place of names that transformers 5 alone knows, and that mean the same."""
    config = _json(file)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _open(directory: Path, **settings: str) -> Any:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    from transformers import AutoTokenizer

    try:
        # Told not to trust, it refuses code that comes with the checkpoint, where untold it would ask.
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True, use_fast=True, **settings
        )
    except Exception as error:  # whatever the many readers behind it raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory}: transformers cannot read its tokenizer ({reason}); give a directory with a tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"{directory}: its tokenizer has no tokenizer.json and cannot be made into one; add that file")
    for name in ("local_files_only", "is_local"):  # how it was read is nothing to save
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _image_token(tokenizer: Any, directory: Path) -> str | None:
    """The name of the token that stands for an image, where the checkpoint has one."""
    config = _json(directory / "config.json")
    for field in ("image_token_id", "image_token_index"):
        index = config.get(field)
        if index is not None and (not isinstance(index, int) or index < 0):
            raise UserError(
                f"{directory / 'config.json'}: {field}: {index!r} is no token's id; give the id, or remove it"
            )
        if index is not None and index < len(tokenizer):
            return tokenizer.convert_ids_to_tokens(index)
    named = getattr(tokenizer, "image_token", None) or _json(directory / "processor_config.json").get("image_token")
    vocabulary = tokenizer.get_vocab()
    return next((name for name in (named, ADDED_IMAGE) if name in vocabulary), None)


def _chat_template(tokenizer: Any, directory: Path, sees: bool) -> str | None:
    """The one for plain conversations.

    sees: of a model that sees images the processor's own template goes before the tokenizer's, which may know of texts
          alone, as in transformers' `ProcessorMixin.get_processor_dict`.
    """
    places = [_json(directory / name).get("chat_template") for name in ("processor_config.json", "chat_template.json")]
    places.insert(len(places) if sees else 0, tokenizer.chat_template)  # of chat_template.jinja, or else its config
    source = next(filter(None, places), None)
    return source.get("default") if isinstance(source, dict) else source


def _stop_ids(directory: Path) -> list[int]:
    """Of generation_config.json, or else of config.json, as `generate` in transformers takes them."""
    config, generation = directory / "config.json", directory / "generation_config.json"
    settings = _json(config)
    for path, value in (
        (generation, _json(generation)),
        (config, settings),
        (config, settings.get("text_config") or {}),
    ):
        given = value.get("eos_token_id")
        if given is None:
            continue
        indices = given if isinstance(given, list) else [given]
        if not all(isinstance(index, int) for index in indices):
            raise UserError(f"{path}: eos_token_id: {given!r} is neither a token's id nor a list of them; mend it")
        return [index for index in indices if index >= 0]  # below it are ids of nothing
    return []


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
