"""What a checkpoint holds against what a model wants, told by name from the headers."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import open_checkpoint
from jaxfusion.pretrained.match import Report, match
from jaxfusion.pretrained.table import Row, flatten
from tests.pretrained import tiny


def matched(path, rows=tiny.ROWS, vocab_size=tiny.V, **settings):
    leaves = flatten(tiny.abstract(vocab_size))
    return match(open_checkpoint(path), rows, leaves, **settings)


def refusal(path, **settings) -> str:
    with pytest.raises(UserError) as caught:
        matched(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_tensor_finds_its_place(tmp_path):
    tensors = tiny.theirs()
    matches, report = matched(tiny.save(tmp_path, tensors))
    assert {match.stored.name for match in matches} == tensors.keys()
    assert all(match.stored.name == match.wanted.name for match in matches)
    assert (report.num_tensors, report.num_bytes) == (len(tensors), sum(x.nbytes for x in tensors.values()))
    assert not (report.surplus or report.ignored or report.grown)


def test_missing_tensors_are_named(tmp_path):
    tensors = tiny.theirs()
    del tensors["model.layers.1.q.weight"], tensors["vision.scale"]
    message = refusal(tiny.save(tmp_path, tensors))
    assert "2 of 16 tensors are missing: model.layers.1.q.weight, vision.scale; use the config.json" in message


def test_many_missing_tensors_are_counted(tmp_path):
    assert "and 7 more; use" in refusal(tiny.save(tmp_path, {"vision.scale": np.ones((), np.float32)}))


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path):
    tensors = tiny.theirs() | {"model.layers.2.o.weight": np.zeros((32, 24), np.float32)}
    message = refusal(tiny.save(tmp_path, tensors))
    assert (
        "model.safetensors: model.layers.2.o.weight is of shape (32, 24), and config.json asks for (32, 32)" in message
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.bool_])
def test_weights_that_are_no_floats_are_refused(tmp_path, dtype):
    tensors = tiny.theirs() | {"vision.patch.weight": np.zeros((tiny.D, tiny.C, tiny.P, tiny.P), dtype)}
    assert "vision.patch.weight holds " in refusal(tiny.save(tmp_path, tensors))


def test_a_dtype_that_came_after_us_is_refused_only_where_it_is_wanted(tmp_path):
    path = tiny.save(tmp_path, tiny.theirs())
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"vision.scale":{"dtype":"F32"', b'"vision.scale":{"dtype":"F31"'))
    assert "vision.scale holds F31; only F64, F32, F16, BF16 can be loaded" in refusal(path)
    rows = [row for row in tiny.ROWS if row.name != "vision.scale"]
    assert matched(path, rows)[1].surplus == ["vision.scale"]


def test_surplus_tensors_are_reported_unless_the_family_ignores_them(tmp_path):
    tensors = tiny.theirs() | {"classifier.bias": np.zeros(3, np.float32), "model.layers.0.position_ids": np.arange(4)}
    report = matched(tiny.save(tmp_path, tensors), ignored=["*.position_ids"])[1]
    assert (report.surplus, report.ignored) == (["classifier.bias"], ["model.layers.0.position_ids"])
    assert "warning: 1 tensors have no place in the model: classifier.bias" in str(report)
    assert "position_ids" not in str(report)


@pytest.mark.parametrize("prefix", ["", "base."])
@pytest.mark.parametrize(
    "name",
    ["layers.0.q.bias", "layers.3.norm.weight", "layers.1.inner_norm.weight", "embed.weight_scale", "embed.bias"],
)
def test_more_than_config_json_asks_for_in_parts_that_the_model_has_is_refused(tmp_path, name, prefix):
    """The model would compute something else than was trained."""
    prefix = prefix or "model."
    path = tiny.save(tmp_path, tiny.theirs() | {prefix + name: np.zeros(3, np.float32)})
    message = refusal(path, aliases=[("base.", "other."), ("base.", "model.")])
    assert (
        f"1 tensors belong to parts that the model has, and config.json asks for no such: {prefix}{name}; use"
        in message
    )
    assert matched(path, ignored=[f"{prefix}{name}"])[1].ignored == [prefix + name]


def test_parts_are_told_by_their_numbers_where_layers_are_not_stacked(tmp_path):
    rows = [Row("stages.0.layers.0.weight", "vision/scale")]
    tensors = {
        f"{name}.weight": np.zeros((), np.float32) for name in ("stages.0.layers.0", "stages.0.layers.1", "head")
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert "no such: stages.0.layers.1.weight; use" in refusal(tmp_path / "x.safetensors", rows=rows)


def test_what_the_table_wants_is_never_ignored(tmp_path):
    matches, report = matched(tiny.save(tmp_path, tiny.theirs()), ignored=["lm_head.weight", "vision.*"])
    assert (len(matches), report.ignored) == (16, [])


def test_aliases_are_other_names_of_the_same_tensors(tmp_path):
    aliases = [("layers.", "model.layers."), ("embed.", "model.embed."), ("", "nowhere.")]
    tensors = {name.removeprefix("model."): tensor for name, tensor in tiny.theirs().items()}
    matches, report = matched(tiny.save(tmp_path / "base", tensors), aliases=aliases)
    assert {m.wanted.name: m.stored.name for m in matches}["model.embed.weight"] == "embed.weight"
    assert not report.surplus
    # names that are right already stay, even where an alias would fit
    assert len(matched(tiny.save(tmp_path / "whole", tiny.theirs()), aliases=aliases)[0]) == 16


def test_two_names_of_one_tensor_are_refused(tmp_path):
    tensors = tiny.theirs() | {"embed.weight": np.zeros((tiny.V, tiny.D), np.float32)}
    message = refusal(tiny.save(tmp_path, tensors), aliases=[("embed.", "model.embed.")])
    assert "are both the model's model.embed.weight; remove one" in message


def test_the_first_berts_names_of_norms_are_known(tmp_path):
    rows = [Row("a.LayerNorm.weight", "vision/scale"), Row("a.LayerNorm.bias", "vision/scale")]
    save_file(
        {"a.LayerNorm.gamma": np.zeros((), np.float32), "a.LayerNorm.beta": np.ones((), np.float32)},
        tmp_path / "x.safetensors",
    )
    matches, _ = matched(tmp_path / "x.safetensors", rows)
    assert [m.stored.name for m in matches] == ["a.LayerNorm.gamma", "a.LayerNorm.beta"]


# --- tied embeddings --------------------------------------------------------------------------------------------------

TIED = [row for row in tiny.ROWS if row.name != "lm_head.weight"]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_tied_embeddings_may_lack_the_head_or_hold_it_once_more(tmp_path, dtype):
    tensors = tiny.theirs(dtype)
    head = tensors.pop("lm_head.weight")
    assert len(matched(tiny.save(tmp_path / "without", tensors), TIED)[0]) == 15
    tensors["lm_head.weight"] = tensors["model.embed.weight"].copy()
    report = matched(tiny.save(tmp_path / "with", tensors), TIED)[1]
    assert (report.ignored, report.surplus) == (["lm_head.weight"], [])
    tensors["lm_head.weight"] = head
    message = refusal(tiny.save(tmp_path / "other", tensors), rows=TIED, ignored=["lm_head.weight"])
    assert "lm_head.weight differs from model.embed.weight, to which config.json ties it; set" in message


# --- grown vocabularies -----------------------------------------------------------------------------------------------


def test_a_vocabulary_may_be_larger_than_the_files_and_never_smaller(tmp_path):
    path = tiny.save(tmp_path, tiny.theirs())
    report = matched(path, vocab_size=tiny.V + 3)[1]
    assert report.grown == {"model.embed.weight": 3, "lm_head.weight": 3}
    assert "lm_head.weight: 3 new rows, each the mean of the others" in str(report)
    assert "of shape (40, 32), and config.json asks for (39, 32)" in refusal(path, vocab_size=tiny.V - 1)


def test_only_vocabularies_grow(tmp_path):
    rows = [Row("vision.patch.weight", "projector/kernel")]
    save_file({"vision.patch.weight": np.zeros((tiny.D - 1, tiny.D), np.float32)}, tmp_path / "x.safetensors")
    assert "is of shape (31, 32)" in refusal(tmp_path / "x.safetensors", rows=rows)


def test_a_report_says_what_was_read():
    assert str(Report("here", 3, 2_000_000, 0.25)) == "here: 3 tensors, 2 MB in 0.2 s"
