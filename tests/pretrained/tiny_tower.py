"""A SigLIP tower's checkpoint of random weights, without torch."""

import json
from pathlib import Path

import jax
import numpy as np

from jaxfusion.models.tower import Tower
from jaxfusion.pretrained.export import save_pretrained
from jaxfusion.pretrained.load import init_tower
from jaxfusion.pretrained.origin import Origin
from jaxfusion.pretrained.siglip import read_vision

CONFIG = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
PROCESSOR = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 24, "width": 24}}


def save_tower(directory: Path, seed: int = 0, **settings: int) -> Path:
    config = CONFIG | settings
    size = {"height": config["image_size"], "width": config["image_size"]}
    files = {"config.json": config, "preprocessor_config.json": PROCESSOR | {"size": size}}
    origin = Origin({"vision": {name: json.dumps(content).encode() for name, content in files.items()}})
    tower = Tower(read_vision(config), origin=origin)
    shapes = jax.eval_shape(lambda rng: init_tower(tower, rng), jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    save_pretrained(tower, params, directory)
    return directory
