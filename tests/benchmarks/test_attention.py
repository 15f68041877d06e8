"""The kernels' check: its reference agrees with the tests' own, it passes what is right and finds what is not."""

import json

import numpy as np
import pytest

from benchmarks import attention as benchmark
from benchmarks.attention import CASES, exact_attention, main, make_interval
from jaxfusion.models.attention import attention
from tests import references


@pytest.mark.parametrize("name, softcap", [("causal, padded", 0.0), ("packed, window", 5.0), ("prefix-LM", 0.0)])
def test_the_reference_is_that_of_the_tests(name, softcap):
    rng, length = np.random.default_rng(0), 18
    shapes = [(2, length, heads, 4) for heads in (4, 2, 2, 4)]
    query, key, value, by_out = (rng.normal(size=shape) for shape in shapes)
    interval = make_interval(name, length)
    position = np.arange(length)
    seen = (position >= interval.start[..., None]) & (position < interval.end[..., None])
    ours = exact_attention(query, key, value, by_out, interval, softcap)
    out = references.attention(query, key, value, seen, softcap=softcap or None)
    gradients = references.attention_gradients(query, key, value, seen, by_out, softcap=softcap or None)
    for found, exact in zip(ours, (out, *gradients), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12)


# Left out are "causal", which is "causal, padded" with nothing padded; "full", "full, odd" at an even length;
# and "packed towers", whose masks tests/models/test_flash_attention.py has. All differ in their heads, too.
SEVERAL = [case for case in CASES if case.name not in ("causal", "full", "packed towers")]


def test_kernels_are_right_on_every_kind_of_interval(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "CASES", SEVERAL)
    path = tmp_path / "found.json"
    assert main(["--length", "36", "--rounds", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["interval"], row["kernel"]) for row in rows] == [
        (case.name, kernel) for case in SEVERAL for kernel in ("xla", "pallas")
    ]
    assert {row["length"] for row in rows} == {36, 37}
    assert capsys.readouterr().out.count("(chosen)") == len(SEVERAL)


def test_a_kernel_that_sees_too_much_is_found(monkeypatch, capsys):
    def too_much(query, key, value, interval, **settings):
        return attention(query, key, value, interval.replace(end=interval.end + 1), **settings)

    monkeypatch.setattr(benchmark, "attention", too_much)
    monkeypatch.setattr(benchmark, "CASES", [case for case in CASES if case.name == "packed"])
    assert main(["--length", "36", "--rounds", "1"]) == 1
    found = capsys.readouterr().err.splitlines()
    assert found == [f"benchmarks.attention: {kernel} is wrong: packed" for kernel in ("xla", "pallas")]


def test_a_mistake_is_one_line(capsys):
    assert main(["--length", "0"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.attention: ")
