"""The bidirectional tagger of the `bilstm` presets in plain PyTorch, whose LSTM is cuDNN's on a GPU."""

import numpy as np
import torch
from torch import nn

from benchmarks.padded import pad
from benchmarks.peer import DEVICE, Peer
from benchmarks.presets import Preset
from benchmarks.synthetic import synthetic_batch
from benchmarks.weights import random_params
from jaxfusion.config.model import ModelConfig
from jaxfusion.models.vlm import build
from jaxfusion.pretrained.table import flatten


class Tagger(nn.Module):
    """VGG with group norms, its cells side by side through one matrix, added to every token; LSTM; one matrix."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        vision, channels, layers = config.vision, 3, []
        for depth, width in zip(vision.stage_depths, vision.stage_widths, strict=True):
            for _ in range(depth):
                groups = max(g for g in range(1, 33) if width % g == 0 and width // g >= 4)
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.vision = nn.Sequential(*layers)
        self.projector = nn.Linear(vision.num_tokens * channels, config.width)
        self.embedding = nn.Embedding(config.text_embedding.vocab_size, config.width)
        depth = config.encoder.num_layers
        self.lstm = nn.LSTM(config.width, config.width // 2, depth, bidirectional=True, batch_first=True)
        self.output = nn.Linear(config.width, config.text_embedding.vocab_size, bias=False)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """tokens: [N, L]. lengths: [N], on the host. images: [N, 3, H, W]. Returns logits, [N, L, V]."""
        cells = self.vision(images).permute(0, 2, 3, 1).flatten(1)
        x = self.embedding(tokens) + self.projector(cells)[:, None]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return self.output(x)


def make_peer(preset: Preset) -> Peer:
    config = preset.model
    model = Tagger(config)
    _fill(model, flatten(random_params(build(config))))
    model.to(DEVICE)
    padded = pad(synthetic_batch(preset), None, shifted=False, mean=config.vision.mean, std=config.vision.std)
    tokens, labels = (torch.from_numpy(array).to(DEVICE) for array in (padded.tokens, padded.labels))
    images = torch.from_numpy(padded.images[:, 0]).permute(0, 3, 1, 2).contiguous().to(DEVICE)
    lengths = torch.from_numpy(padded.real.sum(axis=1))

    def loss_of(model: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(model(tokens, lengths, images).flatten(0, 1), labels.flatten())

    return Peer(preset, loss_of, model, padded.tokens.shape)


def _fill(model: Tagger, leaves: dict[str, np.ndarray]) -> None:
    """Puts our weights into the model, whose second biases of the LSTM are zero and stay out of training."""
    values = {
        "projector.weight": leaves["projector/linear/kernel"].T,
        "projector.bias": leaves["projector/linear/bias"],
        "embedding.weight": leaves["text_embedding/embedding"],
        "output.weight": leaves["decoder/kernel"].T,
    }
    convolutions = [name for name, layer in model.vision.named_children() if isinstance(layer, nn.Conv2d)]
    ours = sorted({path.split("/")[1] for path in leaves if path.startswith("vision/")})
    for name, layer in zip(convolutions, ours, strict=True):
        values[f"vision.{name}.weight"] = leaves[f"vision/{layer}/conv/kernel"].transpose(3, 2, 0, 1)
        values[f"vision.{int(name) + 1}.weight"] = leaves[f"vision/{layer}/norm/scale"]
        values[f"vision.{int(name) + 1}.bias"] = leaves[f"vision/{layer}/norm/bias"]
    for layer in range(model.lstm.num_layers):
        for way, suffix in enumerate(("", "_reverse")):
            place = f"l{layer}{suffix}"
            values[f"lstm.weight_ih_{place}"] = leaves[f"encoder/layer_{layer}_input_kernel"][way].T
            values[f"lstm.weight_hh_{place}"] = leaves[f"encoder/layer_{layer}_hidden_kernel"][way].T
            values[f"lstm.bias_ih_{place}"] = leaves[f"encoder/layer_{layer}_bias"][way]
            values[f"lstm.bias_hh_{place}"] = np.zeros_like(leaves[f"encoder/layer_{layer}_bias"][way])
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in values.items()})
    for name, parameter in model.lstm.named_parameters():
        parameter.requires_grad_(not name.startswith("bias_hh"))
