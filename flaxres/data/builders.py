"""The datasets that flaxres prepares itself: digits, folders of images, CIFAR-10 and ImageNet.

None of them needs TensorFlow. A builder reads a dataset in its original form and returns its
`Contents`; `flaxres.data.prepare` writes them.
"""

import functools
import io
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
from jaxtyping import Bool, UInt8

from flaxres.data import digests
from flaxres.data._download import download
from flaxres.data.contents import Contents, Example, mixed
from flaxres.data.folders import folder
from flaxres.errors import InputError

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
    """Iterates over the training images, with their classes mixed.

    They lie in one archive a class within the archive. A first pass finds their places, and they
    are then read in the order in which they are written.
    """
    places: dict[str, list[tuple[str, int, int]]] = {}
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
                places.setdefault(name, []).extend(
                    (image.name, member.offset_data + image.offset_data, image.size)
                    for image, _ in _members(inner, LARGEST_IMAGE)
                )
    with path.open("rb") as archive:
        for name, (image_name, offset, size) in mixed(places, str):
            archive.seek(offset)
            yield image_name, archive.read(size), name


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
