"""Requests shared out to the engines of two devices: every answer is the one that its request gets alone."""

import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np

from jaxfusion.generation.pool import answer_all
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
    answers = answer_all(model, params, requests, num_rows=3, eos=EOS)
    assert jax.device_count() == 2
    assert [answer.request for answer in answers] == requests  # in their order
    assert [answer.tokens for answer in answers] == [alone(model, params, request) for request in requests]
    assert answer_all(model, params, [], num_rows=3, eos=EOS) == []
