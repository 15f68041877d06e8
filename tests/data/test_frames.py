"""Records with a video, from real files to rows: which frames, where they stand, and what the model is told of them."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.data.bad_records import BadRecords
from jaxfusion.data.dataset import open_dataset
from jaxfusion.data.images import encode_png
from jaxfusion.data.loader import Reader, settle_images_per_row, train_iterator
from jaxfusion.data.messages import Image, answer, ask
from jaxfusion.data.prepared import columns_of, from_bytes, to_bytes
from jaxfusion.data.tokenise import Layout, tokenise
from jaxfusion.data.video import Video
from jaxfusion.errors import RecordError, UserError
from jaxfusion.generation.generate import prompt_segment, user_messages
from jaxfusion.text.trained import TrainedTokenizer
from tests.data.test_video import FRAMES, clip

MODEL = {
    "width": 16,
    "text_embedding": {"vocab_size": 262, "max_positions": 128},
    "vision": {"kind": "vgg", "image_size": 32, "stage_depths": [1], "stage_widths": [4]},
    "projector": {"kind": "linear", "pool": "mean"},
    "decoder": {"kind": "transformer", "num_layers": 1, "num_heads": 2},
}
SQUARE = FRAMES[:, :, :32]  # as large as the model's pictures: what is seen is what was stored
PLACES = [3, 11, 18, 26]  # shown in the middles of four quarters of 3 s
TIMES = ["0.3s", "1.1s", "1.8s", "2.6s"]
TOKENIZER = TrainedTokenizer.train(["x"], 262)


@pytest.fixture(scope="module")
def content():
    return clip(frames=SQUARE)


def reader_of(**data):
    config = from_dict(Config, {"model": MODEL, "data": {"row_length": 96, "frames": 4} | data})
    return Reader(config.data, config.model, (), bad=BadRecords(config.data.bad_records))


def frames(parts):
    """The numbers of the clip's frames that images are, and the texts between them."""
    return [
        int(np.abs(SQUARE.astype(int) - part.value).sum((1, 2, 3)).argmin()) if isinstance(part, Image) else part
        for part in parts
    ]


def write_lines(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "json", "path": f"{folder}/rows.jsonl"}


