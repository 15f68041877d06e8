"""Rematerialisation: what of a layer is kept for its backward pass, and what is computed again there.

It trades time for memory, changes no number, and is a property of the training step: models are written without it.

    policy     kept of each layer, beside its input                     computed again
    none       all that its gradients read                              nothing
    dots       what matrix products and attention give                  norms, activations, rotations, and the weights
                                                                        of attention, which fused kernels never keep
    attention  the queries, keys and values, and what attention gives   the MLP and the output projection too
    full       nothing                                                  the whole layer

Layers in front of everything that trains have no backward pass: nothing of them is kept or computed again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jaxtyping import Array, Float

Remat = Literal["none", "dots", "attention", "full"]
Name = Literal["query", "key", "value", "attention"]

# The primitives of fused attention, of whose results the backward kernels read more than the layer does.
_KERNELS = ("pallas_call", "dot_product_attention_fwd_wrapper")

_remat: ContextVar[Remat] = ContextVar("remat", default="none")


@contextmanager
def rematerialised(remat: Remat) -> Iterator[None]:
    """Within it, the layers of stacks that are traced follow the policy."""
    token = _remat.set(remat)
    try:
        yield
    finally:
        _remat.reset(token)


def named(x: Float[Array, "..."], name: Name) -> Float[Array, "..."]:
    """x itself, which policies know by this name."""
    return checkpoint_name(x, name)


def layer(apply: Callable[..., Any], *, in_scan: bool) -> Callable[..., Any]:
    """`apply`, a layer as a function of arrays, under the policy in force."""
    remat = _remat.get()
    if remat == "none":
        return apply
    # In a loop's body the compiler cannot undo it, and guarding against that costs fusions.
    return jax.checkpoint(apply, policy=_POLICIES[remat], prevent_cse=not in_scan)


def _kernels_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _KERNELS


_both = checkpoint_policies.save_from_both_policies
_POLICIES = {
    "dots": _both(
        _kernels_saveable,
        _both(
            checkpoint_policies.dots_with_no_batch_dims_saveable, checkpoint_policies.save_only_these_names("attention")
        ),
    ),
    "attention": _both(
        _kernels_saveable, checkpoint_policies.save_only_these_names("query", "key", "value", "attention")
    ),
    "full": checkpoint_policies.nothing_saveable,
}
