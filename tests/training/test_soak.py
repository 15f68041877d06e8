"""The short form of soak.py, without dropout: tests/training/test_loop.py kills a run that has it."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_run_that_is_killed_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--kills", "3", "--layers", "0"]
    command += ["--directory", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["equal"] is True and sum(result["kills"].values()) == 3
