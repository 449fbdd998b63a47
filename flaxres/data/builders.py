"""The datasets that flaxres prepares itself: digits, folders of images, CIFAR-10 and ImageNet.

None of them needs TensorFlow. A builder reads a dataset in its original form and returns its
`Contents`; `flaxres.data.prepare` writes them.
"""

import dataclasses
import functools
import io
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO

import numpy as np
from jaxtyping import Bool, UInt8

from flaxres.data import digests
from flaxres.data._download import download
from flaxres.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png"}
# Limits on archives. ImageNet's largest image has 15 MB, its largest class 230 MB, and its
# training split 1.28 million images.
LARGEST_IMAGE, LARGEST_CLASS, MOST_MEMBERS = 64 << 20, 1 << 30, 2_000_000

IMAGENET_IMAGES = {"train": 1_281_167, "validation": 50_000}
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

Example = tuple[str, bytes, str]
"""File name, encoded image and class."""
Examples = Callable[[], Iterable[Example]]


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a dataset in its original form.

    Attributes:
      classes: names of the classes in label order.
      splits: for each split the number of files, and a function that iterates over them.
      complete: fewer files than that are an error.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, tuple[int, Examples]]
    complete: bool = False


def read_digits() -> tuple[
    UInt8[np.ndarray, "1797 8 8"], UInt8[np.ndarray, "1797"], Bool[np.ndarray, "1797"]
]:
    """Reads the bundled digits.

    Returns:
      The images with grey levels from 0 to 16, the labels, and a mask of the test images.

    Examples:
      >>> images, labels, test = read_digits()
      >>> images.shape, int(labels[0]), int(test.sum())
      ((1797, 8, 8), 0, 500)
    """
    with np.load(pathlib.Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        return file["images"], file["labels"], file["test"]


def digits(source: pathlib.Path | None) -> Contents:
    """Returns 1,797 handwritten digits of 8x8 pixels, of which 50 a class are for testing.

    Their origin and licence are in `digits.md`.

    Args:
      source: ignored.
    """
    del source
    images, labels, test = read_digits()

    def examples(testing: bool) -> Iterator[Example]:
        for i in np.flatnonzero(test == testing):
            grey = (images[i] * 255.0 / 16).round().astype(np.uint8)
            yield f"{i:04d}.png", _png(np.repeat(grey[..., None], 3, -1)), str(labels[i])

    counts = {"train": int((~test).sum()), "test": int(test.sum())}
    splits = {
        name: (count, functools.partial(examples, name == "test")) for name, count in counts.items()
    }
    return Contents(tuple("0123456789"), splits)


def folder(source: pathlib.Path | None) -> Contents:
    """Returns the images in `<split>/<class>/*.jpg|jpeg|png`.

    Classes are numbered in the order of their names.

    Args:
      source: the folder with the splits.

    Raises:
      InputError: there is no such folder, it holds no images, or a class has no images in one of
        the splits.
    """
    source = require_folder(source)
    by_split = {split.name: folder_split(split) for split in visible(source)}
    by_split = {split: classes for split, classes in by_split.items() if classes}
    if not by_split:
        raise InputError(
            f"data.source={str(source)!r} holds no <split>/<class>/*.jpg|jpeg|png: arrange the "
            "images like train/cat/1.jpg"
        )
    everywhere = sorted(set().union(*by_split.values()))
    for split, classes in by_split.items():
        if missing := sorted(set(everywhere) - set(classes)):
            more = f" (and {len(missing) - 1} more classes)" if missing[1:] else ""
            raise InputError(
                f"class {missing[0]!r} has no images in split {split!r} of {str(source)!r}{more}: "
                "every class needs images in every split"
            )

    def examples(classes: dict[str, list[pathlib.Path]]) -> Iterator[Example]:
        for name in everywhere:
            for path in classes[name]:
                try:
                    data = path.read_bytes()
                except OSError as error:
                    raise InputError(
                        f"{str(path)!r} can't be read ({error.strerror}): correct its permissions, "
                        "or remove it"
                    ) from error
                yield str(path.relative_to(source)), data, name

    splits: dict[str, tuple[int, Examples]] = {}
    for split, classes in by_split.items():
        splits[split] = sum(map(len, classes.values())), functools.partial(examples, classes)
    return Contents(tuple(everywhere), splits)


def require_folder(source: str | pathlib.Path | None) -> pathlib.Path:
    """Returns `source` as a path.

    Raises:
      InputError: `source` is None or no folder. Every folder of images is a dataset by itself, so
        there is no default.
    """
    if source is None:
        raise InputError(
            "data.name='folder' needs data.source: the folder that holds <split>/<class>/*.jpg"
        )
    if not (path := pathlib.Path(source).expanduser()).is_dir():
        raise InputError(
            f"data.source={str(source)!r} is not a folder: give the one that holds "
            "<split>/<class>/*.jpg"
        )
    return path


def visible(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder that are not hidden, in the order of their names."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def folder_split(split: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the image files of each class that has any.

    Links to folders, and folders within folders, are followed.

    Args:
      split: the folder of a split.
    """
    classes = {
        c.name: sorted(p for p in c.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        for c in visible(split)
    }
    return {name: paths for name, paths in classes.items() if paths}


def cifar10(source: pathlib.Path | None) -> Contents:
    """Returns CIFAR-10 (Krizhevsky 2009) from the official binary archive.

    Args:
      source: `cifar-10-binary.tar.gz` or the folder that holds it; None downloads it.

    Raises:
      InputError: the archive does not exist, is another file, or can't be downloaded.
    """
    archive = source
    if source is not None and source.is_dir():
        archive = source / "cifar-10-binary.tar.gz"
    if archive is None:
        archive = download(CIFAR10_URL, CIFAR10_SHA256)
    elif not archive.is_file():
        raise InputError(
            f"data.source={str(archive)!r} does not exist: give cifar-10-binary.tar.gz, or leave "
            "data.source out to download it"
        )
    elif (digest := digests.file_digest(archive)) != CIFAR10_SHA256:
        raise InputError(
            f"{str(archive)!r} has SHA-256 {digest}: the official cifar-10-binary.tar.gz has "
            f"{CIFAR10_SHA256}; download it again"
        )

    def examples(members: tuple[str, ...]) -> Iterator[Example]:
        with tarfile.open(archive) as tar:
            for member in members:
                file = tar.extractfile(f"cifar-10-batches-bin/{member}.bin")
                assert file is not None
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                for i, row in enumerate(rows):
                    image = _png(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
                    yield f"{member}/{i:05d}.png", image, CIFAR10_CLASSES[row[0]]

    train = tuple(f"data_batch_{i}" for i in range(1, 6))
    splits = {
        "train": (50_000, functools.partial(examples, train)),
        "test": (10_000, functools.partial(examples, ("test_batch",))),
    }
    return Contents(CIFAR10_CLASSES, splits)


def imagenet2012(source: pathlib.Path | None) -> Contents:
    """Returns ImageNet-1k (Russakovsky 2015) from its original archives.

    Classes are the 1,000 WordNet ids in their standard order, which is alphabetical. Labels of the
    validation split come from the list that TFDS ships.

    Args:
      source: the folder with `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`.

    Raises:
      InputError: the folder or one of the archives does not exist.
    """
    import tensorflow_datasets as tfds

    if source is None or not source.is_dir():
        raise InputError(
            f"data.source={str(source)!r} is not a folder: give the one with "
            "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
        )
    train, validation = source / "ILSVRC2012_img_train.tar", source / "ILSVRC2012_img_val.tar"
    for path in (train, validation):
        if not path.is_file():
            raise InputError(
                f"{str(path)!r} does not exist: register at image-net.org and download ImageNet's "
                "archives there"
            )
    lists = tfds.core.tfds_path("datasets/imagenet2012")
    classes = tuple((lists / "labels.txt").read_text().split())
    labels = (lists / "validation_labels.txt").read_text().split()
    examples = {
        "train": functools.partial(_imagenet_train, train, classes),
        "validation": functools.partial(_imagenet_validation, validation, labels),
    }
    splits = {split: (count, examples[split]) for split, count in IMAGENET_IMAGES.items()}
    return Contents(classes, splits, complete=True)


def _imagenet_train(path: pathlib.Path, classes: tuple[str, ...]) -> Iterator[Example]:
    """Iterates over the training images, which lie in one archive a class within the archive."""
    with tarfile.open(path, "r:") as outer:
        for member, file in _members(outer, LARGEST_CLASS):
            if not member.name.endswith(".tar"):
                continue
            name = pathlib.PurePosixPath(member.name).stem
            if name not in classes:
                raise InputError(
                    f"{str(path)!r} holds {member.name!r}: the rule is one tar for each of the "
                    "1,000 classes"
                )
            with tarfile.open(fileobj=file, mode="r:") as inner:
                for image, content in _members(inner, LARGEST_IMAGE):
                    yield image.name, content.read(), name


def _imagenet_validation(path: pathlib.Path, labels: list[str]) -> Iterator[Example]:
    """Iterates over the validation images; the number in a file's name selects its label."""
    with tarfile.open(path, "r:") as tar:
        for image, content in _members(tar, LARGEST_IMAGE):
            number = pathlib.PurePosixPath(image.name).stem.rsplit("_", 1)[-1]
            if not (number.isdigit() and 1 <= int(number) <= len(labels)):
                raise InputError(
                    f"{str(path)!r} holds {image.name!r}: the rule is "
                    f"ILSVRC2012_val_00000001.JPEG to _{len(labels):08d}.JPEG"
                )
            yield image.name, content.read(), labels[int(number) - 1]


def _members(tar: tarfile.TarFile, largest: int) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Iterates over the regular files of an archive.

    Files are read in place. Nothing is unpacked, so neither the names nor the links of members can
    lead out of the archive. ImageNet's archives are not compressed and are opened as such, so no
    member is larger than the archive itself.

    Raises:
      InputError: a member has more than `largest` bytes, or there are more members than any
        dataset has.
    """
    for count, member in enumerate(tar):
        if member.size > largest or count >= MOST_MEMBERS:
            raise InputError(
                f"{str(tar.name)!r}: member {count} {member.name!r} has {member.size:,} bytes: the "
                f"rule is at most {MOST_MEMBERS:,} members of {largest:,} bytes; download the "
                "archive again"
            )
        if member.isreg() and (file := tar.extractfile(member)) is not None:
            yield member, file


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns an image as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


BUILDERS: dict[str, Callable[[pathlib.Path | None], Contents]] = {
    f.__name__: f for f in (digits, folder, cifar10, imagenet2012)
}
