"""Videos as a few of their frames, with the times at which they are shown.

video = read_video("clip.mp4", FrameSampling(frames=8))
video.frames  # uint8[8, h, w, 3], upright
video.times   # seconds since the first frame

PyAV reads them, which is imported here alone and only where there is a file to read. Which frames are taken is decided
by when they are shown, not by their numbers, so that a variable frame rate changes nothing. A file's packets tell when
that is without being decoded; then only what the chosen frames need is. Where packets do not tell it, or the file is
damaged, all of it is decoded to see what there is.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxfusion.errors import UserError

# Only these demuxers may see a file: others open further files and addresses that the file names (playlists).
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,gif,apng,nut"
)
# Pixels of a frame: as many as of a picture (`read_image`).
MOST_PIXELS = 2 * 89_478_485

See = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "H W 3"]]


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """Which frames are taken, each once.

    kind:   "uniform": those shown in the middles of so many equal parts of the video; "fps": those shown at 0, 1/fps,
            2/fps, ... seconds, or, where these are more than `frames`, as "uniform"; "keyframes": those that the file
            stores whole, or, where these are more, `frames` of them, evenly.
    frames: the most that are taken. A video with fewer gives all it has.
    """

    kind: Literal["uniform", "fps", "keyframes"] = "uniform"
    frames: int = 8
    fps: float = 1.0


class Video(NamedTuple):
    """times: in seconds since the video's first frame."""

    frames: UInt8[np.ndarray, "T h w 3"]
    times: Float[np.ndarray, " T"]


def choose(
    times: Float[np.ndarray, " n"], end: float, keys: Bool[np.ndarray, " n"], sampling: FrameSampling
) -> Int[np.ndarray, " T"]:
    """The places of the frames to take, in order, none twice.

    times: at which frames are first shown, from 0, increasing. end: until when the last one is. keys: of the keyframes.
    """
    middles = (np.arange(sampling.frames) + 0.5) / sampling.frames
    if sampling.kind == "keyframes":
        places = np.flatnonzero(keys)
        return places if len(places) <= sampling.frames else places[(middles * len(places)).astype(int)]
    moments = middles * end
    if sampling.kind == "fps":
        number = max(int(np.ceil(end * sampling.fps - 1e-6)), 1)
        moments = np.arange(number) / sampling.fps if number <= sampling.frames else moments
    return np.unique(np.searchsorted(times, moments + 1e-6, side="right") - 1)


def choose_listed(number: int, times: Sequence[float] | None, sampling: FrameSampling) -> Int[np.ndarray, " T"]:
    """As `choose`, of frames that are there as pictures; without times they count as shown equally long, a second each,
    and all as keyframes. Raises UserError where there are not as many times, or they do not increase."""
    if not number:
        raise UserError("the video has no frames; give it some, or leave it out")
    try:
        shown = np.arange(number, dtype=float) if times is None else np.asarray(times, float)
    except (TypeError, ValueError, OverflowError):
        shown = np.zeros(0)
    if shown.shape != (number,) or not np.all(np.isfinite(shown)) or np.any(np.diff(shown) <= 0):
        raise UserError(f"the video's {number} frames need as many times in seconds, each later than the one before")
    shown = shown - shown[0]
    end = shown[-1] + (shown[-1] / (number - 1) if number > 1 else 1.0)
    return choose(shown, end, np.ones(number, bool), sampling)


