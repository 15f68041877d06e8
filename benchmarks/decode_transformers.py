"""Transformers' `generate` with a static cache, eager or its steps compiled by torch; attention by torch's SDPA."""

import time
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.padded import pad
from benchmarks.peer import DEVICE
from benchmarks.peer_transformers import fill, inputs_of, make_model
from benchmarks.presets import Preset
from benchmarks.synthetic import prompt_batch


class Theirs:
    """As `decode_ours.Ours`. compiled: as transformers compiles it, each batch size for itself; never the prompts."""

    def __init__(self, preset: Preset, text_tokens: int, new_tokens: int, compiled: bool) -> None:
        torch.backends.cudnn.allow_tf32 = False
        self.preset, self.text_tokens, self.new_tokens = preset, text_tokens, new_tokens
        self.config, self.model = make_model(preset)
        fill(self.model.eval(), preset)
        for parameter in self.model.parameters():  # and no buffer: rotations stay float32
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(getattr(torch, preset.model.dtype))
        self.settings = transformers.GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=not compiled,
        )
        if compiled:
            self.settings.compile_config = transformers.CompileConfig(dynamic=False)
            self.settings.compile_config._compile_all_devices = True  # else only an accelerator's steps would be
        self.model.generation_config = self.settings  # which fills in what the other leaves open, an end among it

    def ready(self, rows: int) -> None:
        """Puts the prompts on the device."""
        vision = self.preset.model.vision
        batch = prompt_batch(self.preset, rows, self.text_tokens)
        padded = pad(batch, self.config.image_token_id, shifted=True, mean=vision.mean, std=vision.std)
        inputs = inputs_of(padded, self.config.model_type)
        inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, self.preset.model.dtype))
        del inputs["labels"]
        self.inputs = {name: value.to(DEVICE) for name, value in inputs.items()}

    def generate(self) -> tuple[np.ndarray, float, float]:
        """Tokens (int[B, N]), and the seconds up to the first of each row and from there to the end."""
        first = _FirstToken()
        start = time.perf_counter()
        found = self.model.generate(
            **self.inputs,
            generation_config=self.settings,
            logits_processor=transformers.LogitsProcessorList([first]),
        )
        tokens = found[:, self.inputs["input_ids"].shape[1] :].cpu().numpy()
        end = time.perf_counter()
        if tokens.shape[1] != self.new_tokens:
            raise RuntimeError(f"generate chose {tokens.shape[1]} tokens of {self.new_tokens}")
        self.first_logprobs = first.scores.float().log_softmax(-1).amax(-1).cpu().numpy()
        return tokens, first.at - start, end - first.at

    def facts(self) -> dict[str, Any]:
        return {
            "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }


class _FirstToken(transformers.LogitsProcessor):
    """Changes nothing, and knows when the prompts had been read, and what then followed."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.at is None:
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            self.at, self.scores = time.perf_counter(), scores
        return scores