def test_a_files_frames_come_before_the_text_with_their_times(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    reader = reader_of(**write_lines(tmp_path, [{"video": "a.mp4", "caption": "grey"}] * 20))
    (sample,) = reader.read(open_dataset(reader.data).train, 0)
    asked = sample.messages[0]
    assert frames(asked.parts) == PLACES and asked.text == ""
    assert frames(asked.told) == [piece for pair in zip(TIMES, PLACES, strict=True) for piece in pair]
    segment = tokenise(sample, TOKENIZER, Layout.of(reader.model))
    text = [TOKENIZER.encode(time) for time in TIMES]
    image, bos, sep = TOKENIZER.image_id, TOKENIZER.bos_id, TOKENIZER.sep_id
    assert segment.tokens[: segment.prompt_mask.sum()].tolist() == [
        bos,
        *(token for time in text for token in (*time, image)),
        sep,
    ]
    assert segment.visual_index[segment.tokens == image].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(segment.images, SQUARE[PLACES])
    untold = replace(reader, data=replace(reader.data, frame_times=False))
    (sample,) = untold.read(open_dataset(reader.data).train, 0)
    assert frames(sample.messages[0].told) == PLACES


def test_rows_hold_all_frames_and_room_for_them_is_found_without_decoding(content, tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / f"{number}.mp4").write_bytes(clip(frames=SQUARE[: (30, 2)[number]]))
    reader = reader_of(**write_lines(tmp_path, [{"video": f"{n % 2}.mp4", "caption": "grey"} for n in range(20)]))
    source = open_dataset(reader.data).train
    with monkeypatch.context() as patch:
        patch.setattr("jaxfusion.data.video._seen", None)
        assert settle_images_per_row(source, reader, TOKENIZER, 0) == 4
    reader = replace(reader, data=replace(reader.data, images_per_row=4))
    batch = next(train_iterator(source, reader, TOKENIZER, batch_size=8, seed=0))
    assert batch.images.shape == (8, 4, 32, 32, 3)
    used = (batch.image_segment_ids > 0).sum(axis=1)
    assert set(used.tolist()) == {2, 4}
    for row, number in enumerate(used):
        np.testing.assert_array_equal(batch.images[row, :number], SQUARE[PLACES if number == 4 else [0, 1]])


def test_frames_may_be_pictures(tmp_path):
    for number, frame in enumerate(SQUARE[:8]):
        (tmp_path / f"{number}.png").write_bytes(encode_png(frame))
    row = {"video": [f"{number}.png" for number in range(8)], "caption": "grey"}
    times = [number / 2 + 3 for number in range(8)]
    reader = reader_of(
        **write_lines(tmp_path, [row, row | {"video_times": times}, row | {"video_times": times[1:]}] * 7)
    )
    source = open_dataset(reader.data).train
    assert frames(reader.read(source, 0)[0].messages[0].told) == [1, 3, 5, 7]
    assert frames(reader.read(source, 1)[0].messages[0].told) == ["0.5s", 1, "1.5s", 3, "2.5s", 5, "3.5s", 7]
    with pytest.raises(UserError, match=r"rows.jsonl:3: the video's 8 frames need as many times"):
        reader.read(source, 2)
    arrays = {"video": list(SQUARE), "image_id": 3, "caption_en": b"grey"}  # as TFDS gives them
    assert frames(reader.samples(arrays)[0].messages[0].parts) == [3, 11, 18, 26]


def test_a_shards_video_files(content, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(20):
            for ending, data in (("mp4", content), ("txt", b"grey")):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    reader = reader_of(name="webdataset", path=f"{tmp_path}/a.tar")
    assert frames(reader.read(open_dataset(reader.data).train, 5)[0].messages[0].parts) == PLACES


@pytest.mark.parametrize(
    ("turns", "before", "behind"),
    [
        ({"conversations": [("human", "<video>\nWhat?"), ("gpt", "grey")]}, [], ["What?"]),
        ({"conversations": [("human", "Look: <video>"), ("gpt", "grey")]}, ["Look:"], []),
        ({"conversations": [("human", "What?"), ("gpt", "grey")]}, [], ["What?"]),
        ({"messages": [("user", [{"type": "video"}, {"type": "text", "text": "What?"}])]}, [], ["What?"]),
    ],
)
def test_in_a_dialogue_all_frames_stand_where_the_video_does(turns, before, behind, content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    row = {"video": "a.mp4"}
    if "messages" in turns:
        said = [*({"role": role, "content": text} for role, text in turns["messages"])]
        row["messages"] = [*said, {"role": "assistant", "content": "grey"}]
    else:
        row["conversations"] = [{"from": who, "value": text} for who, text in turns["conversations"]]
    reader = reader_of(**write_lines(tmp_path, [row] * 20), task="dialogue")
    source = open_dataset(reader.data).train
    asked, said = reader.read(source, 0)[0].messages
    assert frames(asked.parts) == [*before, *PLACES, *behind] and said == answer("grey")
    blind = replace(reader, data=replace(reader.data, modalities=("text",)))
    assert blind.read(source, 0)[0].messages[0].parts == (*before, *behind)
    both = row | {"video": [SQUARE[0]], "images": [SQUARE[0]], "image_id": 3}
    with pytest.raises(UserError, match="a dialogue has pictures or a video; leave one of them out"):
        reader.samples(both)


def test_a_broken_video_is_a_bad_record_and_a_model_without_order_is_not(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    (tmp_path / "b.mp4").write_bytes(content[:900])
    rows = [{"video": name, "caption": "grey"} for name in ("a.mp4", "b.mp4", "c.mp4", 5)] * 5
    reader = reader_of(**write_lines(tmp_path, rows), bad_records="skip")
    source = open_dataset(reader.data).train
    assert [len(reader.read(source, place)) for place in range(4)] == [1, 0, 0, 0]
    assert len(reader.bad) == 3
    refusing = replace(reader, bad=BadRecords())
    with pytest.raises(UserError, match=r"rows.jsonl:2: the video .*b.mp4 .*(truncated|no frame|no pictures)"):
        refusing.read(source, 1)
    with pytest.raises(UserError, match=r"rows.jsonl:4: video: a path is wanted and it is 5; correct it"):
        refusing.read(source, 3)
    crossing = from_dict(Config, {"model": MODEL | {"fusion": {"kind": "cross-attention"}}}).model
    with pytest.raises(
        UserError, match="config.model.fusion: cross-attention sees a video's frames in no order"
    ) as told:
        replace(reader, model=crossing).read(source, 0)
    assert not isinstance(told.value, RecordError)


def test_prepared_records_keep_all_frames(content):
    reader = reader_of()
    samples = reader.samples({"video": content, "image_id": 0, "caption_en": "grey"})
    layout, rng = Layout.of(reader.model), np.random.default_rng(0)
    _, drawn = from_bytes(to_bytes(columns_of(samples, TOKENIZER, layout, 1, rng))).draw(rng)
    whole = tokenise(samples[0], TOKENIZER, layout)
    assert drawn.tokens.tolist() == whole.tokens.tolist()
    np.testing.assert_array_equal(drawn.images, SQUARE[PLACES])


def test_a_video_is_asked_about_as_the_same_frames_are():
    config = from_dict(Config, {"model": MODEL})
    model = jaxfusion.build(config, TOKENIZER)
    video = Video(SQUARE[PLACES], np.array([0.3, 1.1, 1.8, 2.6]))
    given, listed, alone = user_messages(model, ["why?"] * 3, [video, list(video.frames), video.frames[0]])
    assert frames(given.told) == [piece for pair in zip(TIMES, PLACES, strict=True) for piece in pair] + ["why?"]
    assert frames(listed.told) == [*PLACES, "why?"] and frames(alone.told) == [3, "why?"]
    images = [Image(frame, time) for frame, time in zip(*video, strict=True)]
    (same,) = user_messages(model, ["why?"], [images])
    expected = prompt_segment(model, (ask(*images, "why?"),))
    for message in (given, same):
        segment = prompt_segment(model, (message,))
        assert segment.tokens.tolist() == expected.tokens.tolist()
        np.testing.assert_array_equal(segment.images, expected.images)