def read_video(
    source: str | os.PathLike | bytes, sampling: FrameSampling, see: See | None = None, *, decode: bool = True
) -> Video:
    """Read some frames of a video from a path, or from the bytes of a file (MP4, MOV, WebM, Matroska, AVI, ...).

    Frames are 8-bit RGB and upright: the rotation that a phone notes in its file is carried out.

    see:    what becomes of each frame, at once, so that no two large ones are held: a resize, for one.
    decode: False: the times alone where packets tell them, and frames of no pixels.

    A file that breaks off, or whose frames are damaged from some place on, serves as far as it is good, if that gives
    `sampling.frames` frames. Raises UserError, naming the file, where it does not, where it is missing or no video, and
    where PyAV is not installed.
    """
    name = f"the video ({len(source):,} bytes)" if isinstance(source, bytes) else f"the video {os.fspath(source)}"
    with _opened(source, name) as opener:
        index = _indexed(opener)
        if index is not None and len(index.pts) and len(places := index.choose(sampling)):
            if not decode and not index.broken:
                return Video(np.zeros((len(places), 0, 0, 3), np.uint8), index.times[places])
            frames = _sought(opener, index, places, see)
            if frames is not None and not (index.broken and len(places) < sampling.frames):
                return Video(_stacked(frames), index.times[places])
        index = _looked_through(opener)
        if not len(index.pts):
            raise UserError(f"{name} holds no frame that can be decoded; replace it with a whole one")
        places = index.choose(sampling)
        if not len(places):
            raise UserError(
                f"{name} marks no frame as a keyframe; take frames uniformly, or replace it with a whole one"
            )
        if index.broken and len(places) < sampling.frames:
            raise UserError(
                f"{name} breaks off after {index.end:.2f} s, which gives {len(places)} of {sampling.frames} frames; "
                "replace it with a whole one, or take fewer frames"
            )
        wanted = set(places.tolist())
        with opener() as (container, stream):
            frames = [
                _seen(frame, see)
                for place, frame in zip(range(int(places[-1]) + 1), _GoodFrames(container, stream), strict=False)
                if place in wanted
            ]
        return Video(_stacked(frames), index.times[places])


class _Index(NamedTuple):
    """All frames in the order in which they are shown.

    pts:    when each is shown, as the file counts it. times: the same in seconds since the first, as is `end`.
    keys:   of the keyframes.
    broken: whether the file ends before it should, or is damaged behind them.
    """

    pts: Int[np.ndarray, " n"]
    times: Float[np.ndarray, " n"]
    end: float
    keys: Bool[np.ndarray, " n"]
    broken: bool

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, bool]], unit: float, usual: float, broken: bool) -> "_Index":
        """rows: when each frame is shown and how long, and whether it is a keyframe. unit: seconds of one of these.
        usual: seconds that a frame is shown, where the file does not say so."""
        columns = np.array(sorted(rows), np.int64).reshape(-1, 3).T
        pts, lengths, keys = columns[0], columns[1], columns[2] > 0
        times = (pts - pts[:1]) * unit
        end = float(times[-1] + (lengths[-1] * unit or usual)) if rows else 0.0
        return cls(pts, times, end, keys, broken)

    def choose(self, sampling: FrameSampling) -> Int[np.ndarray, " T"]:
        return choose(self.times, self.end, self.keys, sampling)


Opener = Callable[[], Any]


def import_av() -> Any:
    """Raises UserError where PyAV is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError('PyAV reads videos, and it is not here; pip install "jaxfusion[video]"') from error
    return av


@contextmanager
def _opened(source: str | os.PathLike | bytes, name: str) -> Iterator[Opener]:
    """What opens the file anew, from its beginning, as PyAV's container and its first stream of moving pictures."""
    av = import_av()

    @contextmanager
    def open_anew() -> Iterator[tuple[Any, Any]]:
        # The file itself, and not its name: FFmpeg would take a name for an address.
        with _file(source, name) as file:
            try:
                container = av.open(file, options={"format_whitelist": CONTAINERS})
            except (av.FFmpegError, OSError, ValueError) as error:
                raise UserError(
                    f"{name} is truncated, damaged or of no known kind; give a whole MP4, WebM, AVI or the like"
                ) from error
            with container:
                yield container, _moving(container, name)

    try:
        yield open_anew
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} is truncated or damaged ({reason}); replace it with a whole one") from error


