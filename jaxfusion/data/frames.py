"""A record's video as what a model is given: some of its frames, consecutive images that each know their time."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from jaxfusion.config.model import CrossAttentionFusionConfig, ModelConfig
from jaxfusion.config.run import DataConfig
from jaxfusion.data.messages import Image
from jaxfusion.data.video import FrameSampling, choose_listed, import_av, read_video
from jaxfusion.errors import RecordError, UserError

Picture = str | os.PathLike | bytes | np.ndarray


def frames_of(
    video: Picture | Sequence[Picture],
    times: Sequence[float] | None,
    data: DataConfig,
    model: ModelConfig,
    see: Callable[[Picture], np.ndarray],
    where: str,
    *,
    decode: bool = True,
) -> list[Image]:
    """video: the path or the bytes of a file, or a list of pictures that are its frames.

    times: of such a list, in seconds; None: not known, and then not told.
    see:   what becomes of a picture, however it is given. where: how people know the record.
    Raises RecordError for a video that cannot be read, and UserError where the model or the machine can read none.
    """
    if isinstance(model.fusion, CrossAttentionFusionConfig):
        raise UserError("config.model.fusion: cross-attention sees a video's frames in no order; use 'place'")
    sampling = FrameSampling(kind=data.frame_sampling, frames=data.frames, fps=data.fps)
    if isinstance(video, str | os.PathLike | bytes):
        import_av()
    try:
        if isinstance(video, str | os.PathLike | bytes):
            frames, moments = read_video(video, sampling, see, decode=decode)
        else:
            places = choose_listed(len(video), times, sampling)
            frames = [see(video[place]) if decode else np.zeros(0, np.uint8) for place in places.tolist()]
            moments = None if times is None else np.asarray(times, float)[places] - times[0]
    except UserError as error:
        raise RecordError(where, str(error)) from error
    if moments is None or not data.frame_times:
        return [Image(frame) for frame in frames]
    return [Image(frame, float(moment)) for frame, moment in zip(frames, moments, strict=True)]
