"""The blocked copy against NumPy's, in every order of axes and every pair of dtypes."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxfusion.pretrained.blocks import copy_finite, empty, is_finite

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def random(shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("axes", [*itertools.permutations(range(2)), *itertools.permutations(range(3))], ids=str)
def test_any_order_of_axes(axes):
    shape = {2: (515, 700), 3: (70, 150, 90)}[len(axes)]
    value = random(shape).transpose(axes)
    out = empty(value.shape, np.dtype(np.float32))
    assert copy_finite(out, value)
    np.testing.assert_array_equal(out, value)


@pytest.mark.parametrize("part", [np.s_[100:400, 30:], np.s_[::3, ::2], np.s_[:, 7:8], np.s_[::-1, 5:600]], ids=str)
def test_a_part_of_a_transposed_array_into_a_part_of_another(part):
    value = random((700, 515)).T[part]
    room = np.zeros((2, *value.shape), np.float32)
    assert copy_finite(room[1], value)
    np.testing.assert_array_equal(room, [np.zeros_like(value), value])


@pytest.mark.parametrize(("source", "target"), [*itertools.product(DTYPES, DTYPES)], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("transposed", [False, True])
def test_any_dtypes(source, target, transposed):
    value = random((512, 300), source)
    value = value.T if transposed else value
    out = empty(value.shape, np.dtype(target))
    assert copy_finite(out, value)
    np.testing.assert_array_equal(out, value.astype(target))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1, 1)])
def test_small_and_empty_arrays(shape):
    value, out = random(shape), empty(shape, np.dtype(np.float32))
    assert copy_finite(out, np.asarray(value))
    np.testing.assert_array_equal(out, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_wherever_it_is(dtype, bad):
    values = np.zeros((3, 5), dtype)
    values[0, 0] = np.finfo(np.float16).min
    values[2, 3] = ml_dtypes.finfo(dtype).max
    values[1, 1] = ml_dtypes.finfo(dtype).smallest_subnormal
    assert is_finite(values)
    assert is_finite(values.T)
    for where in [(0, 0), (2, 4), (1, 2)]:
        broken = values.copy()
        broken[where] = bad
        assert not is_finite(broken)
        assert not is_finite(broken.T)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("where", [(0, 0), (511, 299), (300, 5)])
def test_the_copy_finds_it_too(transposed, where):
    value = random((512, 300))
    value[where] = np.nan
    value = value.T if transposed else value
    assert not copy_finite(empty(value.shape, np.dtype(np.float32)), value)


def test_a_value_too_large_for_its_new_dtype_is_found():
    with np.errstate(over="ignore"):
        assert not copy_finite(empty((2,), np.dtype(np.float16)), np.float32([1, 1e6]))


@pytest.mark.parametrize("shape", [(5, 7), (1000, 1000)])
def test_jax_takes_an_empty_array_of_ours_as_it_is(shape):
    ours = empty(shape, np.dtype(np.float32))
    ours[...] = 3
    assert jax.device_put(ours).unsafe_buffer_pointer() == ours.ctypes.data
