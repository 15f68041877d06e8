"""A family that is none of transformers', with every kind of row, and its files written by safetensors itself."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxfusion.pretrained.table import Row

V, D, N, H, L, P, C = 40, 32, 4, 8, 3, 2, 3  # vocabulary, width, heads, their width, layers, patch, channels

ROWS = [
    Row("model.embed.weight", "text_embedding/embedding"),
    Row("model.layers.{layer}.norm.weight", "decoder/norm/scale"),
    Row("model.layers.{layer}.q.weight", "decoder/query/kernel", "(n h) d -> d n h"),
    Row("model.layers.{layer}.o.weight", "decoder/out/kernel", "d (n h) -> n h d"),
    Row("model.layers.{layer}.kv.weight", ("decoder/key/kernel", "decoder/value/kernel"), "d (two n h) -> two d n h"),
    Row("vision.patch.weight", "vision/patch/kernel", "d c p q -> (p q c) d", {"p": P, "q": P}),
    Row("vision.scale", "vision/scale"),
    Row("lm_head.weight", "output/kernel", "v d -> d v"),
]


def abstract(vocab_size: int = V, dtype: Any = np.float32) -> dict[str, Any]:
    """Shapes of our parameters, with a projector that is in no file."""
    shapes = {
        "text_embedding": {"embedding": (vocab_size, D)},
        "decoder": {
            "norm": {"scale": (L, D)},
            "query": {"kernel": (L, D, N, H)},
            "out": {"kernel": (L, N, H, D)},
            "key": {"kernel": (L, D, N, H)},
            "value": {"kernel": (L, D, N, H)},
        },
        "vision": {"patch": {"kernel": (P * P * C, D)}, "scale": ()},
        "projector": {"kernel": (D, D)},
        "output": {"kernel": (D, vocab_size)},
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype), shapes, is_leaf=lambda value: isinstance(value, tuple)
    )


def theirs(dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under the names and shapes that the files have."""
    shapes = {
        "model.embed.weight": (V, D),
        "vision.patch.weight": (D, C, P, P),
        "vision.scale": (),
        "lm_head.weight": (V, D),
    }
    for layer in range(L):
        shapes |= {
            f"model.layers.{layer}.norm.weight": (D,),
            f"model.layers.{layer}.q.weight": (N * H, D),
            f"model.layers.{layer}.o.weight": (D, N * H),
            f"model.layers.{layer}.kv.weight": (D, 2 * N * H),
        }
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def ours(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the parameters must be, by plain NumPy."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([tensors[f"model.layers.{layer}.{name}.weight"] for layer in range(L)])

    kv = stacked("kv").reshape(L, D, 2, N, H)
    return {
        "text_embedding/embedding": tensors["model.embed.weight"],
        "decoder/norm/scale": stacked("norm"),
        "decoder/query/kernel": stacked("q").swapaxes(1, 2).reshape(L, D, N, H),
        "decoder/out/kernel": stacked("o").swapaxes(1, 2).reshape(L, N, H, D),
        "decoder/key/kernel": kv[:, :, 0],
        "decoder/value/kernel": kv[:, :, 1],
        "vision/patch/kernel": tensors["vision.patch.weight"].transpose(2, 3, 1, 0).reshape(P * P * C, D),
        "vision/scale": tensors["vision.scale"],
        "output/kernel": tensors["lm_head.weight"].T,
    }


def save(directory: Path, tensors: dict[str, np.ndarray], num_shards: int = 1, **config: Any) -> Path:
    """A checkpoint's directory, as transformers lays it out."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "tiny"} | config))
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return directory
    owners = {name: f"model-{i % num_shards + 1:05}-of-{num_shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(owners.values()):
        save_file({name: tensors[name] for name, owner in owners.items() if owner == file}, directory / file)
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": owners}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
