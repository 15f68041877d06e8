"""Clips are written here frame by frame and read back, exactly the frames and times that are asked for."""

import io
import struct
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jaxfusion.data.images import resize_image
from jaxfusion.data.video import FrameSampling, _GoodFrames, _Index, choose_listed, read_video
from jaxfusion.errors import UserError

HEIGHT, WIDTH, NUMBER = 32, 48, 30
# The frame's number is in its grey, and its texture is no other's.
FRAMES = np.random.default_rng(0).integers(0, 8, (NUMBER, HEIGHT, WIDTH, 3), dtype=np.uint8)
FRAMES += np.arange(NUMBER, dtype=np.uint8)[:, None, None, None] * 8
REGULAR = [number / 10 for number in range(NUMBER)]
# Three tenths, then one frame for nearly two seconds, and so on.
VARIABLE = [0, 0.1, 0.2, 0.3, 2, 2.1, 2.2, 5, *(5.1 + number / 10 for number in range(NUMBER - 8))]
LOSSLESS = ("libx264rgb", "rgb24", {"crf": "0", "g": "8", "sc_threshold": "0", "bf": "2"})
TIME_BASE = Fraction(1, 1000)


def clip(kind: str = "mp4", coded=LOSSLESS, times=REGULAR, frames=FRAMES, rotation=0, sound=False, **options) -> bytes:
    """The file, with a keyframe at each eighth frame and frames between that refer to later ones."""
    # A header at the beginning is written last, for which the file is read again.
    if options:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "clip")
            _write(str(path), kind, coded, times, frames, rotation, sound, options)
            return path.read_bytes()
    buffer = io.BytesIO()
    _write(buffer, kind, coded, times, frames, rotation, sound, options)
    return buffer.getvalue()


def _write(target, kind, coded, times, frames, rotation, sound, options) -> None:
    codec, pixels, settings = coded
    with av.open(target, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=10, options=settings)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.time_base = stream.codec_context.time_base = TIME_BASE
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for time, frame in zip(times, frames, strict=False):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(time * 1000), TIME_BASE
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
@pytest.mark.parametrize(
    ("times", "sampling", "places"),
    [
        # 3 s: the middles of sixths are 0.25, 0.75, ...
        (REGULAR, FrameSampling(frames=6), [2, 7, 12, 17, 22, 27]),
        (REGULAR, FrameSampling(frames=1), [15]),
        (REGULAR, FrameSampling(frames=64), list(range(30))),
        (REGULAR, FrameSampling(kind="fps", frames=9, fps=2.5), [0, 4, 8, 12, 16, 20, 24, 28]),
        (REGULAR, FrameSampling(kind="fps", frames=3, fps=2.5), [5, 15, 25]),
        (REGULAR, FrameSampling(kind="fps", frames=9, fps=0.1), [0]),
        (REGULAR, FrameSampling(kind="keyframes", frames=9), [0, 8, 16, 24]),
        (REGULAR, FrameSampling(kind="keyframes", frames=2), [8, 24]),
        # 7.3 s: the middles of fifths are 0.73, 2.19, 3.65, 5.11, 6.57
        (VARIABLE, FrameSampling(frames=5), [3, 5, 6, 8, 22]),
        # at 0, 1, ... 7 s: the fourth frame is shown until 2 s, the seventh until 5 s
        (VARIABLE, FrameSampling(kind="fps", frames=9), [0, 3, 4, 6, 7, 17, 27]),
    ],
)
def test_the_frames_shown_at_the_moments_asked_for_are_read_exactly(kind, times, sampling, places):
    video = read_video(clip(kind, times=times), sampling)
    assert video.frames.dtype == np.uint8
    np.testing.assert_array_equal(video.frames, FRAMES[places])
    np.testing.assert_allclose(video.times, np.array(times)[places], atol=1e-3)


