"""JaxFusion: train and run language models that see.

    import jax, jaxfusion

    model = jaxfusion.build(config)
    params = jaxfusion.init(model, jax.random.key(0))
    logits = jax.jit(jaxfusion.forward, static_argnums=0)(model, params, batch)

Importing this loads only what the model functions need; data, training and reports load where they are used.
"""

from jaxfusion.batch import Batch
from jaxfusion.config import Config, LoraConfig, ModelConfig, default_config
from jaxfusion.errors import UserError
from jaxfusion.generation.beams import Beams
from jaxfusion.generation.decode import decoding_params, generate_tokens
from jaxfusion.generation.generate import generate
from jaxfusion.generation.sampling import Sampling
from jaxfusion.generation.score import score
from jaxfusion.models.tower import Tower, see
from jaxfusion.models.vlm import Model, build, complete, forward, init
from jaxfusion.pretrained.export import save_pretrained
from jaxfusion.pretrained.load import load
from jaxfusion.pretrained.peft import save_adapters
from jaxfusion.training.losses import loss
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import TrainState, create_state
from jaxfusion.training.step import train_step

__version__ = "0.1.0"
