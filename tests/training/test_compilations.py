"""Compilations are counted where they happen, and a run in which they do not end says why."""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from jaxfusion.batch import Batch, TopK
from jaxfusion.training.compilations import Recompilations, counted_compilations, shapes_of


def test_every_compilation_of_this_thread_is_counted_and_no_other():
    def compile_one(size: int) -> None:
        jax.block_until_ready(jax.jit(jnp.negative)(np.zeros(size, np.float32)))

    with counted_compilations() as compilations:
        assert compilations() == 0
        compile_one(1001)
        assert compilations() == 1
        compile_one(1001)
        assert compilations() == 1
        thread = threading.Thread(target=compile_one, args=(1002,))
        thread.start()
        thread.join()
        assert compilations() == 1
    compile_one(1003)
    assert compilations() == 1


def test_one_warning_names_what_is_new_in_the_batch():
    narrow = Batch.from_tokens(np.zeros((2, 4), np.int32), np.zeros((2, 1, 2, 2, 3), np.uint8))
    more = dict(images=np.zeros((2, 3, 2, 2, 3), np.uint8), image_segment_ids=np.zeros((2, 3), np.int32))
    wide = narrow.replace(**more, packed=True)
    watch = Recompilations()
    assert watch.note(1, narrow, True) is None and watch.note(2, wide, True) is None, "these are the first steps"
    assert watch.note(3, narrow, False) is None and watch.note(4, narrow, False) is None
    warning = watch.note(5, wide, True)
    assert warning.startswith("step 5 had to be compiled again: images uint8[2, 1, 2, 2, 3] -> uint8[2, 3, 2, 2, 3], ")
    assert "packed False -> True" in warning and "tokens" not in warning and "\n" not in warning
    assert watch.note(6, narrow, True) is None
    assert watch.count == 4


def test_what_a_teacher_said_is_told_by_its_shape():
    said = TopK(np.zeros((2, 4, 3), np.int32), np.zeros((2, 4, 3), np.float32), np.zeros((2, 4), np.float32))
    batch = Batch.from_tokens(np.zeros((2, 4), np.int32))
    assert shapes_of(batch.replace(told=said))["told"] == "float32[2, 4, 3]"
    assert shapes_of(batch)["told"] == "None"
