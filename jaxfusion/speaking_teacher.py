"""A teacher that says beforehand, while data are prepared, what its students would hear of it in training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from jaxfusion.batch import Batch, TopK
from jaxfusion.config import Config
from jaxfusion.config.run import ParallelConfig
from jaxfusion.data.packing import pack
from jaxfusion.data.prepared import Columns, Setting, variants_of, with_told
from jaxfusion.data.tokenise import Layout, Segment
from jaxfusion.errors import UserError
from jaxfusion.models.vlm import Model, Params
from jaxfusion.parallel import make_parallel
from jaxfusion.provenance import files_fingerprint
from jaxfusion.teacher import open_teacher
from jaxfusion.training.distillation import Distillation

# Rows are padded to a multiple of so many positions, so that few shapes are compiled.
LENGTHS = 64


@dataclass(frozen=True)
class SpeakingTeacher:
    """On all local devices.

    batch_size: segments that it reads at once. say: a batch of so many rows to its largest probabilities.
    layout, context, num_classes: its own; segments are laid out as the student's are. about: see `About.teacher`.
    """

    batch_size: int
    say: Callable[[Batch], TopK]
    layout: Layout
    context: int
    num_classes: int
    about: dict[str, Setting]

    @classmethod
    def read(cls, config: Config, student: Model) -> "SpeakingTeacher":
        """config: with all sizes settled. Raises UserError where there is no teacher, and as `open_teacher` does."""
        if not config.distil.teacher:
            raise UserError("config.prepare.teacher_top_k: there is no teacher; name one in config.distil.teacher")
        return cls.of(config, *open_teacher(config, student))

    @classmethod
    def of(cls, config: Config, distillation: Distillation, params: Params) -> "SpeakingTeacher":
        parallel = make_parallel(ParallelConfig(strategy="mesh"))
        theirs, batch_size = distillation.teacher.config, config.train.batch_size
        rows = theirs.text_embedding.vocab_size
        k = min(config.prepare.teacher_top_k, rows)
        say = parallel.compile(lambda params, batch, axis_name=None: distillation.say(params, batch, k))
        state = parallel.put_state(params)
        return cls(
            -(-batch_size // parallel.num_devices) * parallel.num_devices,
            lambda batch: say(state, parallel.put_batch(batch)),
            Layout.of(theirs),
            theirs.text_embedding.max_positions,
            rows,
            {
                "name": config.distil.teacher,
                "fingerprint": files_fingerprint(config.distil.teacher),
                "top_k": k,
                "temperature": distillation.temperature,
                "rows": rows,
                "dtype": theirs.dtype,
            },
        )

    def add_told(self, columns: Iterator[Columns]) -> Iterator[Columns]:
        """The records, in order, with what it says of each variant. They must have their pictures."""
        while batch := list(islice(columns, self.batch_size)):
            segments = [variants_of(record) for record in batch]
            pictured = [
                segment._replace(images=list(record["images"]))
                for record, own in zip(batch, segments, strict=True)
                for segment in own
            ]
            told = self._tell(pictured)
            for record, own in zip(batch, segments, strict=True):
                yield with_told(record, list(islice(told, len(own))), self.num_classes)

    def _tell(self, segments: Sequence[Segment]) -> Iterator[TopK]:
        """Of each segment's positions that carry loss."""
        longest = max(len(segment.tokens) for segment in segments)
        if longest > self.context:
            raise UserError(
                f"config.distil.teacher: it has a context of {self.context}, and a sample {longest} positions; name "
                "another, or leave the sample out"
            )
        length = min(-(-longest // LENGTHS) * LENGTHS, self.context)
        lay_out = partial(pack, row_length=length, tokens_per_image=self.layout.tokens_per_image, packed=False)
        for start in range(0, len(segments), self.batch_size):
            part = segments[start : start + self.batch_size]
            filled = [*part, *part[:1] * (self.batch_size - len(part))]  # all batches have one shape
            said = [np.asarray(leaf) for leaf in self.say(lay_out([[segment] for segment in filled]))]
            for row, segment in enumerate(part):
                yield TopK(*(leaf[row, np.flatnonzero(segment.loss_weights)] for leaf in said))
