"""Tiny tokenizers of the kinds that checkpoints have, in directories as transformers writes them; chat templates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from jaxfusion.config.model import ModelConfig, ViTConfig

TEXTS = [
    "what is there at the top left, a large red 3 or a small blue 7?",
    "USER: where is the question\nASSISTANT: at the bottom of the picture\n",
    "user\nassistant\nmodel\nsystem\nYou are a helpful assistant. Nothing else is there, I see.",
] * 20
WORDS = r"'s|'t| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = """{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

# As CHATML, but the last reply shows a thought, and earlier replies lose theirs.
THINKING = """{%- set last = namespace(user=0) -%}
{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else '' -%}
    {%- set thought = '' -%}
    {%- if message.role == 'assistant' and '</think>' in content -%}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' and loop.index0 > last.user -%}
        {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
    {%- else -%}{{- content -}}{%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

LLAMA3 = """{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}
{%- endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate') }}{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' }}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- else -%}{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

LLAVA = """{% for message in messages %}{{ message['role'].upper() + ': ' }}
{%- for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}
{%- if message['role'] == 'assistant' %}{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}
{%- else %}{{ content['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def byte_bpe(specials: Sequence[str], plain_added: Sequence[str] = ()) -> Tokenizer:
    """As of GPT-2, Llama 3 and Qwen: all bytes, merges within words."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain_added])
    return backend


def sentencepiece_bpe(specials: Sequence[str], prepend: bool) -> Tokenizer:
    """As of Llama 2 (which puts a space before every text) and Gemma: spaces are letters, bytes are a last resort."""
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if prepend else [replace])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")  # in training alone
    alphabet = sorted(set("".join(TEXTS)) - {"\n", " "} | {"▁"})
    backend.train_from_iterator(
        [text.replace("\n", " ") for text in TEXTS],
        trainers.BpeTrainer(
            vocab_size=900, special_tokens=[*specials, *octets], initial_alphabet=alphabet, show_progress=False
        ),
    )
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in octets]
    state["pre_tokenizer"] = None
    backend = Tokenizer.from_str(json.dumps(state))
    if not prepend:
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def adds_bos(backend: Tokenizer, name: str) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, backend.token_to_id(name))]
    )
    return backend


def write(directory: Path, backend: Tokenizer, generation: dict | None = None, **settings: Any) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=backend, **settings).save_pretrained(directory)
    if generation:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def qwen(directory: Path, template: str = CHATML) -> Path:
    """The end of a turn is eos; nothing stands at the beginning; thoughts are tokens but not special ones."""
    backend = byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    stop = [backend.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
    return write(directory, backend, {"eos_token_id": stop}, chat_template=template, **names)


def llama3(directory: Path) -> Path:
    """No padding token, and an eos that does not end turns."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = adds_bos(byte_bpe(specials), "<|begin_of_text|>")
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return write(directory, backend, chat_template=LLAMA3, **names)


def gemma(directory: Path) -> Path:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    specials += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    backend = adds_bos(sentencepiece_bpe(specials, prepend=False), "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    names |= {"image_token": "<image_soft_token>"}
    stop = [backend.token_to_id(name) for name in ("<eos>", "<end_of_turn>")]
    return write(directory, backend, {"eos_token_id": stop}, chat_template=GEMMA, **names)


def llava(directory: Path, template: str | None = LLAVA) -> Path:
    """The image token is known by its id in the model's config alone."""
    backend = adds_bos(sentencepiece_bpe(["<unk>", "<s>", "</s>", "<image>", "<pad>"], prepend=True), "<s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write(directory, backend, chat_template=template, **names)
    config = {"model_type": "llava", "image_token_index": backend.token_to_id("<image>"), "text_config": {}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def gpt2(directory: Path) -> Path:
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return write(directory, byte_bpe(["<|endoftext|>"]), **names)


def bert(directory: Path) -> Path:
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(names.values()), show_progress=False)
    )
    ids = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return write(directory, backend, **names)


def unigram(directory: Path) -> Path:
    """As of T5: the special tokens are pieces of the model as well, where plain text could reach them."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(names.values()), unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return write(directory, backend, **names)


KINDS = {build.__name__: build for build in (qwen, llama3, gemma, llava, gpt2, bert, unigram)}


def seeing() -> ModelConfig:
    """A model that sees images; nothing else about it matters to a tokenizer."""
    return ModelConfig(vision=ViTConfig())
