"""The batch that a plan is made for: a run's shapes, with as much in them as they can hold."""

from pathlib import Path

import numpy as np

from jaxfusion.batch import Batch, TopK
from jaxfusion.config import Config
from jaxfusion.config.model import AddFusionConfig, PlaceFusionConfig
from jaxfusion.data.packing import ImageSlots, pack
from jaxfusion.data.prepared import ABOUT, About
from jaxfusion.data.tokenise import Segment
from jaxfusion.errors import UserError


def full_rows(config: Config, rows: int) -> Batch:
    """A Batch of NumPy arrays in the run's shapes: rows without padding, with an image in each of their slots.

    That is one where `config.data.images_per_row` leaves it to the data; where features are prepared it is the tower's.
    Where rows are packed the batch says so, which decides on kernels, though one sample fills each.
    """
    model, data = config.model, config.data
    about = About.read(Path(data.prepared) / ABOUT) if data.prepared else None
    features = about is not None and about.store == "features"
    images = (data.images_per_row or 1) if "image" in data.modalities else 0
    slots = ImageSlots.of(model, images, features=features)
    number, length = slots.number if slots else 0, data.row_length
    place, column = number * model.tokens_per_image, np.arange(length)
    if isinstance(model.fusion, PlaceFusionConfig):
        index = np.where(column < place, column, -1)
        if place > length:
            raise UserError(
                f"config.data.row_length: a row's images take {place} positions and it has {length}; raise it"
            )
    else:
        index = np.full(length, 0 if number and isinstance(model.fusion, AddFusionConfig) else -1)
    segment = Segment(
        tokens=np.zeros(length, np.int32),
        targets=np.zeros(length, np.int32),
        loss_weights=(column >= place).astype(np.float32),
        prompt_mask=column < place,
        visual_index=index.astype(np.int32),
        images=[np.zeros(slots.shape, slots.dtype) for _ in range(number)],
        told=_told(about, length - place) if config.distil.teacher and about and about.teacher else None,
    )
    return pack([[segment]] * rows, length, model.tokens_per_image, slots, packed=data.packing != "none")


def _told(about: About, targets: int) -> TopK:
    shape = (targets, about.teacher["top_k"])
    return TopK(np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(targets, np.float32))
