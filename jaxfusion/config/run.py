"""What a run does with a model: data, training, devices, evaluation, generation."""

from dataclasses import dataclass, field
from typing import Literal

from jaxfusion.config.model import ModelConfig

FrozenDtype = Literal["compute", "float32", "int8"]
CacheDtype = Literal["compute", "bfloat16", "int8"]
Weights = Literal["given", "int8"]


Task = Literal["caption", "question_answer", "summarize", "fill", "classify", "dialogue", "text"]


@dataclass(frozen=True, kw_only=True)
class OtherDataConfig:
    """Of data that are trained on beside others; what each setting means is said in DataConfig, whose others hold."""

    name: str = "json"
    path: str = ""
    image_root: str = ""
    data_dir: str = ""
    train_split: str = "train"
    task: Task = "caption"
    prompt: str = ""
    label: str = "label"
    labels: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    epochs: float = 1.0
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EpisodesConfig:
    """Classes whose names are made up anew in each sample, and told by examples alone; see docs/few-shot.md."""

    ways: int = 0  # classes in an episode, of the task "classify"; 0: no episodes
    shots: int = 4  # solved examples of each class at most, before questions whose answers are learned
    held_out: int = 0  # so many classes, the last, are never trained on, and are half of the held-out episodes
    names: tuple[str, ...] = ("dax", "blicket", "wug", "toma", "fep", "zup", "modi", "koba")
    # More than 1: each class has so many of the names in a row for itself, and goes by one of them in an episode, whose
    # examples are of classes at random; `shots` then counts them all. 1: any class may have any name.
    own_names: int = 1


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    # A built-in data set, one that TFDS has prepared, or a format of path's files: json, coco, vqa, folder, webdataset,
    # parquet, text, documents (docs/data.md); with the fields that the task reads.
    name: str = "digit_scenes"
    path: str = ""  # of a format: a file, a directory, or a pattern, as in "shards/train-{000..031}.tar"
    test_path: str = ""  # the same, of held-out records; "": every 20th of path's
    image_root: str = ""  # the directory that records' paths of pictures start from; "": that of the record's file
    fields: tuple[str, ...] = ()  # what the task reads, and where records have it: ("caption=title", "image=jpg.bytes")
    labels: tuple[str, ...] = ()  # names of the classes, where records hold their numbers and the data no names
    bad_records: Literal["refuse", "skip"] = "refuse"  # or leave them out, one at random in their place, and count them
    max_bad_records: int = 100  # that may be left out
    # Further data to train on; evaluation is on this one's alone. Of each, visits are as many as its share of the
    # weights, or where none has any, of all records, each counted `epochs` times.
    others: tuple[OtherDataConfig, ...] = ()
    weight: float = 0.0
    epochs: float = 1.0
    temperature: float = 1.0  # shares are taken to the power 1 / temperature: beyond 1 the small ones gain
    prepared: str = ""  # a directory that --mode prepare wrote of these data, to train on; "": the data set itself
    data_dir: str = ""  # where prepared data lives; "": TFDS's own default, ~/tensorflow_datasets
    task: Task = "caption"
    # The request in words: "Describe the picture." for captions; "{question} Answer briefly.", "{text}" to classify or
    # "Summarise: {document}" put what the task asks in its place. "": nothing but what the task asks.
    prompt: str = ""
    label: str = "label"  # the field that holds the class, for the task "classify"
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    languages: tuple[Literal["en", "zh"], ...] = ("en",)
    modalities: tuple[Literal["image", "text"], ...] = ("image", "text")  # leave one out to see what it was worth
    train_split: str = "train"
    test_split: str = "test"
    row_length: int = 64  # positions in a row, visual tokens included; a sample that is longer is refused by name
    packing: Literal["none", "best-fit"] = "none"  # one sample a row, or as many as fit: then make row_length several
    images_per_row: int = 0  # image slots of a row; a sample with more is refused; 0: chosen by a look at the data
    vocab_size: int = 512  # upper bound for the tokenizer that is trained on the training text
    num_threads: int = 1  # that read and decode records; more help where images are large, and hurt where they are not
    num_workers: int = 0  # processes that do so, each a share of the batches with its own threads; 0: threads alone
    # JPEGs much larger than the vision's input are decoded at a half, a quarter or an eighth of their size. Never where
    # a checkpoint says how pictures are prepared, whose very pixels are then kept.
    scaled_decode: bool = True
    # What happens to training pictures, drawn anew each visit, as in "crop(0.8)|flip|colour(0.1)"; "": nothing. Of
    # crop, flip, colour, grey, rotate, shift, erase (docs/data.md). No flip where answers tell left from right.
    augment: str = ""
    # Of a record's video its frames are consecutive images: at most so many, evenly over its length ("uniform"), or, if
    # these are fewer, `fps` a second, or those that the file stores whole ("keyframes"). See docs/video.md.
    frames: int = 8
    frame_sampling: Literal["uniform", "fps", "keyframes"] = "uniform"
    fps: float = 1.0
    frame_times: bool = True  # each frame's time as text before it, as in "0.5s", where it is known
    segment_words: bool = False  # Chinese text goes through word segmentation
    remove_stop_words: bool = False  # cuts into words too; negations stay


