"""Settings of the input."""

import dataclasses
from typing import Literal

from flaxres.config import _rules as rules
from flaxres.config._rules import optional, setting
from flaxres.data import choices
from flaxres.data.augment import IMAGENET_MEAN, IMAGENET_STD


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings of the dataset and of the host's part of the input.

    Examples:
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
    <split>.csv, of MNIST's or ImageNet's files, or CIFAR-10's archive.
    parquet, webdataset and tfrecord also take gs:// and s3://."""
    data_dir: str | None = setting(None, resume=True, local=True)
    """Folder of prepared datasets; None is TFDS's own ($TFDS_DATA_DIR or
    ~/tensorflow_datasets)."""
    copy: bool = setting(True)
    """Prepare a `folder` as ArrayRecord, with every image decoded once;
    False reads its images in place."""
    multi_label: bool = setting(False)
    """Images have any number of labels: `labels` in a manifest, a list of
    class labels in Parquet. Needs optim.loss='binary' or 'binary_sum'."""
    train_split: str = setting("train", measure=True)
    """Split for training, in TFDS's syntax: `train[:90%]` works."""
    validation: float = setting(0.0, rules.BELOW_ONE)
    """Share of each class of a folder's split `train` that becomes its
    split `val`; 0 takes the splits as they are."""
    eval_split: str = setting("test", measure=True)
    """Split for evaluation, in TFDS's syntax."""
    exif: bool | None = setting(None)
    """Turn photographs upright by their EXIF orientation; None: those of
    `folder` and `manifest` only."""
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
    balance: float = setting(0.0, rules.SHARE)
    """Balanced sampling: a class of n images has a share of each epoch
    in proportion to n^(1 - balance). 0 takes each image once, 1 all
    classes equally often (Kang et al. 2020); see optim.class_balance."""
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
    """Decoding threads; 0 is one per core. Any other number means no
    processes, if `workers` is None."""
    workers: int | None = setting(None, optional(rules.NOT_NEGATIVE), resume=True, local=True)
    """Decoding processes in place of threads, in training and evaluation;
    0 is none. None is two less than the cores on a host of 8 and more
    (at most 32, and one for 1,000 images), where memory and /dev/shm
    have room, and 0 in a run of several processes."""
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
