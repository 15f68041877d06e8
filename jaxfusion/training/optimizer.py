"""Optimizers by glob: which rule a parameter falls under, its schedule, clipping, and which parameters decay."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxfusion.config.run import OptimizerRule, TrainConfig
from jaxfusion.models.kernels import matrix_axes
from jaxfusion.training.trainable import first_fits

Params = Any
Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""] | np.floating]

# Of the root mean square of AdamW's updates, so that Muon's learning rate means what AdamW's does (Liu et al. 2025).
MUON_RMS = 0.2


def learning_rate_schedule(config: TrainConfig) -> Schedule:
    """Linear warm-up to the peak, and from there on what `config.schedule` says.

    "cosine", "linear": to 0 at num_steps (Loshchilov & Hutter 2017); "constant"; "rsqrt": the peak times
    sqrt(warmup_steps / step) (Vaswani et al. 2017), which does not depend on num_steps.
    The schedule's argument is the number of updates already made, so the first update has 1 / warmup_steps of the peak.
    Of a plain int it is computed on the host, which does not wait for the device.
    """
    start = max(config.warmup_steps, 1)

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""] | np.floating:
        xp = jnp if isinstance(step, jax.Array) else np
        progress = xp.clip((step - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1), 0, 1)
        after = {
            "cosine": lambda: 0.5 * (1 + xp.cos(xp.pi * progress)),
            "linear": lambda: 1 - progress,
            "constant": lambda: xp.float32(1),
            "rsqrt": lambda: xp.sqrt(start / xp.maximum(step + 1, start)),
        }[config.schedule]()
        return config.learning_rate * xp.minimum((step + 1) / start, after)

    return schedule


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping by the norm of all gradients (0: none), then each parameter's optimizer: of the first of `config.rules`
    that fits it, or the config's own.

    Its `init` raises UserError for a rule that no parameter falls under.
    """
    # A rule's settings, where it has them, over the config's; the last one is the default's.
    settings = [_with(config, rule) for rule in config.rules] + [config]
    if not config.rules and config.optimizer != "muon":
        chosen = _optimizer(config, matrices=False)
    else:
        by_label = {
            _label(index, matrices): _optimizer(one, matrices)
            for index, one in enumerate(settings)
            for matrices in (True, False)
        }
        chosen = optax.partition(by_label, lambda params: _labels(params, config.rules))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), chosen) if config.clip_norm else chosen


def decay_mask(params: Params) -> Params:
    """True for the matrices of linear, convolutional and recurrent layers, False for everything else.

    The name decides, since layers on a stack give biases and norms a second axis. Embeddings do not decay: a step
    touches few of their rows, and decay would shrink all the others.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)


def _with(config: TrainConfig, rule: OptimizerRule) -> TrainConfig:
    given = {name: value for name, value in vars(rule).items() if name != "globs" and value is not None}
    return replace(config, **given)


def _labels(params: Params, rules: tuple[OptimizerRule, ...]) -> Params:
    """For each parameter the number of its rule, and whether it is a linear layer's matrix."""
    paths = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    rule_of = first_fits("config.train.rules", [rule.globs for rule in rules], paths)

    def label(path: tuple, _: Any) -> str:
        name = _name(path)
        return _label(rule_of.get(name, len(rules)), matrix_axes(name) is not None)

    return jax.tree_util.tree_map_with_path(label, params)


def _label(rule: int, matrices: bool) -> str:
    return f"rule_{rule}_{'matrices' if matrices else 'others'}"


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _optimizer(config: TrainConfig, matrices: bool) -> optax.GradientTransformation:
    """matrices: whether it is for linear layers' matrices alone, which are all that Muon is for."""
    schedule, decay = learning_rate_schedule(config), config.weight_decay
    given = {name: getattr(config, name) for name in ("b1", "b2", "eps") if getattr(config, name) is not None}
    match config.optimizer:
        case "adafactor":
            # Decay is not scaled by optax's learning rate here, as it is elsewhere. The rate is the step's size itself,
            # not a share of the parameter's (as in Zhai et al. 2022), and there is no first moment to remember.
            return optax.adafactor(
                schedule,
                multiply_by_parameter_scale=False,
                weight_decay_rate=lambda step: decay * schedule(step),
                weight_decay_mask=decay_mask,
            )
        case "lion":
            moments = {name: value for name, value in given.items() if name != "eps"}
            return optax.lion(schedule, **moments, weight_decay=decay, mask=decay_mask)
        case "muon" if matrices:
            return optax.contrib.muon(
                schedule,
                beta=given.get("b1", 0.95),
                weight_decay=decay,
                weight_decay_mask=decay_mask,
                muon_weight_dimension_numbers=_muon_axes,
                consistent_rms=MUON_RMS,
            )
    # Muon's momentum is not Adam's, so what it leaves to AdamW has Adam's own.
    moments = given if config.optimizer == "adamw" else {k: v for k, v in given.items() if k != "b1"}
    return optax.adamw(schedule, **moments, weight_decay=decay, mask=decay_mask)


def _muon_axes(params: Params) -> Params:
    """Each layer of a stack is a matrix of its own, from all of a layer's inputs to all of its outputs."""

    def axes(path: tuple, _: Any) -> optax.contrib.MuonDimensionNumbers:
        found = matrix_axes(_name(path))
        return optax.contrib.MuonDimensionNumbers(found.inputs, found.outputs)

    return jax.tree_util.tree_map_with_path(axes, params)