Optimizer = Literal["adamw", "adafactor", "lion", "muon"]  # muon: linear layers' matrices; AdamW takes the rest
Schedule = Literal["cosine", "linear", "constant", "rsqrt"]  # after the warm-up; cosine, linear: to 0 at num_steps


@dataclass(frozen=True, kw_only=True)
class OptimizerRule:
    """What is different for the parameters that a glob fits; None: as for all others."""

    globs: tuple[str, ...] = ()  # over paths of parameters that train, as in "vision/*"
    optimizer: Optimizer | None = None
    learning_rate: float | None = None
    schedule: Schedule | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    num_steps: int = 1000
    batch_size: int = 64  # rows a step, over all devices
    accumulate: int = 1  # parts of the batch that a step takes one after the other, to need less memory
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3  # the peak, after the warm-up
    schedule: Schedule = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.05  # on matrices only
    b1: float | None = None  # of the first moment; None: 0.9, muon's matrices 0.95; adafactor has none
    b2: float | None = None  # of the second; None: 0.999, lion 0.99; adafactor has its own
    eps: float | None = None  # of AdamW; None: 1e-8
    rules: tuple[OptimizerRule, ...] = ()  # a parameter falls under the first that fits it, or none
    clip_norm: float = 1.0  # of the gradient's global norm; 0: no clipping
    z_loss: float = 0.0  # weight of the squared log-normaliser in the loss (PaLM: 1e-4), which keeps logits small
    label_smoothing: float = 0.0  # share of each target's probability that goes to all classes alike
    trainable: tuple[str, ...] = ("*",)  # globs over parameter paths, as in "projector/*"; the rest is frozen
    frozen_dtype: FrozenDtype = "compute"  # of the rest: model.dtype; int8 is of linear layers' kernels
    # What layers compute again in the backward pass, to save memory: nothing; all but what matrix products and
    # attention give; all but what attention reads and gives; everything.
    remat: Literal["none", "dots", "attention", "full"] = "none"
    # What a step multiplies in the linear layers of transformer stacks: model.dtype, or 8-bit floats, where the GPU has
    # them (compute capability 8.9 or higher; a CPU does without, slowly). Parameters keep their dtype either way.
    matmul: Literal["compute", "fp8"] = "compute"
    seed: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # the newest
    keep_every: int = 0  # besides, for ever, those of each multiple of so many steps; 0: none
    keep_best: str = ""  # and the best by a number of evaluate.every's or full_every's, as in "test_loss"; "": none
    log_every: int = 20
    # Updates in a row that may be left out because their loss or gradient was not finite; one more ends the run.
    max_skipped: int = 10
    warn_stalled: float = 60.0  # seconds of waiting for a batch after which a line says so, and each doubling; 0: none


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """A frozen teacher, whose probabilities and hidden states the model learns beside the targets (Hinton et al. 2015,
    Romero et al. 2015)."""

    teacher: str = ""  # a run's directory, or a checkpoint (a directory or a hub id); "": none
    temperature: float = 2.0  # both models' logits are divided by it; above 1 small probabilities count for more
    # Of what the teacher says, temperature**2 times a divergence; the cross-entropy, label smoothing with it, has the
    # rest, and the z-loss its whole weight.
    weight: float = 0.5
    features: float = 0.0  # weight of 1 - cosine of both models' last hidden states, put on top; 0: they do not count


