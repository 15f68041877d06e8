"""What several families' config.json have in common, and how a field that we cannot express is refused."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jaxfusion.config.model import RopeConfig
from jaxfusion.errors import UserError

Json = Mapping[str, Any]

ACTIVATIONS = {
    "gelu": "gelu-exact",
    "gelu_python": "gelu-exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "quick-gelu",
    "relu": "relu",
}
GATES = {"silu": "swiglu", "swish": "swiglu", "gelu_new": "geglu", "gelu_fast": "geglu", "gelu_pytorch_tanh": "geglu"}


def refuse(field: str, message: str) -> NoReturn:
    """Raises a UserError about a field of config.json."""
    raise UserError(f"config.json: {field}: {message}")


def refuse_unless(config: Json, field: str, *allowed: Any) -> None:
    """Refuses a field whose value, where it is there at all, is none of those that we compute."""
    if field in config and config[field] not in allowed:
        known = " or ".join(repr(value) for value in allowed)
        refuse(field, f"{config[field]!r} has no counterpart here; only a checkpoint with {known} can be loaded")


def activation(config: Json, field: str, default: str, names: Mapping[str, str] = ACTIVATIONS) -> str:
    """Our name of the activation that a field names; names=GATES for gated MLPs."""
    name = config.get(field) or default
    if name not in names:
        refuse(field, f"there is no activation {name!r} here; known are {', '.join(names)}")
    return names[name]


def rope(config: Json, scaling: Json | None, field: str, theta: float, max_positions: int) -> RopeConfig:
    """One kind of layer's rotary positions.

    scaling: what stands at `field` of config.json, "rope_parameters" or, in older files, "rope_scaling".
    theta:   where `scaling` does not say.
    """
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    partial = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        refuse("partial_rotary_factor", f"{partial} of each head rotates; only checkpoints where all of it does load")
    theta = float(scaling.get("rope_theta") or theta)
    original = (
        config.get("original_max_position_embeddings")
        or scaling.get("original_max_position_embeddings")
        or max_positions
    )

    def number(name: str, default: float) -> float:
        return default if scaling.get(name) is None else float(scaling[name])

    factor = number("factor", max_positions / original)
    match kind:
        case "default":
            return RopeConfig(theta=theta)
        case "linear":
            return RopeConfig(theta=theta, scaling="linear", factor=factor)
        case "llama3":
            return RopeConfig(
                theta=theta,
                scaling="llama3",
                factor=factor,
                original_positions=original,
                low_frequency=number("low_freq_factor", 1.0),
                high_frequency=number("high_freq_factor", 4.0),
            )
        case "yarn":
            return RopeConfig(
                theta=theta,
                scaling="yarn",
                factor=factor,
                original_positions=original,
                slow_turns=number("beta_slow", 1.0) or 1.0,
                fast_turns=number("beta_fast", 32.0) or 32.0,
                round_bounds=scaling.get("truncate", True),
                magnitude=_yarn_magnitude(factor, number),
            )
    known = "default, linear, llama3 and yarn"
    refuse(f"{field}.rope_type", f"there is no {kind!r} scaling of rotary positions here; known are {known}")


def _yarn_magnitude(factor: float, number: Callable[[str, float], float]) -> float:
    """DeepSeek's files give it as the quotient of two; 0 leaves it to the factor."""
    over, under = number("mscale", 0.0), number("mscale_all_dim", 0.0)
    quotient = 0.0
    if over and under and factor > 1:
        quotient = (0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1)
    return number("attention_factor", quotient)


def windows(layer_types: Sequence[str], window: int | None) -> tuple[int, ...]:
    """Of each layer, by the types that config.json lists."""
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            refuse("layer_types", f"there are no {kind!r} layers here; known are full_attention and sliding_attention")
    return tuple((window or 0) if kind == "sliding_attention" else 0 for kind in layer_types)
