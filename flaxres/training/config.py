"""The one place where a setting has its name, its default and its rule."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import types
import typing
from typing import Any, Literal

import jax

from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.autoaugment import policy
from flaxres.data.choices import BadImages, CropInterpolation, Fill, Interpolation
from flaxres.errors import InputError, unknown
from flaxres.models.registry import MODELS


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = "resnet50"
    """A name of flaxres.list_models()."""
    stem: Literal["standard", "small"] | None = None
    """None keeps the model's own: 'small' is a 3x3 convolution without pooling, for small images. A network without the choice refuses it."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None keeps the model's own, as for the next two."""
    widths: tuple[int, ...] | None = None
    """Width of each stage."""
    stem_width: int | None = None
    """Width of what the first convolution gives."""
    stem_init: Literal["random", "whitening"] = "random"
    """'whitening': the first convolution starts with the principal directions of training pictures, each divided by its deviation (Jordan 2024)."""
    shortcut: Literal["projection", "average", "zero_pad", "none"] | None = None
    """None keeps the model's own: 'none' leaves shortcuts out, for a plain network (He et al. 2016, section 3.3)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Of the computation; None: bfloat16 on accelerators, float32 on CPU. float16 scales its loss, float64 needs JAX_ENABLE_X64=1."""
    param_dtype: Literal["float32", "float64"] = "float32"
    """Of the parameters, the optimizer's state and the updates."""
    bn_group: int | None = None
    """Images that share batch statistics; None: the whole global batch."""
    bn_momentum: float = 0.9
    """Of the running statistics (PyTorch's momentum is one minus this)."""
    dropout: float = 0.0
    """Rate before the head."""
    stochastic_depth: float = 0.0
    """Rate of the last block; it grows linearly from 0 at the first (Huang et al. 2016)."""
    scan_blocks: bool = False
    """Compile the equal blocks of a stage once, under a scan: for very deep networks."""
    remat: bool = False
    """Recompute activations in the backward pass, block by block: less memory, more time."""
    anti_alias: Literal["blur", "average"] | None = None
    """None keeps the model's own: 'blur' is BlurPool (Zhang 2019) in place of strides."""
    head_bias: float = 0.0
    """The head's bias at the start; minus the logarithm of the number of classes suits `optim.loss='binary'`."""
    weights: str | None = None
    """A file of weights to start from (torchvision's or timm's names, or flaxres's own); a head of another size is born anew."""

    @property
    def compute_dtype(self) -> str:
        return self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and what the network sees of it."""

    name: str = "digits"
    """digits, folder, cifar10, imagenet2012, or an ArrayRecord dataset that TFDS has prepared (`name` or `name/config:version`)."""
    source: str | None = None
    """Where the raw files are: the folder of <split>/<class>/*.jpg, ImageNet's tars, or CIFAR-10's archive."""
    data_dir: str | None = None
    """Where prepared datasets are; None: TFDS's own folder ($TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    train_split: str = "train"
    eval_split: str = "test"
    """TFDS's split syntax: `train[:90%]` works."""
    image_size: int = 224
    """Side of the training pictures, pixels."""
    eval_size: int = 224
    """Side of the evaluation's central crop, pixels."""
    eval_resize: int = 256
    """Short side before that crop, pixels."""
    progressive_sizes: tuple[tuple[float, int], ...] = ()
    """(epoch, side) pairs: from that epoch on training pictures have that side, before the first `image_size`."""
    crop: Literal["random_resized", "centre"] = "random_resized"
    """Of training pictures: a random part resized, or the short side resized and the middle taken (small images; see augment.shift)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: width to height."""
    crop_interpolation: CropInterpolation = "fast"
    """Random resized crop: 'fast' is bilinear with antialiasing by OpenCV; 'bilinear' and 'bicubic' are Pillow's, exactly."""
    interpolation: Interpolation = "bilinear"
    """Of the central crop: Pillow's."""
    eval_flip: bool = False
    """Average the logits of an image and its mirror image when evaluating."""
    eval_shift: int = 0
    """Pixels: average the logits of an image, of half the weight, and of it moved that far towards two opposite corners (Jordan 2024)."""
    repeats: int = 1
    """Repeated augmentation: how often an image comes in its batch, each time augmented anew (Hoffer et al. 2020)."""
    bad_images: BadImages = "skip"
    """An image that can't be decoded: 'skip' names and counts it, and takes the next one in its place; 'error' stops."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Of the channels in [0, 1]."""
    resident: bool = False
    """Keep the whole dataset on each device, decoded; for data that fit. Needs crop 'centre'."""
    threads: int = 0
    """Decoding threads; 0: one a core."""
    workers: int = 0
    """Decoding processes in place of the threads, for hosts whose many cores one interpreter can't keep busy."""
    worker_seconds: float = 300.0
    """Loading processes that take longer for a batch end the run, and are named; 0: never."""
    prefetch: int = 4
    """Most batches in decoding at a time."""
    buffer_mib: int = 512
    """Most MiB of pictures in decoding at a time, on each host; one batch is always allowed."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What the device does to training pictures, in this order; random numbers belong to the sample's position, whatever the hardware."""

    shift: int = 0
    """Pixels of zeros around the image before a random window of the old size is taken (He et al. 2016: 4 on CIFAR)."""
    flip: bool = True
    """Mirror half of the pictures."""
    flip_alternates: bool = False
    """Not at random: half of the pictures in the first epoch, then each in every second one (Jordan 2024, section 3.6)."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of brightness, contrast, saturation and hue, as torchvision's ColorJitter takes them."""
    auto: str | None = None
    """'ta_wide' (TrivialAugmentWide) or RandAugment in timm's form, e.g. 'rand-m7-mstd0.5-inc1'."""
    erase: float = 0.0
    """Random erasing: probability."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Random erasing: share of the picture's area."""
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Random erasing: height to width."""
    erase_fill: Fill = "zero"
    """Random erasing: the mean colour, or normal noise (timm's 'pixel')."""
    cutout: int = 0
    """Side of the square that cutout blanks, pixels; 0: none."""
    mixup: float = 0.0
    """Parameter of mixup's beta distribution; 0: none. Pictures are mixed with their neighbour in the batch."""
    cutmix: float = 0.0
    """Parameter of cutmix's beta distribution; 0: none."""
    mix_probability: float = 1.0
    """Of mixing at all."""
    mix_switch: float = 0.5
    """Of cutmix, where both are on."""
    mix_per: Literal["batch", "example"] = "batch"
    """Whether one ratio is drawn for a batch or one for each picture."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer, the schedule of its learning rate, and the loss."""

    name: Literal["sgd", "sgdw", "lars", "lamb", "adamw", "muon"] = "sgd"
    """'sgdw' is SGD whose weight decay is decoupled and follows the schedule: (rate / peak) * decay * weight a step."""
    learning_rate: float = 0.1
    """At its peak, for this batch size; nothing rescales it."""
    momentum: float = 0.9
    """Of SGD, LARS and Muon; the first beta of LAMB and AdamW."""
    nesterov: bool = False
    """Nesterov's momentum: SGD, LARS and Muon."""
    beta2: float = 0.999
    """LAMB and AdamW, and Muon for what is no kernel of a convolution: of the squared gradients."""
    epsilon: float = 1e-6
    """Where beta2 is used: added to the root."""
    trust_coefficient: float = 0.001
    """LARS: of the ratio between the norms of weights and gradients."""
    weight_decay: float = 1e-4
    """SGD and LARS: added to the gradient, as PyTorch's SGD does; LAMB, AdamW and Muon: added to the update."""
    decay_norm_and_bias: bool = False
    """Whether weight decay (and the trust ratio of LARS and LAMB) also acts on norms and biases."""
    clip_norm: float = 0.0
    """Most that the norm of the whole gradient may be; 0: any."""
    layer_decay: float = 1.0
    """Learning rate of each stage, as a share of the next one's; the head's is the full one."""
    sam_rho: float = 0.0
    """Sharpness-aware minimisation (Foret et al. 2021): length of the step uphill; 0: none."""
    sam_every: int = 1
    """SAM in every so many steps."""
    schedule: Literal["cosine", "step", "linear", "polynomial", "constant"] = "cosine"
    """After the warmup: half a cosine, a line or a polynomial of `power` to `final_scale`, steps at `milestones`, or nothing."""
    warmup_epochs: float = 0.0
    """Linear, from `warmup_scale` times the peak."""
    warmup_steps: int | None = None
    """Replaces warmup_epochs where it is given."""
    warmup_scale: float = 0.0
    final_scale: float = 0.0
    """Cosine, linear, polynomial: learning rate at the end, as a share of the peak."""
    power: float = 2.0
    """Polynomial: (1 - progress) to this power."""
    milestones: tuple[float, ...] = ()
    """Step: epochs at which the learning rate is multiplied by `gamma`."""
    milestone_steps: tuple[int, ...] = ()
    """Replaces milestones where it is given."""
    gamma: float = 0.1
    label_smoothing: float = 0.0
    loss: Literal["cross_entropy", "binary", "binary_sum"] = "cross_entropy"
    """'binary': binary cross entropy of each class (Wightman et al. 2021), averaged over classes, as timm's; 'binary_sum': summed."""
    binary_threshold: float | None = None
    """Binary losses: targets above it count as 1, others as 0."""
    distill_model: str | None = None
    """A network of flaxres.list_models() to learn from, with `distill_weights`; it sees the same pictures."""
    distill_weights: str | None = None
    """File of the teacher's weights."""
    distill_alpha: float = 0.5
    """Share of the teacher in the loss."""
    distill_temperature: float = 1.0
    """Of both distributions in the divergence (Hinton et al. 2015), whose gradient is scaled by its square."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how wide, and what is written."""

    batch_size: int = 256
    """Global: over all devices and hosts."""
    eval_batch_size: int = 256
    epochs: float = 90.0
    steps: int | None = None
    """Replaces epochs where it is given."""
    eval_every_epochs: float = 1.0
    checkpoint_every_epochs: float = 1.0
    keep_checkpoints: int = 3
    """The newest that are kept."""
    keep_best: int = 1
    """The best by top-1 that are kept besides, among those saved at an evaluation."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is no finite number: 'stop' saves the state before it and names the samples, 'skip' leaves the step out."""
    loss_limit: float = 0.0
    """A loss above it counts as one that is no finite number, against sudden spikes; 0: none does."""
    deterministic: bool = False
    """Only kernels that give the same bits in every run, and no choice of kernels by their speed; GPUs are slower so, and CPUs are so anyway."""
    watchdog_seconds: float = 1800.0
    """A step, evaluation or save that takes longer ends the process with code 70 and leaves its stacks; 0: never. Compiling counts."""
    accumulate: int = 1
    """Parts of a batch that are computed one after another, for memory; with model.bn_group, which must divide the part, the result is the same
    but for the masks of dropout and stochastic depth."""
    ema_decay: float = 0.0
    """Of the moving average of parameters and statistics, which evaluation then uses; 0: none."""
    ema_every: int = 1
    """Steps between its updates."""
    ema_start_epochs: float = 0.0
    """Until then the average is what it averages."""
    log_every_steps: int = 50
    steps_per_dispatch: int | None = None
    """Steps that the device runs by itself from data that are on it (data.resident); None: 16 on accelerators, 1 on CPU, whose loops are slow."""
    seed: int = 0
    devices: int | None = None
    """How many of the devices to use; None: all."""
    tensorboard: bool = True
    wandb: str | None = None
    """Project of Weights & Biases to log to besides, where that package is installed."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of a trace by JAX's profiler, written to `profile` in the workdir."""
    progress: bool = True
    """A live bar on a terminal; plain lines elsewhere."""


# Settings that don't change the result, and which a resumed run may therefore change.
FREE = {
    "data.source", "data.data_dir", "data.threads", "data.workers", "data.worker_seconds", "data.prefetch", "data.buffer_mib",
    "train.eval_batch_size", "train.log_every_steps", "train.devices", "train.tensorboard", "train.wandb", "train.profile_steps", "train.progress",
    "train.keep_checkpoints",
    "train.keep_best", "train.watchdog_seconds", "train.checkpoint_every_epochs",
}  # fmt: skip

# Those that only say how the model is measured.
MEASURE = {"data.eval_split", "data.eval_size", "data.eval_resize", "data.interpolation", "data.eval_flip", "data.eval_shift"}


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. A file in configs/ binds `config = Config(...)`."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def flat(config: Config) -> dict[str, Any]:
    """`{"optim.learning_rate": 0.1, ...}`"""
    return {
        f"{section.name}.{field.name}": getattr(getattr(config, section.name), field.name)
        for section in dataclasses.fields(config)
        for field in dataclasses.fields(getattr(config, section.name))
    }


def kinds() -> dict[str, Any]:
    """`{"optim.learning_rate": float, ...}`"""
    sections = typing.get_type_hints(Config)
    return {f"{name}.{key}": kind for name, section in sections.items() for key, kind in typing.get_type_hints(section).items()}


def fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type `kind`, for the types that a config has."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        wanted = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[1:] == (...,) else arguments
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(fits, value, wanted))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def options(kind: Any) -> tuple[Any, ...]:
    """The allowed values where they can be listed, else ()."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(value for one in typing.get_args(kind) for value in options(one))
    return ()


def described(kind: Any) -> str:
    """A type in words, for messages."""
    if kind is bool:
        return "True or False"
    if kind is float:
        return "a finite float"
    if typing.get_origin(kind) is tuple:
        first, *others = typing.get_args(kind)
        if others == [...]:
            return f"any number of: {described(first)}"
        return f"{1 + len(others)} values, {', '.join(map(described, (first, *others)))}"
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


# field -> (rule in words, test); the type has been checked before.
RULES: dict[str, tuple[str, Any]] = {
    **{f"data.{name}": ("> 0", lambda v: v > 0) for name in ("image_size", "eval_size", "eval_resize", "prefetch", "buffer_mib", "repeats")},
    **{f"train.{name}": ("> 0", lambda v: v > 0) for name in ("batch_size", "eval_batch_size", "epochs", "log_every_steps", "keep_checkpoints")},
    **{f"train.{name}": ("> 0", lambda v: v > 0) for name in ("eval_every_epochs", "checkpoint_every_epochs")},
    **{
        f"{name}": ("> 0 or None", lambda v: v is None or v > 0)
        for name in ("train.steps", "train.devices", "train.steps_per_dispatch", "model.bn_group")
    },
    **{f"train.{name}": ("> 0", lambda v: v > 0) for name in ("accumulate", "ema_every")},
    "optim.sam_every": ("> 0", lambda v: v > 0),
    "optim.power": ("> 0", lambda v: v > 0),
    "optim.epsilon": ("> 0", lambda v: v > 0),
    "optim.layer_decay": ("in (0, 1]", lambda v: 0 < v <= 1),
    "optim.warmup_steps": (">= 0 or None", lambda v: v is None or v >= 0),
    "optim.milestone_steps": ("> 0, ascending, each once", lambda v: list(v) == sorted(set(v)) and min((*v, 1)) > 0),
    "optim.binary_threshold": ("in [0, 1) or None", lambda v: v is None or 0 <= v < 1),
    "optim.distill_alpha": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "optim.distill_temperature": ("> 0", lambda v: v > 0),
    "train.profile_steps": ("two steps, 0 < first <= last, or None", lambda v: v is None or 0 < v[0] <= v[1]),
    **{f"optim.{name}": (">= 0", lambda v: v >= 0) for name in ("clip_norm", "sam_rho", "trust_coefficient")},
    **{f"{name}": ("in [0, 1)", lambda v: 0 <= v < 1) for name in ("optim.beta2", "train.ema_decay")},
    "train.ema_start_epochs": (">= 0", lambda v: v >= 0),
    **{f"optim.{name}": (">= 0", lambda v: v >= 0) for name in ("learning_rate", "weight_decay", "warmup_epochs", "warmup_scale", "final_scale")},
    **{f"data.{name}": (">= 0", lambda v: v >= 0) for name in ("threads", "workers", "worker_seconds")},
    **{f"train.{name}": (">= 0", lambda v: v >= 0) for name in ("keep_best", "watchdog_seconds", "loss_limit")},
    **{f"augment.{name}": (">= 0", lambda v: v >= 0) for name in ("shift", "cutout", "mixup", "cutmix")},
    **{f"augment.{name}": ("in [0, 1]", lambda v: 0 <= v <= 1) for name in ("erase", "mix_probability", "mix_switch")},
    "augment.color_jitter": ("four numbers >= 0, the last at most 0.5", lambda v: min(v) >= 0 and v[3] <= 0.5),
    "augment.erase_area": ("0 < low <= high < 1", lambda v: 0 < v[0] <= v[1] < 1),
    "augment.erase_ratio": ("0 < low <= high", lambda v: 0 < v[0] <= v[1]),
    **{f"model.{name}": ("all > 0, at least one, or None", lambda v: v is None or min(v, default=0) > 0) for name in ("depths", "widths")},
    "model.stem_width": ("> 0 or None", lambda v: v is None or v > 0),
    "data.progressive_sizes": ("epochs >= 0, ascending, each once, and sides > 0", lambda v: ascending(v)),
    "train.seed": ("in [0, 2**31)", lambda v: 0 <= v < 2**31),
    "model.dropout": ("in [0, 1)", lambda v: 0 <= v < 1),
    "model.stochastic_depth": ("in [0, 1)", lambda v: 0 <= v < 1),
    "model.bn_momentum": ("in [0, 1)", lambda v: 0 <= v < 1),
    "optim.momentum": ("in [0, 1)", lambda v: 0 <= v < 1),
    "optim.label_smoothing": ("in [0, 1)", lambda v: 0 <= v < 1),
    "optim.milestones": ("> 0, ascending, each once", lambda v: list(v) == sorted(set(v)) and min((*v, 1)) > 0),
    "optim.gamma": ("> 0", lambda v: v > 0),
    "data.crop_scale": ("0 < low <= high <= 1", lambda v: 0 < v[0] <= v[1] <= 1),
    "data.crop_ratio": ("0 < low <= high", lambda v: 0 < v[0] <= v[1]),
    "data.std": ("> 0", lambda v: min(v) > 0),
}


def ascending(sizes: tuple[tuple[float, int], ...]) -> bool:
    epochs = [epoch for epoch, _ in sizes]
    return epochs == sorted(set(epochs)) and min((*epochs, 0)) >= 0 and all(side > 0 for _, side in sizes)


def check(config: Config) -> None:
    """Raises InputError, naming the field, its value, the rule and the fix, for a config that could not train."""
    values = flat(config)
    for name, kind in kinds().items():
        if not fits(values[name], kind):
            if choices := options(kind):
                raise unknown(name, values[name], map(str, choices))
            raise InputError(f"{name}={values[name]!r} is of type {type(values[name]).__name__}: the rule is {described(kind)}")
        rule, holds = RULES.get(name, ("", lambda _: True))
        if not holds(values[name]):
            raise InputError(f"{name}={values[name]!r}: the rule is {rule}")
    if config.model.name not in MODELS:
        raise unknown("model.name", config.model.name, MODELS)
    batch, group = config.train.batch_size, config.model.bn_group
    if group and batch % group:
        raise InputError(f"model.bn_group={group} must divide train.batch_size={batch}: choose a divisor, or None for the whole batch")
    if batch % config.data.repeats:
        raise InputError(f"data.repeats={config.data.repeats} must divide train.batch_size={batch}: choose a divisor")
    if batch % config.train.accumulate:
        raise InputError(f"train.accumulate={config.train.accumulate} must divide train.batch_size={batch}: choose a divisor")
    part = batch // config.train.accumulate
    if config.model.shortcut == "none" and config.model.stochastic_depth:
        raise InputError("model.stochastic_depth with model.shortcut='none': a block without a shortcut can't be dropped; set one of them aside")
    if config.train.accumulate > 1 and (not group or part % group):
        raise InputError(
            f"train.accumulate={config.train.accumulate} needs a model.bn_group (={group}) that divides the {part} images of a part, "
            "so that the statistics are those of the whole batch: set one"
        )
    if (config.optim.distill_model is None) != (config.optim.distill_weights is None):
        raise InputError("optim.distill_model and optim.distill_weights go together: give both")
    if config.optim.distill_model is not None and config.optim.distill_model not in MODELS:
        raise unknown("optim.distill_model", config.optim.distill_model, MODELS)
    if config.model.weights and config.model.stem_init != "random":
        raise InputError(f"model.stem_init={config.model.stem_init!r} with model.weights: the weights have a stem already; leave one of them out")
    if config.optim.nesterov and config.optim.name in ("lamb", "adamw"):
        raise InputError(f"optim.nesterov=True with optim.name={config.optim.name!r}: it is SGD's, LARS's and Muon's; leave it out")
    if config.optim.nesterov and not config.optim.momentum:
        raise InputError("optim.nesterov=True with optim.momentum=0: Nesterov's step needs momentum, e.g. 0.9")
    if config.augment.flip_alternates and not config.augment.flip:
        raise InputError("augment.flip_alternates=True with augment.flip=False: it says which pictures are mirrored; set augment.flip=True")
    if config.augment.flip_alternates and config.data.repeats > 1:
        raise InputError(
            f"augment.flip_alternates=True with data.repeats={config.data.repeats}: an epoch sees a part of the pictures; set data.repeats=1"
        )
    if config.augment.auto is not None:
        policy(config.augment.auto)
    if (config.augment.mixup or config.augment.cutmix) and config.data.repeats == batch > 1:
        raise InputError(f"data.repeats={batch} fills the batch with one image, which mixup would mix with itself: lower it")
    if (config.augment.mixup or config.augment.cutmix) and batch % 2:
        raise InputError(f"augment.mixup and augment.cutmix mix pairs: train.batch_size={batch} must be even")
    if config.data.resident and config.data.crop == "random_resized":
        raise InputError("data.resident=True with data.crop='random_resized': the crop is made while decoding; set data.crop='centre'")
    if config.data.resident and config.data.progressive_sizes:
        raise InputError("data.resident=True with data.progressive_sizes: pictures on the device have one size; set data.resident=False")
    if (config.train.steps_per_dispatch or 1) > 1 and not config.data.resident:
        raise InputError("train.steps_per_dispatch > 1 needs data that are on the device: set data.resident=True, or leave it out")
    if config.data.eval_resize < config.data.eval_size:
        raise InputError(f"data.eval_resize={config.data.eval_resize} is less than data.eval_size={config.data.eval_size}: the crop must fit inside")
    if not 0 <= config.data.eval_shift < config.data.eval_size:
        raise InputError(f"data.eval_shift={config.data.eval_shift}: the rule is 0 <= eval_shift < data.eval_size (={config.data.eval_size})")
    if config.optim.schedule == "step" and not (config.optim.milestones or config.optim.milestone_steps):
        raise InputError("optim.schedule='step' with optim.milestones=(): give the epochs of the steps, e.g. 30 60 80")


def check_devices(config: Config, available: int) -> int:
    """The number of devices that the run uses; raises InputError where they aren't there or don't divide the batches."""
    count = config.train.devices or available
    if config.train.devices and jax.process_count() > 1:
        raise InputError(f"train.devices={config.train.devices} with {jax.process_count()} processes: these use all devices; leave it out")
    if count > available:
        raise InputError(f"train.devices={count}: there are {available}; leave it out to use all")
    for name in ("batch_size", "eval_batch_size"):
        if (batch := getattr(config.train, name)) % count:
            near = max(batch // count, 1) * count
            raise InputError(f"train.{name}={batch} is not divisible by the {count} devices: try {near} or {near + count}, or set train.devices")
    return count


def resolved(config: Config) -> Config:
    """The config with what depends on the machine written out, as it is saved and compared."""
    dtype: Any = config.model.compute_dtype
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


def load_config(path: str) -> Config:
    """The `config` that a Python file binds; raises InputError for a file that binds none."""
    file = pathlib.Path(path)
    if not os.path.isfile(file):  # noqa: PTH113 (false where it can't be read)
        raise unknown("config file", path, [str(p) for p in pathlib.Path("configs").rglob("*.py")] or ["a Python file that binds `config`"])
    if file.suffix != ".py":
        raise InputError(f"config file {path!r} is no .py file: give one that binds `config = flaxres.Config(...)`")
    spec = importlib.util.spec_from_file_location(f"flaxres_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"config file {path!r} can't be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise InputError(f"config file {path!r} binds no `config = flaxres.Config(...)`")
    return config


def variant(file: str, base: str, changes: dict[str, Any]) -> Config:
    """The config of the file `base` beside `file`, with some settings changed, `{"model.name": "resnet101"}`: for a recipe's other depths."""
    config = load_config(str(pathlib.Path(file).with_name(base)))
    for name, value in changes.items():
        section, _, field = name.partition(".")
        if name not in flat(config):
            raise unknown("setting", name, flat(config))
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{field: value})})
    return config


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def tuples(value: Any) -> Any:
    """JSON knows lists only."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def from_json(path: pathlib.Path) -> Config:
    """The config that a run wrote into its workdir; raises InputError for a file that is none."""
    try:
        sections = json.loads(path.read_text())
        types_ = typing.get_type_hints(Config)
        built = {name: types_[name](**{key: tuples(value) for key, value in fields.items()}) for name, fields in sections.items()}
        config = Config(**built)
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} does not exist: give the workdir of a run") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not a config of this version of flaxres: {error}") from error
    check(config)
    return config


def differences(old: Config, new: Config, free: set[str] = FREE) -> list[str]:
    """`field: old -> new` for each field that differs and is not in `free`."""
    before, after = flat(old), flat(new)
    return [f"{name}: {before[name]!r} -> {after[name]!r}" for name in after if before[name] != after[name] and name not in free]