@dataclass(frozen=True, kw_only=True)
class ShardingRule:
    """Where the parameters that a glob fits lie, before what `jaxfusion.parallel.sharding` says of them."""

    globs: tuple[str, ...] = ()  # over paths of parameters, as in "vision/*"
    axes: tuple[Literal["fsdp", "tensor", ""], ...] = ()  # of the mesh, for the parameter's last axes; "": it is whole


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    # "mesh": one program over all devices. "pmap": one a device, each of which holds the whole state.
    strategy: Literal["mesh", "pmap"] = "mesh"
    # The mesh's axes, whose product is the number of devices; rows are shared out over data x fsdp.
    data: int = 0  # 0: as many as the other two leave
    fsdp: int = 1  # devices that share the parameters, and the optimizer's state, out among them
    tensor: int = 1  # devices that share heads, hidden units and the vocabulary, and compute the same rows together
    rules: tuple[ShardingRule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    every: int = 0  # steps between looks at the held-out loss during training; 0: at the end only
    full_every: int = 0  # steps between whole evaluations, answers and the task's metrics included; 0: at the end only
    num_examples: int = 1000  # held-out samples, 0: all
    batch_size: int = 100  # samples read at once, and answers that grow at once, over all devices
    # The metrics are taken with each of these numbers of solved examples before a question, of the train split, or in
    # episodes of each class; (): none, in episodes as many as were trained with. See docs/few-shot.md.
    shots: tuple[int, ...] = ()
    # Which examples: the same random ones for all questions, or for each those whose pictures are most alike in a
    # vision tower's eyes, the most similar last (RICES, Yang et al. 2022).
    support: Literal["random", "rices"] = "random"
    support_records: int = 1000  # of the train split, at random, from which examples are chosen; 0: all
    rices_vision: str = ""  # the tower's checkpoint, a directory or a hub id; "": the run's own
    postprocess: bool = False  # clean predicted text before it is compared and shown


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    max_new_tokens: int = 64
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # draw from so many most probable tokens; 0: all
    top_p: float = 1.0  # draw from the fewest tokens that together have this probability
    min_p: float = 0.0  # draw from those that have this share of the most probable one's
    repetition_penalty: float = 1.0  # logits of tokens that are there already are divided by it
    seed: int = 0  # of the draws
    stop: tuple[str, ...] = ()  # texts before the first of which an answer ends
    num_beams: int = 1  # more: beam search, which draws nothing
    length_penalty: float = 1.0  # a beam's log-probability is divided by its length to this power
    cache_dtype: CacheDtype = "compute"  # of keys and values: model.dtype; smaller ones change answers a little
    weights: Weights = "given"  # of the decoder's linear layers: as they are kept; 8 bits change answers a little
    batch_size: int = 32  # answers that grow at once, in bulk (--input)
    num_positions: int = 2048  # of prompt and answer together, in bulk; a prompt that needs more is refused
    prefix_bytes: int = 0  # of keys and values of prompts' beginnings, in bulk and evaluation, for shared pictures


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    hardware: str = "h200"  # a row of jaxfusion/hardware.py: h100, h100-pcie, h200, b200, a100, l40s, l4
    topology: str = "1x1x1"  # slices x hosts x GPUs a host
    largest_batch: bool = True  # look for it too, which compiles the step up to eight times more


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What --mode prepare writes of each record of the train split, beside its tokenised text."""

    store: Literal["pixels", "features"] = "pixels"  # the resized picture, or what the frozen vision tower makes of it
    variants: int = 8  # of a conversation learned in random order, with one of several answers: all, or so many of them
    # So many of the largest probabilities that distil.teacher gives, at distil.temperature, wherever something is
    # learned: a run on the records learns from them and does not need the teacher; 0: none.
    teacher_top_k: int = 0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Of --mode serve, and what concerns the engine of --mode chat; see docs/serving.md."""

    host: str = "127.0.0.1"  # this machine alone; "0.0.0.0": whoever reaches it, who should then need a key
    port: int = 8000  # 0: any that is free
    model_name: str = ""  # as requests name the model; "": as the workdir or the checkpoint is called
    api_keys: tuple[str, ...] = ()  # any of which requests bring; more in the environment, as JAXFUSION_API_KEYS
    num_rows: int = 8  # answers that grow at once
    num_positions: int = 2048  # of prompt and answer together, images included; at most the model's context
    prefix_bytes: int = 2**30  # of keys and values of prompts' beginnings, for prompts that begin the same; 0: none
    max_waiting: int = 256  # requests beyond those that have a row; more are told to try again later
    max_images: int = 16  # a request; frames of a video are as many images
    max_image_bytes: int = 10 * 2**20  # of a file
    max_image_pixels: int = 2**24  # of a picture, by its header
    max_request_bytes: int = 32 * 2**20
    # Hosts of which a request may name a picture by its https URL: none, or these very names. Never a private address.
    image_hosts: tuple[str, ...] = ()
    timeout: float = 300.0  # seconds, to the end of an answer
    shutdown_seconds: int = 60  # for what is in flight when the server is told to end


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """The checkpoints, directories or hub ids, that a run's rooms begin with; "": none.

    Nobody sets these: a checkpoint that is named in a room's place, `config.model.vision = "org/name"`, is put down
    here, and its settings there.
    """

    model: str = ""
    decoder: str = ""
    encoder: str = ""
    vision: str = ""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