def test_only_what_the_frames_need_is_decoded(monkeypatch):
    content = clip(coded=(*LOSSLESS[:2], {**LOSSLESS[2], "bf": "0"}))
    decoded = []
    following = _GoodFrames.__next__
    monkeypatch.setattr(_GoodFrames, "__next__", lambda own: decoded.append(own) or following(own))
    read_video(content, FrameSampling(frames=2))  # frames 7 and 22: of the first and the third eight
    assert len(decoded) == 8 + 7
    decoded.clear()
    video = read_video(content, FrameSampling(frames=2), decode=False)
    assert not decoded and video.frames.shape == (2, 0, 0, 3)
    np.testing.assert_allclose(video.times, [0.7, 2.2])


def test_each_frame_is_passed_on_as_it_comes(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip())
    video = read_video(path, FrameSampling(frames=3), lambda frame: resize_image(frame, 8))
    np.testing.assert_array_equal(video.frames, [resize_image(FRAMES[place], 8) for place in (5, 15, 25)])


@pytest.mark.parametrize(
    ("kind", "coded"),
    [
        ("webm", ("libvpx-vp9", "yuv420p", {"lossless": "1", "g": "8"})),
        ("mpegts", ("libx264", "yuv444p", LOSSLESS[2])),
        ("mov", ("png", "rgb24", {})),
        ("avi", ("ffv1", "bgr0", {})),
        ("gif", ("gif", "rgb8", {})),
        ("h264", ("libx264", "yuv444p", LOSSLESS[2])),  # nothing but pictures: their order and nominal rate is all
    ],
)
def test_other_containers_and_codecs(kind, coded):
    video = read_video(clip(kind, coded), FrameSampling(frames=6))
    # AVI keeps no length of its last frame, so that its middles are a little earlier.
    places = [2, 7, 12, 16, 21, 26] if kind == "avi" else [2, 7, 12, 17, 22, 27]
    np.testing.assert_allclose(video.times, np.array(places) / (25 if kind == "h264" else 10), atol=5e-3)
    nearest = [np.abs(FRAMES.astype(int) - frame).mean((1, 2, 3)).argmin() for frame in video.frames]
    assert nearest == places or kind == "gif"  # which has 8 shades of grey


def test_what_a_phone_held_upright_films_is_upright():
    (frame,) = read_video(clip(rotation=180), FrameSampling(frames=1)).frames
    np.testing.assert_array_equal(frame, FRAMES[15, ::-1, ::-1])
    # ISO 14496-12's matrix of a track: its right goes down, its down goes left.
    content = clip()
    at = content.index(b"tkhd") + 4 + 40
    turned = content[:at] + struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30) + content[at + 36 :]
    (frame,) = read_video(turned, FrameSampling(frames=1)).frames
    np.testing.assert_array_equal(frame, FRAMES[15].transpose(1, 0, 2)[:, ::-1])


def test_short_and_odd_videos():
    alone = read_video(clip(frames=FRAMES[:1]), FrameSampling(frames=4))
    np.testing.assert_array_equal(alone.frames, FRAMES[:1])
    assert alone.times.tolist() == [0]
    late = read_video(clip(times=[time + 7 for time in REGULAR], sound=True), FrameSampling(frames=2))
    np.testing.assert_array_equal(late.frames, FRAMES[[7, 22]])
    np.testing.assert_allclose(late.times, [0.7, 2.2])
    tiny = read_video(clip(coded=("ffv1", "bgr0", {}), kind="matroska", frames=FRAMES[:3, :5, :3]), FrameSampling())
    np.testing.assert_array_equal(tiny.frames, FRAMES[:3, :5, :3])


def damaged(content: bytes, how: str) -> bytes:
    at = len(content) * 3 // 5
    return content[:at] if how == "cut" else content[:at] + bytes(300) + content[at + 300 :]


@pytest.mark.parametrize("how", ["cut", "zeros"])
@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
def test_a_damaged_file_serves_as_far_as_it_is_good(kind, how):
    coded = ("libx264", "yuv444p", LOSSLESS[2]) if kind == "mpegts" else LOSSLESS
    options = {"movflags": "faststart"} if kind == "mp4" else {}
    content = damaged(clip(kind, coded, **options), how)
    video = read_video(content, FrameSampling(frames=8))
    good = np.round(video.times * 10).astype(int)
    assert len(good) == 8 and 13 <= good[-1] < 19
    np.testing.assert_allclose(video.frames, FRAMES[good], atol=0 if kind != "mpegts" else 3)
    if kind == "mp4" or how == "zeros":  # the others do not know how long they should be
        with pytest.raises(UserError, match=r"the video \(.* bytes\) breaks off after 1\.\d+ s.* 1\d of 25 frames; "):
            read_video(content, FrameSampling(frames=25))


