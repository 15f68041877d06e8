"""The decoding benchmark as it is run, and its arithmetic."""

import json

import pytest

from benchmarks import decode
from benchmarks.decode_ours import step_bytes
from benchmarks.presets import PRESETS
from benchmarks.weights import random_params
from jaxfusion.errors import UserError
from jaxfusion.hardware import HARDWARE
from jaxfusion.models.vlm import build


def test_a_run_of_several_rounds_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "found.json"
    sizes = ["--text-tokens", "3", "--new-tokens", "5", "--batch-sizes", "2", "--rounds", "2", "--repeats", "1"]
    assert decode.main(["--preset", "tiny_vlm", *sizes, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["command"] in capsys.readouterr().out
    assert (found["prompt_positions"], found["environment"]["platform"]) == (64 + 3, "cpu")
    assert found["ours"]["parameter_bytes"] == 4 * found["ours"]["parameters"]
    ours = found["batch_2"]["ours"]
    for part, tokens in (("prefill", 67), ("decode", 4)):
        seconds = ours[f"{part}_seconds"]
        assert seconds["steps"] == 2 and seconds["lower_quartile"] > 0
        assert ours[f"{part}_tokens_per_second"] == pytest.approx(2 * tokens / seconds["median"])
    assert ours["bandwidth_share"] is None  # nobody knows a CPU's


def test_a_step_reads_what_works_on_text_and_the_filled_positions():
    model = build(PRESETS["tiny_vlm"].model)
    width, inner, head, layers, vocabulary = 256, 704, 64, 4, 8192
    layer = width * head * (4 + 2 + 2 + 4) + 3 * width * inner + 2 * width
    weights = layers * layer + width + vocabulary * width
    cache = layers * 2 * 2 * head
    assert step_bytes(model, random_params(model), 8, 100) == 4 * (weights + 8 * width + 8 * 100 * cache)


def of_sides(**batch):
    card = {"device": HARDWARE["h200"].device_kind}
    return {"ours": {"dtype": "bfloat16", "environment": card}, "transformers": {"threads": 2}, "batches": {8: batch}}


def test_rates_follow_from_the_medians():
    ours = {"tokens": [[1, 2, 3, 4, 5, 6]] * 8, "prefill_seconds": [0.2, 0.1, 0.3], "decode_seconds": [0.5] * 3}
    theirs = {"tokens": [[1, 2, 3, 9, 5, 0]] * 8, "prefill_seconds": [0.4], "decode_seconds": [1.5]}
    ours["step_bytes"] = 0.05 * HARDWARE["h200"].memory_bandwidth
    batch = decode.with_rates(of_sides(ours=ours, transformers=theirs), 30, 6)["batch_8"]
    assert batch["ours"]["prefill_tokens_per_second"] == pytest.approx(8 * 30 / 0.2)
    assert batch["ours"]["decode_tokens_per_second"] == pytest.approx(8 / 0.1)
    assert batch["ours"]["bandwidth_share"] == pytest.approx(0.5)
    assert batch["transformers"]["bandwidth_share"] == pytest.approx(0.05 / 0.3)
    ratios = {key: value for key, value in batch.items() if key.startswith("transformers_")}
    assert ratios == pytest.approx(
        {
            "transformers_to_ours_prefill": 2,
            "transformers_to_ours_decode": 3,
            "transformers_equal_first_tokens": 0.75,
            "transformers_equal_tokens": 4 / 6,
        }
    )


def test_what_fails_leaves_the_others_results():
    ours = {"tokens": [[1, 2]], "prefill_seconds": [1.0], "decode_seconds": [1.0], "step_bytes": 1}
    batch = decode.with_rates(of_sides(ours=ours, transformers={"failed": "no memory"}), 3, 2)["batch_8"]
    assert batch["transformers"] == {"failed": "no memory"} and batch["ours"]["decode_tokens_per_second"] == 8
    del ours["step_bytes"]
    batch = decode.with_rates(of_sides(ours={"failed": "no memory"}, transformers=ours), 3, 2)["batch_8"]
    assert batch["transformers"]["bandwidth_share"] is None and "transformers_to_ours_decode" not in batch


def test_what_says_something_else_is_another_model():
    theirs = {"tokens": [[1, 2, 3, 4, 6]], "first_logprobs": [-9.0001]}
    found = {"ours": {"tokens": [[1, 2, 3, 4, 5]], "first_logprobs": [-9.0]}, "transformers": theirs}
    decode._check_same("transformers", found, "float32")
    theirs["tokens"] = [[1, 2, 3, 5, 5]]
    decode._check_same("transformers", found, "bfloat16")
    with pytest.raises(UserError, match=r"--peer: of the first 4 tokens of an answer 75\.0% are the same"):
        decode._check_same("transformers", found, "float32")
    theirs["first_logprobs"] = [-9.9]
    with pytest.raises(UserError, match=r"--peer: log-probabilities of transformers are 10\.0% from ours"):
        decode._check_same("transformers", found, "bfloat16")
    decode._check_same("transformers", found | {"transformers": {"failed": "no memory"}}, "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tiny_bilstm"], "--preset: invalid choice: 'tiny_bilstm'"),
        (["--preset", "tiny_vlm", "--batch-sizes", "1,0"], "--batch-sizes: 0 is not a positive number"),
        (["--preset", "tiny_vlm", "--peer", "torch"], "--peer: 'torch' is not one of transformers, torch_compile"),
        (["--preset", "tiny_vlm", "--new-tokens", "1"], "--new-tokens: 1 is too few; use 2 or more"),
        (["--preset", "tiny_vlm", "--new-tokens", "4000"], "take 4128 positions and the model's context has 1024"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, arguments, message):
    assert decode.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
