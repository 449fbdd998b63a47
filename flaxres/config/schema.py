"""Sections and settings of a run. Each field is the one declaration of its setting.

The default, the rule and the other `Facts` stand in the call of `setting`, the help text in the
docstring below it. `check`, `--help`, resume and the comparison of processes read them here.

`--help` keeps the line breaks of these docstrings: 68 columns fit into a terminal of 80.
"""

import dataclasses
from typing import Literal

import jax

from flaxres.config import _rules as rules
from flaxres.config._rules import optional, setting
from flaxres.data import choices
from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD
from flaxres.data.autoaugment import policy
from flaxres.models.registry import MODELS


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings of the network.

    >>> ModelConfig(name="resnet18", dtype="bfloat16").name
    'resnet18'
    """

    name: str = setting("resnet50", choices=MODELS)
    """A name of `flaxres.list_models()`."""
    stem: Literal["standard", "small"] | None = setting(None)
    """'small' is a 3x3 convolution without pooling, for small images; None
    keeps the model's own. A network without the choice refuses it."""
    depths: tuple[int, ...] | None = setting(None, rules.SOME_POSITIVE)
    """Blocks of each stage; None keeps the model's own."""
    widths: tuple[int, ...] | None = setting(None, rules.SOME_POSITIVE)
    """Width of each stage; None keeps the model's own."""
    stem_width: int | None = setting(None, optional(rules.POSITIVE))
    """Output channels of the first convolution; None keeps the model's
    own."""
    stem_init: Literal["random", "whitening"] = setting("random")
    """'whitening' initialises the first convolution with the principal
    directions of training images, each divided by its standard
    deviation (Jordan 2024)."""
    shortcut: Literal["projection", "average", "zero_pad", "none"] | None = setting(None)
    """Shortcut where the shape changes; None keeps the model's own. 'none'
    removes all shortcuts: a plain network (He et al. 2016, section
    3.3)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = setting(None)
    """Dtype of the computation; None is bfloat16 on accelerators and
    float32 on CPUs. float16 scales the loss; float64 needs
    JAX_ENABLE_X64=1."""
    param_dtype: Literal["float32", "float64"] = setting("float32")
    """Dtype of the parameters, the optimizer's state and the updates."""
    bn_group: int | None = setting(None, optional(rules.POSITIVE))
    """Number of images that share batch statistics; None is the whole
    global batch."""
    bn_momentum: float = setting(0.9, rules.BELOW_ONE)
    """Momentum of the running statistics (PyTorch's momentum is one minus
    this)."""
    dropout: float = setting(0.0, rules.BELOW_ONE)
    """Dropout rate before the head."""
    stochastic_depth: float = setting(0.0, rules.BELOW_ONE)
    """Stochastic depth rate of the last block; rates grow linearly from 0
    at the first block (Huang et al. 2016)."""
    scan_blocks: bool = setting(False)
    """Compile the equal blocks of a stage once, under a scan; for very
    deep networks."""
    remat: bool = setting(False)
    """Recompute the activations of each block in the backward pass: less
    memory, more time."""
    anti_alias: Literal["blur", "average"] | None = setting(None)
    """'blur' replaces strides by BlurPool (Zhang 2019); None keeps the
    model's own."""
    head_bias: float = setting(0.0)
    """Initial bias of the head; minus the logarithm of the number of
    classes suits `optim.loss='binary'`."""
    weights: str | None = setting(None)
    """File of weights to start from (torchvision's, timm's or flaxres's
    naming); a head with another number of classes is re-initialised."""

    @property
    def compute_dtype(self) -> str:
        """Dtype of the computation on this machine's default backend."""
        return self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings of the dataset and of the host's part of the input.

    >>> DataConfig(name="folder", source="photographs").source
    'photographs'
    """

    name: str = setting("digits", measure=True)
    """digits, folder, parquet, webdataset, tfrecord, manifest, idx,
    cifar10, imagenet2012, or an ArrayRecord dataset that TFDS has
    prepared (`name` or `name/config:version`)."""
    source: str | None = setting(None, resume=True, local=True)
    """Location of the raw files: the folder of <split>/<class>/*.jpg, of
    <split>-00000-of-00005(.parquet), of <split>-000000.tar, of
    <split>.csv, of MNIST's or ImageNet's files, or CIFAR-10's archive."""
    data_dir: str | None = setting(None, resume=True, local=True)
    """Folder of prepared datasets; None is TFDS's own ($TFDS_DATA_DIR or
    ~/tensorflow_datasets)."""
    copy: bool = setting(True)
    """Prepare a `folder` as ArrayRecord, with every image decoded once;
    False reads its images in place."""
    train_split: str = setting("train", measure=True)
    """Split for training, in TFDS's syntax: `train[:90%]` works."""
    validation: float = setting(0.0, rules.BELOW_ONE)
    """Share of each class of a folder's split `train` that becomes its
    split `val`; 0 takes the splits as they are."""
    eval_split: str = setting("test", measure=True)
    """Split for evaluation, in TFDS's syntax."""
    exif: bool | None = setting(None)
    """Turn photographs upright by their EXIF orientation; None: those of
    `folder` and `manifest` alone."""
    image_size: int = setting(224, rules.POSITIVE)
    """Side of the training images in pixels."""
    eval_size: int = setting(224, rules.POSITIVE, measure=True)
    """Side of the evaluation's central crop in pixels."""
    eval_resize: int = setting(256, rules.POSITIVE, measure=True)
    """Short side before that crop in pixels."""
    progressive_sizes: tuple[tuple[float, int], ...] = setting((), rules.SIZES)
    """Pairs (epoch, side): training images have that side from that epoch
    on, and `image_size` before the first."""
    crop: Literal["random_resized", "centre"] = setting("random_resized")
    """Crop of training images: a random part, resized; or the centre after
    resizing the short side (small images; see augment.shift)."""
    crop_scale: tuple[float, float] = setting((0.08, 1.0), rules.RANGE_UP_TO_ONE)
    """Random resized crop: range of the share of the image's area."""
    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), rules.RANGE)
    """Random resized crop: range of width divided by height."""
    crop_interpolation: choices.CropInterpolation = setting("fast")
    """Random resized crop: 'fast' is OpenCV's bilinear with antialiasing;
    'bilinear' and 'bicubic' are Pillow's, exactly."""
    interpolation: choices.Interpolation = setting("bilinear", measure=True)
    """Pillow's interpolation for the central crop."""
    eval_flip: bool = setting(False, measure=True)
    """Average the logits of an image and of its mirror image in
    evaluation."""
    eval_shift: int = setting(0, measure=True)
    """Pixels; average the logits of an image (weight one half) and of two
    copies shifted that far towards opposite corners (Jordan 2024); 0 is
    off."""
    repeats: int = setting(1, rules.POSITIVE)
    """Repeated augmentation: copies of each image in its batch, each
    augmented separately (Hoffer et al. 2020)."""
    bad_images: choices.BadImages = setting("skip")
    """Treatment of an image that can't be decoded: 'skip' names and counts
    it and takes the next one; 'error' stops."""
    mean: tuple[float, float, float] = setting(IMAGENET_MEAN, rules.SHARES)
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, float, float] = setting(IMAGENET_STD, rules.ALL_POSITIVE)
    """Standard deviation of each channel, for pixels in [0, 1]."""
    resident: bool = setting(False)
    """Keep the whole decoded dataset on each device; for small datasets.
    Needs data.crop='centre'."""
    threads: int = setting(0, rules.NOT_NEGATIVE, resume=True, local=True)
    """Decoding threads; 0 is one per core."""
    workers: int = setting(0, rules.NOT_NEGATIVE, resume=True, local=True)
    """Decoding processes in place of threads, for hosts with more cores
    than one interpreter can use."""
    worker_seconds: float = setting(300.0, rules.NOT_NEGATIVE, resume=True, local=True)
    """Seconds after which a decoding process that has not finished a batch
    ends the run and is named; 0 is never."""
    prefetch: int = setting(4, rules.POSITIVE, resume=True, local=True)
    """Maximum number of batches being decoded at a time."""
    buffer_mib: int = setting(512, rules.POSITIVE, resume=True, local=True)
    """Maximum MiB of images being decoded at a time on each host; one
    batch is always allowed."""
    cache_mib: int = setting(choices.CACHE_MIB, rules.POSITIVE, resume=True, local=True)
    """Maximum MiB of Parquet row groups kept in memory by each decoding
    process; one is always allowed."""

    @property
    def uses_exif(self) -> bool:
        """True if photographs are turned upright."""
        return self.name in choices.FROM_CAMERAS if self.exif is None else self.exif


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Settings of the augmentation on the device, in order of application.
    Random numbers depend on the sample's position alone.

    >>> AugmentConfig(mixup=0.2).mixup
    0.2
    """

    shift: int = setting(0, rules.NOT_NEGATIVE)
    """Pixels of zero padding before a random window of the original size
    is taken (He et al. 2016: 4 on CIFAR)."""
    flip: bool = setting(True)
    """Mirror half of the images."""
    flip_alternates: bool = setting(False)
    """Mirror half of the images in the first epoch and then each image in
    every second epoch, instead of at random (Jordan 2024, section 3.6)."""
    color_jitter: tuple[float, float, float, float] = setting((0.0, 0.0, 0.0, 0.0), rules.JITTER)
    """Strengths of brightness, contrast, saturation and hue, as
    torchvision's ColorJitter takes them."""
    auto: str | None = setting(None, parse=policy)
    """'ta_wide' (TrivialAugmentWide) or RandAugment in timm's form, e.g.
    'rand-m7-mstd0.5-inc1'."""
    erase: float = setting(0.0, rules.SHARE)
    """Random erasing: probability."""
    erase_area: tuple[float, float] = setting((0.02, 1 / 3), rules.RANGE_BELOW_ONE)
    """Random erasing: range of the share of the image's area."""
    erase_ratio: tuple[float, float] = setting((0.3, 1 / 0.3), rules.RANGE)
    """Random erasing: range of height divided by width."""
    erase_fill: choices.Fill = setting("zero")
    """Random erasing: 'zero' is the mean colour, 'noise' is normal noise
    (timm's 'pixel')."""
    cutout: int = setting(0, rules.NOT_NEGATIVE)
    """Side of the square that cutout blanks, in pixels; 0 is off."""
    mixup: float = setting(0.0, rules.NOT_NEGATIVE)
    """Parameter of mixup's beta distribution; 0 is off. Images are mixed
    with their neighbour in the batch."""
    cutmix: float = setting(0.0, rules.NOT_NEGATIVE)
    """Parameter of cutmix's beta distribution; 0 is off."""
    mix_probability: float = setting(1.0, rules.SHARE)
    """Probability of mixing."""
    mix_switch: float = setting(0.5, rules.SHARE)
    """Probability of cutmix where both mixup and cutmix are on."""
    mix_per: Literal["batch", "example"] = setting("batch")
    """Draw one ratio for a whole batch or one for each image."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer, the learning rate schedule and the loss.

    >>> OptimConfig(name="lamb", learning_rate=5e-3).learning_rate
    0.005
    """

    name: Literal["sgd", "sgdw", "lars", "lamb", "adamw", "muon"] = setting("sgd")
    """Optimizer. 'sgdw' is SGD with decoupled weight decay that follows
    the schedule: (rate / peak) * decay * weight in each step."""
    learning_rate: float = setting(0.1, rules.NOT_NEGATIVE)
    """Peak learning rate for this batch size; nothing rescales it."""
    momentum: float = setting(0.9, rules.BELOW_ONE)
    """Momentum of SGD, LARS and Muon; first beta of LAMB and AdamW."""
    nesterov: bool = setting(False)
    """Use Nesterov's momentum (SGD, LARS and Muon)."""
    beta2: float = setting(0.999, rules.BELOW_ONE)
    """Decay of the squared gradients: LAMB, AdamW, and Muon for parameters
    that are no kernels of convolutions."""
    epsilon: float = setting(1e-6, rules.POSITIVE)
    """Added to the root of the squared gradients where beta2 is used."""
    trust_coefficient: float = setting(0.001, rules.NOT_NEGATIVE)
    """LARS: coefficient of the ratio between the norms of weights and
    gradients."""
    weight_decay: float = setting(1e-4, rules.NOT_NEGATIVE)
    """Weight decay; SGD and LARS add it to the gradient, as PyTorch's SGD
    does; LAMB, AdamW and Muon add it to the update."""
    decay_norm_and_bias: bool = setting(False)
    """Apply weight decay (and the trust ratio of LARS and LAMB) to norms
    and biases too."""
    clip_norm: float = setting(0.0, rules.NOT_NEGATIVE)
    """Maximum norm of the whole gradient; 0 is no limit."""
    layer_decay: float = setting(1.0, rules.UP_TO_ONE)
    """Learning rate of each stage as a share of the next stage's; the head
    has the full rate."""
    sam_rho: float = setting(0.0, rules.NOT_NEGATIVE)
    """Sharpness-aware minimisation (Foret et al. 2021): length of the
    ascent step; 0 is off."""
    sam_every: int = setting(1, rules.POSITIVE)
    """Steps between uses of SAM."""
    schedule: Literal["cosine", "step", "linear", "polynomial", "constant"] = setting("cosine")
    """Schedule after the warmup: half a cosine, a line or a polynomial of
    `power` to `final_scale`, steps at `milestones`, or a constant."""
    warmup_epochs: float = setting(0.0, rules.NOT_NEGATIVE)
    """Epochs of linear warmup from `warmup_scale` times the peak."""
    warmup_steps: int | None = setting(None, optional(rules.NOT_NEGATIVE))
    """Steps of warmup; overrides warmup_epochs."""
    warmup_scale: float = setting(0.0, rules.NOT_NEGATIVE)
    """Learning rate at the start of the warmup, as a share of the peak."""
    final_scale: float = setting(0.0, rules.NOT_NEGATIVE)
    """Cosine, linear, polynomial: learning rate at the end, as a share of
    the peak."""
    power: float = setting(2.0, rules.POSITIVE)
    """Polynomial: exponent of (1 - progress)."""
    milestones: tuple[float, ...] = setting((), rules.MILESTONES)
    """Step schedule: epochs at which the learning rate is multiplied by
    `gamma`."""
    milestone_steps: tuple[int, ...] = setting((), rules.MILESTONES)
    """Step schedule: steps; overrides milestones."""
    gamma: float = setting(0.1, rules.POSITIVE)
    """Step schedule: factor at each milestone."""
    label_smoothing: float = setting(0.0, rules.BELOW_ONE)
    """Share of the target that is spread evenly over all classes."""
    loss: Literal["cross_entropy", "binary", "binary_sum"] = setting("cross_entropy")
    """'binary' is binary cross entropy of each class (Wightman et al.
    2021), averaged over classes as in timm; 'binary_sum' sums over
    classes."""
    binary_threshold: float | None = setting(None, optional(rules.BELOW_ONE))
    """Binary losses: targets above the threshold become 1, others 0."""
    distill_model: str | None = setting(None, choices=MODELS)
    """Teacher network, a name of `flaxres.list_models()`, with
    `distill_weights`; it sees the same images."""
    distill_weights: str | None = setting(None)
    """File of the teacher's weights."""
    distill_alpha: float = setting(0.5, rules.SHARE)
    """Share of the teacher in the loss."""
    distill_temperature: float = setting(1.0, rules.POSITIVE)
    """Temperature of both distributions in the divergence (Hinton et al.
    2015), whose gradient is scaled by its square."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the run: its length, its devices and its output.

    >>> TrainConfig(batch_size=1024, epochs=18).epochs
    18
    """

    batch_size: int = setting(256, rules.POSITIVE)
    """Global batch size, over all devices and hosts."""
    eval_batch_size: int = setting(256, rules.POSITIVE, resume=True)
    """Global batch size of evaluation."""
    epochs: float = setting(90.0, rules.POSITIVE)
    """Length of the training in epochs."""
    steps: int | None = setting(None, optional(rules.POSITIVE))
    """Length of the training in steps; overrides epochs."""
    eval_every_epochs: float = setting(1.0, rules.POSITIVE)
    """Epochs between evaluations."""
    checkpoint_every_epochs: float = setting(1.0, rules.POSITIVE, resume=True)
    """Epochs between checkpoints."""
    keep_checkpoints: int = setting(3, rules.POSITIVE, resume=True)
    """Number of newest checkpoints to keep."""
    keep_best: int = setting(1, rules.NOT_NEGATIVE, resume=True)
    """Number of checkpoints with the best top-1 to keep besides, among
    those saved at an evaluation."""
    non_finite: Literal["stop", "skip"] = setting("stop")
    """Treatment of a loss or gradient that is not finite: 'stop' saves the
    state before it and names the samples; 'skip' leaves the step out."""
    loss_limit: float = setting(0.0, rules.NOT_NEGATIVE)
    """A loss above this limit is treated as not finite, against sudden
    spikes; 0 is no limit."""
    deterministic: bool = setting(False)
    """Use only kernels that give the same bits in every run; this slows
    GPUs down. CPUs are always deterministic."""
    watchdog_seconds: float = setting(1800.0, rules.NOT_NEGATIVE, resume=True)
    """Seconds after which a step, evaluation or save ends the process with
    code 70 and leaves its stacks; 0 is never. Compiling counts."""
    accumulate: int = setting(1, rules.POSITIVE)
    """Parts of a batch that are computed one after another, to save
    memory. With model.bn_group, which must divide the part, the result
    is the same but for the masks of dropout and stochastic depth."""
    ema_decay: float = setting(0.0, rules.BELOW_ONE)
    """Decay of the moving average of parameters and statistics, which
    evaluation then uses; 0 is off."""
    ema_every: int = setting(1, rules.POSITIVE)
    """Steps between updates of the moving average."""
    ema_start_epochs: float = setting(0.0, rules.NOT_NEGATIVE)
    """Epochs before averaging starts; until then the average is a copy of
    the weights."""
    log_every_steps: int = setting(50, rules.POSITIVE, resume=True)
    """Steps between log lines."""
    steps_per_dispatch: int | None = setting(None, optional(rules.POSITIVE))
    """Steps that the device runs per call on data that it holds
    (data.resident); None is 16 on accelerators and 1 on CPUs, whose
    loops are slow."""
    seed: int = setting(0, rules.SEED)
    """Seed of the initialisation, the sample order and the augmentation."""
    devices: int | None = setting(None, optional(rules.POSITIVE), resume=True)
    """Number of devices to use; None is all."""
    tensorboard: bool = setting(True, resume=True, local=True)
    """Write TensorBoard events."""
    wandb: str | None = setting(None, resume=True, local=True)
    """Project of Weights & Biases to log to besides, where that package is
    installed."""
    profile_steps: tuple[int, int] | None = setting(None, optional(rules.TRACE), resume=True)
    """First and last step of a trace by JAX's profiler, written to
    `profile` in the workdir."""
    progress: bool = setting(True, resume=True, local=True)
    """Show a live progress bar on a terminal; other outputs get plain
    lines."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. A file in configs/ binds `config = Config(...)`.

    >>> config = Config(ModelConfig(name="resnet18"), train=TrainConfig(epochs=10))
    >>> config.optim.learning_rate
    0.1
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
