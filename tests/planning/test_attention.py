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


@needs_cuda_build
@pytest.mark.parametrize(("card", "head_dim"), [("l4", 128), ("l4", 256), ("a100", 256)])
def test_our_kernels_blocks_fit_the_cards_shared_memory(card, head_dim):
    def loss(query, key, value, segment_ids):
        return attention(query, key, value, causal(segment_ids)).astype(jnp.float32).sum()

    mesh = described_mesh(card, "1x1x1")
    sharding = NamedSharding(mesh, PartitionSpec())
    query, key, segment_ids = (
        jax.ShapeDtypeStruct((2, 256, *heads), dtype, sharding=sharding)
        for heads, dtype in (((4, head_dim), jnp.bfloat16), ((1, head_dim), jnp.bfloat16), ((), jnp.int32))
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(query, key, key, segment_ids)
    kernels = read_program(traced.lower(lowering_platforms=("cuda",)).compile()).kernels
    assert kernels["flash_attention_backward_query"] == kernels["flash_attention_backward_key_value"] == 1
