"""What is read from compiled programs, here ones for the CPU and a few lines of one for eight GPUs."""

import jax
import jax.numpy as jnp

from jaxfusion.planning import read_program

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
  %see = bf16[64]{0} custom-call(%x), custom_call_target="__gpu$xla.gpu.triton", backend_config={name = "flash"}
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
    plan = read_program(Compiled(GPU_TEXT, memory))
    assert plan.kernels == {"__cudnn$fmhaSoftmax": 12, "flash": 12, "fusion __triton_gemm": 1, "fusion": 1}
    assert plan.collectives == {"all-reduce": 13}
    assert plan.collective_bytes == {"all-reduce": 12 * 512 * 2 + 2 * 3072 * 4}
    assert list(plan.arrays.items())[:2] == [("bf16[64,12,512,64]", 64 * 12 * 512 * 64 * 2), ("f32[3072]", 3072 * 4)]


def test_a_program_compiled_here_is_read_whole():
    def step(state, weights):
        return jax.lax.scan(lambda x, w: (jnp.sort(x @ w), None), state, weights)[0]

    state, weights = jnp.ones((8, 8)), jnp.ones((5, 8, 8))
    plan = read_program(compile_here(step, state, weights, donate_argnums=0))
    assert (plan.argument_bytes, plan.output_bytes, plan.donated_bytes) == (6 * 256, 256, 256)
    assert plan.total_bytes == 6 * 256 + plan.temporary_bytes
    assert plan.kernels["sort"] == 5
    assert "f32[8,8]" in plan.arrays
