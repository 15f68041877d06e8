"""Requests shared out to the engines of two devices: every answer is the one that its request gets alone."""

import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxfusion.config.run import ParallelConfig
from jaxfusion.errors import UserError
from jaxfusion.generation.decode import BLOCK
from jaxfusion.generation.pool import answer_requests
from jaxfusion.parallel import make_parallel
from tests.generation.test_engine import EOS, alone, random_request
from tests.models.test_vlm import make_model, random_params


def test_answers_of_two_devices_are_those_of_each_request_alone():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    model = make_model(vision=None)
    params, rng = random_params(model), np.random.default_rng(0)
    requests = [replace(random_request(rng, model, 0), limit=20) for _ in range(5)]
    expected, ended = [alone(model, params, request) for request in requests], []
    devices = jax.local_devices()
    assert len(devices) == 2
    shared = make_parallel(ParallelConfig()).put_state(params)
    answers = answer_requests(model, shared, requests, num_rows=3, devices=devices, eos=EOS, tell=ended.append)
    assert [answer.request for answer in answers] == requests  # in their order
    assert [answer.tokens for answer in answers] == expected
    assert {id(answer) for answer in ended} == {id(answer) for answer in answers}
    assert answer_requests(model, shared, [], num_rows=3, eos=EOS) == []

    alone_on_one = answer_requests(model, params, requests, num_rows=2, eos=EOS)
    assert [answer.tokens for answer in alone_on_one] == expected

    cut = answer_requests(model, shared, requests, num_rows=3, devices=devices, eos=(), complete=lambda answer: True)
    for answer, whole in zip(cut, expected, strict=True):
        assert (len(answer.tokens), answer.end) == (BLOCK + 1, "cancelled")  # after its first block
        assert answer.tokens[: len(whole)] == whole[: BLOCK + 1]

    refused = [*requests[:4], replace(requests[4], limit=0)]  # by the second device
    with pytest.raises(UserError, match=r"^limit: 0 was given"):
        answer_requests(model, shared, refused, num_rows=3, devices=devices, eos=EOS)