def _file(source: str | os.PathLike | bytes, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return open(source, "rb")
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # the latter of a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name!r} can't be opened: {reason}; give a file that can be read") from error


def _moving(container: Any, name: str) -> Any:
    import av

    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    if stream is None:
        held = "only sound" if container.streams.audio else "no pictures"
        raise UserError(f"{name} holds {held}; give a video, or leave it out")
    if stream.codec_context is None:
        raise UserError(f"{name} is coded in a way that FFmpeg here cannot decode; convert it to H.264 or VP9")
    if stream.width * stream.height > MOST_PIXELS:
        raise UserError(f"{name} is enormous; make its frames smaller than {MOST_PIXELS:,} pixels")
    stream.codec_context.options = {"err_detect": "explode"}  # or much that is damaged is guessed
    stream.codec_context.thread_count = 1  # those that read records are several already
    return stream


def _unit(stream: Any) -> float:
    """Seconds that a step of the file's clock takes; FFmpeg's own clock has microseconds."""
    return float(stream.time_base or 1e-6)


def _usual(stream: Any) -> float:
    """Seconds that a frame is shown, where nothing is said of it."""
    return float(1 / stream.average_rate) if stream.average_rate else 1.0


def _stated(stream: Any) -> int:
    """As many frames as there must be, where the file knows that: others that state a number mean another."""
    return stream.frames if stream.container.format.name.startswith("mov") else 0


def _indexed(opener: Opener) -> _Index | None:
    """By the packets. None where they do not tell when their frames are shown."""
    import av

    rows, found, broken = [], 0, False
    with opener() as (container, stream):
        try:
            for packet in container.demux(stream):
                if not packet.size:  # at the end
                    continue
                if packet.is_corrupt:
                    broken = True
                    break
                found += 1
                if packet.is_discard:  # cut away by the file's edit list
                    continue
                if packet.pts is None:
                    return None
                rows.append((packet.pts, packet.duration or 0, packet.is_keyframe))
        except (av.FFmpegError, OSError):  # the latter of a seek to before the file's beginning
            broken = True
        return _Index.of(rows, _unit(stream), _usual(stream), broken or found < _stated(stream))


def _sought(
    opener: Opener, index: _Index, places: Int[np.ndarray, " T"], see: See | None
) -> list[UInt8[np.ndarray, "H W 3"]] | None:
    """The frames at some places, of which only what they need is decoded. None where they do not come as announced."""
    import av

    frames, now, decoded = [], -1, None
    keys = np.flatnonzero(index.keys)
    with opener() as (container, stream):
        try:
            for place in places.tolist():
                before = keys[keys <= place]
                if decoded is None or (len(before) and before[-1] > now + 1):
                    if len(before) and before[-1] > 0:
                        container.seek(int(index.pts[before[-1]]), stream=stream)
                    decoded = _GoodFrames(container, stream)
                for frame in decoded:
                    if frame.pts is None or frame.pts >= index.pts[place]:
                        break
                else:
                    return None
                if frame.pts != index.pts[place]:
                    return None
                now = place
                frames.append(_seen(frame, see))
        except (av.FFmpegError, OSError):
            return None
    return frames


def _looked_through(opener: Opener) -> _Index:
    """By decoding all frames up to the first damage."""
    rows = []
    with opener() as (container, stream):
        usual = _usual(stream)
        frames = _GoodFrames(container, stream)
        for frame in frames:
            pts = frame.pts if frame.pts is not None else round(len(rows) * usual / _unit(stream))
            if rows and pts <= rows[-1][0]:
                break
            rows.append((pts, frame.duration or 0, bool(frame.key_frame)))
        return _Index.of(rows, _unit(stream), usual, frames.broken or len(rows) < _stated(stream))


class _GoodFrames:
    """Decoded frames up to the first that is damaged, and whether there is one."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._frames, self.broken = container.decode(stream), False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        import av

        try:
            frame = None if self.broken else next(self._frames)
        except (av.FFmpegError, OSError):
            frame = None
        if frame is None or frame.is_corrupt:
            self.broken = True
            raise StopIteration
        return frame


def _stacked(frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "T H W 3"]:
    """Some files change the size of their frames on the way; then all are as large as the first."""
    from jaxfusion.data.images import resize_image

    return np.stack([resize_image(frame, frames[0].shape[:2]) for frame in frames])


def _seen(frame: Any, see: See | None) -> UInt8[np.ndarray, "H W 3"]:
    pixels = frame.to_ndarray(format="rgb24")
    upright = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return upright if see is None else see(upright)
