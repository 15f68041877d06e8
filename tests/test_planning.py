"""What is read from compiled programs, here ones for the CPU and a few lines of one for eight GPUs."""

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest

from jaxfusion import planning
from jaxfusion.errors import UserError

CUDA = find_spec("jax_plugins") is not None and find_spec("jax_plugins.xla_cuda13") is not None

# Cut from a training step that was compiled for eight GPUs.
GPU_TEXT = """\
HloModule jit_train_step, is_scheduled=true

%fused_add (parameter_0: f32[4]) -> f32[4] {
  %parameter_0 = f32[4]{0} parameter(0)
  ROOT %add.1 = f32[4]{0} add(%parameter_0, %parameter_0)
}

%body (arg: (s32[], bf16[64,12,512,64])) -> (s32[], bf16[64,12,512,64]) {
  %arg = (s32[], bf16[64,12,512,64]{3,2,1,0}) parameter(0)
  %attend = (bf16[64,12,512,64]{3,1,2,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax"
  %all-reduce-start = ((bf16[512]{0}), bf16[512]{0}) all-reduce-start(%wrapped_concatenate), channel_id=1
  %all-reduce-done = bf16[512]{0} all-reduce-done(%all-reduce-start)
  ROOT %tuple = (s32[], bf16[64,12,512,64]{3,2,1,0}) tuple(%i, %y)
}

%condition (arg: (s32[], bf16[64,12,512,64])) -> pred[] {
  ROOT %compare = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (state: f32[4]) -> f32[4] {
  %state = f32[4]{0} parameter(0)
  %gemm = bf16[16,16]{1,0} fusion(%a, %b), calls=%g, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %loop = (s32[]) while(%tuple), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %all-reduce.71 = (f32[3072]{0}, f32[3072]{0}) all-reduce(%c, %d), channel_id=9
  ROOT %fusion = f32[4]{0} fusion(%state), kind=kLoop, calls=%fused_add
}
"""


class Compiled:
    """A program of which only the text is at hand."""

    def __init__(self, text: str, memory):
        self.as_text, self.memory_analysis = lambda: text, lambda: memory


def compile_here(function, *args, **jit):
    return jax.jit(function, **jit).lower(*args).compile()


def test_launches_in_a_loop_count_as_often_as_it_runs():
    memory = compile_here(lambda x: x, 1.0).memory_analysis()
    plan = planning.make_plan(Compiled(GPU_TEXT, memory))
    assert plan.kernels == {"__cudnn$fmhaSoftmax": 12, "fusion __triton_gemm": 1, "fusion": 1}
    assert plan.collectives == {"all-reduce": 13}
    assert plan.collective_bytes == {"all-reduce": 12 * 512 * 2 + 2 * 3072 * 4}
    assert list(plan.arrays.items())[:2] == [("bf16[64,12,512,64]", 64 * 12 * 512 * 64 * 2), ("f32[3072]", 3072 * 4)]


def test_a_program_compiled_here_is_read_whole():
    def step(state, weights):
        return jax.lax.scan(lambda x, w: (jnp.sort(x @ w), None), state, weights)[0]

    state, weights = jnp.ones((8, 8)), jnp.ones((5, 8, 8))
    plan = planning.make_plan(compile_here(step, state, weights, donate_argnums=0))
    assert (plan.argument_bytes, plan.output_bytes, plan.donated_bytes) == (6 * 256, 256, 256)
    assert plan.total_bytes == 6 * 256 + plan.temporary_bytes
    assert plan.kernels["sort"] == 5
    assert "f32[8,8]" in plan.arrays


def test_an_unknown_target_is_refused_by_name():
    with pytest.raises(UserError, match=r"^b1000: .* h100, h200$"):
        planning.described_mesh("b1000")


@pytest.mark.skipif(CUDA, reason="JAX's CUDA build is here; the next test runs instead")
def test_without_the_cuda_build_the_mend_is_named():
    with pytest.raises(UserError, match=r'^h200: .*pip install -e "\.\[cuda\]"$'):
        planning.described_mesh("h200")


@pytest.mark.skipif(not CUDA, reason="JAX's CUDA build is not here; the test before runs instead")
def test_a_step_for_two_gpus_adds_up_what_they_found():
    def step(state, batch, axis_name=None):
        return state + jnp.mean(batch), jnp.sum(batch)

    compiled = partial(planning.compile_for, step, jnp.ones(4), jnp.ones((8, 4)))
    assert planning.make_plan(compiled(devices=1)).collectives == {}
    assert planning.make_plan(compiled(devices=2)).collectives["all-reduce"] >= 1