def test_no_damage_but_an_error_of_ours():
    whole, random = clip(), np.random.default_rng(0)
    for number in range(60):
        content = bytearray(whole)
        if number % 2:
            content = content[: random.integers(len(content))]
        for place in random.integers(len(content), size=random.integers(1, 30)) if len(content) else ():
            content[place] = random.integers(256)
        try:
            video = read_video(bytes(content), FrameSampling(frames=4))
        except UserError as error:
            assert str(error).startswith("the video (") and "\n" not in str(error)
        else:
            assert video.frames.dtype == np.uint8 and np.all(np.diff(video.times) > 0)


def test_a_video_without_keyframes_is_refused_where_these_are_wanted(monkeypatch):
    made = _Index.of
    monkeypatch.setattr(_Index, "of", lambda rows, *others: made([(*row[:2], False) for row in rows], *others))
    with pytest.raises(UserError, match="marks no frame as a keyframe; take frames uniformly"):
        read_video(clip(), FrameSampling(kind="keyframes"))


def test_what_is_no_video_is_refused_by_name(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"
    listed = b"ffconcat version 1.0\nfile other.mp4\n"
    (tmp_path / "other.mp4").write_bytes(clip())
    for content, reason in {
        buffer.getvalue(): "holds only sound; give a video, or leave it out",
        clip(frames=FRAMES[:0]): "holds no frame|truncated, damaged",
        clip()[:-700]: "is truncated, damaged or of no known kind|holds no pictures",
        b"": "is truncated, damaged or of no known kind",
        b"a text": "is truncated, damaged or of no known kind",
        playlist: "is truncated, damaged or of no known kind",
        listed: "is truncated, damaged or of no known kind",
    }.items():
        path = tmp_path / "clip.mp4"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^the video {path} .*({reason})"):
            read_video(path, FrameSampling(frames=4))
    for odd in ("a\0.mp4", "\ud800.mp4"):
        with pytest.raises(UserError, match="can't be opened: .*; give a file that can be read"):
            read_video(odd, FrameSampling())
    with pytest.raises(UserError, match=r"the video .*/none.mp4 does not exist; check the path"):
        read_video(tmp_path / "none.mp4", FrameSampling())
    with pytest.raises(UserError, match="can't be opened: Is a directory"):
        read_video(tmp_path, FrameSampling())


def test_a_name_is_never_an_address():
    with pytest.raises(UserError, match="the video http://localhost:1/a.mp4 does not exist"):
        read_video("http://localhost:1/a.mp4", FrameSampling())


def test_without_pyav_the_mend_is_named():
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from jaxfusion.data.video import FrameSampling, read_video\n"
        "try: read_video(b'', FrameSampling())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert told == 'UserError PyAV reads videos, and it is not here; pip install "jaxfusion[video]"\n'


def test_frames_that_are_pictures():
    assert choose_listed(8, None, FrameSampling(frames=4)).tolist() == [1, 3, 5, 7]
    assert choose_listed(8, None, FrameSampling(frames=1)).tolist() == [4]
    assert choose_listed(3, None, FrameSampling(frames=4)).tolist() == [0, 1, 2]
    assert choose_listed(4, [5.0, 5.1, 5.2, 9.0], FrameSampling(kind="fps", frames=8)).tolist() == [0, 2, 3]
    assert choose_listed(8, None, FrameSampling(kind="keyframes", frames=2)).tolist() == [2, 6]
    with pytest.raises(UserError, match="no frames; give it some"):
        choose_listed(0, None, FrameSampling())
    odd = ([0.0], [1.0, 1.0], [], 3, "ab", ["0.0", "b"], [None, 1], [float("nan"), 1.0], [[0], [1]])
    for times in odd:
        with pytest.raises(UserError, match="the video's 2 frames need as many times in seconds, each later"):
            choose_listed(2, times, FrameSampling())
