"""cuDNN's attention, compiled for a card that is not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxfusion.models.attention import attention, bidirectional, causal
from jaxfusion.planning.described import described_mesh
from jaxfusion.planning.program import read_program
from tests.planning.cuda import needs_cuda_build


@needs_cuda_build
@pytest.mark.parametrize("make_interval", [causal, bidirectional])
@pytest.mark.parametrize("length", [128, 197])  # of 14 x 14 patches and a class token
def test_cudnn_gives_gradients_of_any_length(make_interval, length):
    def loss(query, key, value, segment_ids):
        interval = make_interval(segment_ids, packed=False)
        return attention(query, key, value, interval, implementation="cudnn").astype(jnp.float32).sum()

    sharding = NamedSharding(described_mesh("h100", "1x1x1"), PartitionSpec())
    arrays = [jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16, sharding=sharding)] * 3
    segment_ids = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=sharding)
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays, segment_ids)
    kernels = read_program(traced.lower(lowering_platforms=("cuda",)).compile()).kernels
    assert kernels["__cudnn$fmhaSoftmax"] == kernels["__cudnn$fmhaSoftmaxBackward"] == 1
