"""What tells that a run's data are others now, though there are as many."""

import pytest

from jaxfusion.config.run import DataConfig
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.sources import open_files
from jaxfusion.data.sources.contents import BLOCK, contents_of
from tests.data.sources.conftest import picture


def contents(**settings):
    config = DataConfig(**settings)
    source, _ = open_files(config, config.path, "config.data.path", ())
    return contents_of(source, config)


def test_files_are_known_by_their_sizes_and_ends_wherever_they_are(tmp_path):
    def write(name, *texts):
        (tmp_path / name).mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (tmp_path / name / f"{number}.txt").write_text(text)
        return contents(name="text", path=str(tmp_path / name))

    long = "x" * (3 * BLOCK)
    first = write("a", "one\n" + long, "two\n")
    assert write("b", "one\n" + long, "two\n") == first
    others = ["ona\n" + long, "two\n"], ["one\n" + long[1:] + "y", "two\n"], ["one\n" + long + "x", "two\n"]
    assert len({first, *(write(f"c{n}", *texts) for n, texts in enumerate(others)), write("d", "two\n")}) == 5
    assert write("e", "two\n", "one\n" + long) != first  # their order is that of the records


def test_a_picture_in_another_class_is_another_record(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(picture(1))
    before = contents(name="folder", path=str(tmp_path))
    (tmp_path / "a/1.png").rename(tmp_path / "b/1.png")
    assert contents(name="folder", path=str(tmp_path)) != before


@pytest.mark.parametrize("other", [{"train_split": "test"}, {"train_split": "train[:50%]"}])
def test_a_prepared_data_set_is_known_by_its_split(small_data, other):
    here = {"data_dir": str(small_data)}
    found = [contents_of(open_dataset(c).train, c) for c in (DataConfig(**here), DataConfig(**here, **other))]
    assert found[0] != found[1]
    assert contents_of(open_dataset(DataConfig(**here)).train, DataConfig(**here)) == found[0]
