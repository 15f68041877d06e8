"""Meshes and steps of GPUs that are only described."""

from functools import partial

import jax.numpy as jnp
import pytest

from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE, find_hardware
from jaxfusion.planning import compile_for, described_mesh, read_program
from tests.planning.cuda import CUDA, needs_cuda_build


def test_what_is_not_described_is_refused_by_name():
    with pytest.raises(UserError, match=r"^config\.plan\.hardware: 'b1000' .* h100, h100-pcie, h200"):
        described_mesh("b1000")
    for topology in ("8", "1x8", "0x1x1", "1x1x8 "):
        with pytest.raises(UserError, match=r"^config\.plan\.topology: .*'1x1x8'$"):
            described_mesh("h200", topology)


@pytest.mark.skipif(CUDA, reason="JAX's CUDA build is here, and the others run")
def test_without_the_cuda_build_the_mend_is_named():
    with pytest.raises(UserError, match=r'^h200: .*pip install -e "\.\[cuda\]"$'):
        described_mesh("h200")


@needs_cuda_build
@pytest.mark.parametrize("hardware", HARDWARE)
def test_every_card_can_be_compiled_for(hardware):
    """Two of them, which add up what they found."""

    def step(state, batch, axis_name=None):
        return state + jnp.mean(batch), jnp.sum(batch)

    compiled = partial(compile_for, step, jnp.ones(4), jnp.ones((8, 4)), hardware=hardware)
    assert read_program(compiled(topology="1x1x2")).collectives["all-reduce"] >= 1


def test_a_device_is_found_by_the_name_that_jax_has_for_it():
    assert find_hardware("NVIDIA H200 141GB HBM3e") is HARDWARE["h200"]
    assert find_hardware("NVIDIA L40S") is HARDWARE["l40s"]
    assert find_hardware("NVIDIA H100 PCIe") is HARDWARE["h100-pcie"]
    assert find_hardware("cpu") is None
