"""What `import jaxfusion` brings along, and what the model functions need: each in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

IMPORT_THE_MODELS = """
import importlib, pkgutil, sys
import jaxfusion, jaxfusion.models
for module in pkgutil.walk_packages(jaxfusion.models.__path__, "jaxfusion.models."):
    importlib.import_module(module.name)
"""

HIDE_ALL_BUT_THE_FEW = """
import importlib.metadata as metadata, re, sys
from importlib.machinery import PathFinder

def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

needed, queue = set(), ["jax", "flax", "optax", "einops", "jaxtyping"]
while queue:
    name = normal(queue.pop())
    if name not in needed:
        needed.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        queue += [re.match(r"[\\w.-]+", text)[0] for text in requirements if "extra ==" not in text]
needed -= {"orbax-checkpoint"}  # of flax's requirements the one that is large, and only its checkpoints need it
owners = metadata.packages_distributions()

class Filter(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owned_by = {normal(owner) for owner in owners.get(name.partition(".")[0], ())} - {"jaxfusion"}
        if not owned_by or owned_by & needed:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Filter
for name in ("ml_collections", "orbax.checkpoint", "tensorflow_datasets", "grain", "PIL"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is still to be had")
"""

USE_THE_MODELS = """
import jax, jax.numpy as jnp
from jaxfusion.config import from_dict

config = from_dict(jaxfusion.ModelConfig, {
    "width": 8,
    "text_embedding": {"vocab_size": 11},
    "vision": {"kind": "vit", "image_size": 4, "patch_size": 2, "width": 8, "num_layers": 1, "num_heads": 2,
               "mlp_width": 8, "class_token": False},
    "decoder": {"kind": "transformer", "num_layers": 1, "num_heads": 2},
})
model = jaxfusion.build(config)

def use(rng):  # traced, so that all Python of ours runs and nothing is compiled
    params = jaxfusion.init(model, rng)
    tokens, images = jnp.array([[9, 9, 9, 9, 1, 2]]), jnp.zeros((1, 1, 4, 4, 3), jnp.uint8)
    batch = jaxfusion.Batch.from_tokens(tokens, images, image_token_id=9)
    return params, batch, jaxfusion.forward(model, params, batch), jaxfusion.loss(model, params, batch)

params, batch, logits, loss = jax.jit(use)(jax.random.key(0))
new = jaxfusion.generate_tokens(model, params, batch, max_new_tokens=2)
assert (logits.shape, loss.shape, new.shape) == ((1, 6, 11), (), (1, 2))
"""


def _run(*code: str) -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", "".join(code)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_and_its_models_loads_nothing_heavy():
    loaded = _run(IMPORT_THE_MODELS, "print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "jaxfusion" in loaded
    heavy = {"tensorflow", "torch", "transformers", "tensorflow_datasets", "grain", "array_record", "tensorboardX"}
    heavy |= {"matplotlib", "jinja2", "tokenizers", "PIL", "sklearn", "orbax", "ml_collections"}
    heavy |= {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"}
    assert heavy.isdisjoint(loaded), heavy & set(loaded)


def test_the_model_functions_run_with_jax_flax_optax_and_einops_alone():
    _run(HIDE_ALL_BUT_THE_FEW, IMPORT_THE_MODELS, USE_THE_MODELS)
