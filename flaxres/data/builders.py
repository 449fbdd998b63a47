"""What datasets are made from: digits, folders of photographs, CIFAR-10 and ImageNet, none of which needs TensorFlow.

Each is its classes, and for each split an iterator over `(name, bytes, class)`; `flaxres.data.prepare` writes them.
"""

import dataclasses
import functools
import io
import pathlib
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxres.cache import cache_folder
from flaxres.data import digests
from flaxres.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png"}
# Of archives; ImageNet's largest image has 15 MB, its largest class 230 MB, and its training split 1.28 million images.
LARGEST_IMAGE, LARGEST_CLASS, MOST_MEMBERS = 64 << 20, 1 << 30, 2_000_000
Example = tuple[str, bytes, str]

IMAGENET_IMAGES = {"train": 1_281_167, "validation": 50_000}
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a source holds: its classes in label order, and for each split the number of files and an iterator over them."""

    classes: tuple[str, ...]
    splits: Mapping[str, tuple[int, Callable[[], Iterable[Example]]]]
    complete: bool = False  # whether fewer files than that are a mistake


def read_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bundled digits: images (1797, 8, 8) of 0 to 16, labels (1797,), and which of them are held out for testing (1797,)."""
    with np.load(pathlib.Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        return file["images"], file["labels"], file["test"]


def digits(source: pathlib.Path | None) -> Contents:
    """1,797 handwritten digits of 8x8 pixels; 50 a class are held out. See `digits.md` for their origin and licence."""
    del source
    images, labels, test = read_digits()

    def examples(held_out: bool) -> Iterator[Example]:
        for i in np.flatnonzero(test == held_out):
            yield (
                f"{i:04d}.png",
                png(np.repeat((images[i] * 255.0 / 16).round().astype(np.uint8)[..., None], 3, -1)),
                str(labels[i]),
            )

    counts = {"train": int((~test).sum()), "test": int(test.sum())}
    splits = {
        name: (count, functools.partial(examples, name == "test")) for name, count in counts.items()
    }
    return Contents(tuple("0123456789"), splits)


def folder(source: pathlib.Path | None) -> Contents:
    """`<split>/<class>/*.jpg|jpeg|png`; classes are numbered in the order of their names."""
    source = require_folder(source)
    found = {split.name: folder_split(split) for split in visible(source)}
    found = {split: classes for split, classes in found.items() if classes}
    if not found:
        raise InputError(
            f"data.source={str(source)!r} holds no <split>/<class>/*.jpg|jpeg|png: arrange the images like train/cat/1.jpg"
        )
    everywhere = sorted(set().union(*found.values()))
    for split, classes in found.items():
        if missing := sorted(set(everywhere) - set(classes)):
            raise InputError(
                f"class {missing[0]!r} has no images in split {split!r} of {str(source)!r}"
                f"{f' (and {len(missing) - 1} more classes)' if missing[1:] else ''}: every class needs images in every split"
            )

    def examples(classes: dict[str, list[pathlib.Path]]) -> Iterator[Example]:
        for name in everywhere:
            for path in classes[name]:
                try:
                    data = path.read_bytes()
                except OSError as error:
                    raise InputError(
                        f"{str(path)!r} can't be read ({error.strerror}): mend its permissions, or take it away"
                    ) from error
                yield str(path.relative_to(source)), data, name

    splits: dict[str, tuple[int, Callable[[], Iterable[Example]]]] = {}
    for split, classes in found.items():
        splits[split] = sum(map(len, classes.values())), functools.partial(examples, classes)
    return Contents(tuple(everywhere), splits)


def require_folder(source: str | pathlib.Path | None) -> pathlib.Path:
    """`source` as a path; raises InputError where it is no folder, since every folder of images is a dataset of its own."""
    if source is None:
        raise InputError(
            "data.name='folder' needs data.source: the folder that holds <split>/<class>/*.jpg"
        )
    if not (path := pathlib.Path(source).expanduser()).is_dir():
        raise InputError(
            f"data.source={str(source)!r} is not a folder: give the one that holds <split>/<class>/*.jpg"
        )
    return path


def visible(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def folder_split(split: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Class -> image files, for the classes that have any; links to folders and nested folders are followed as they stand."""
    classes = {
        c.name: sorted(p for p in c.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        for c in visible(split)
    }
    return {name: paths for name, paths in classes.items() if paths}


def cifar10(source: pathlib.Path | None) -> Contents:
    """CIFAR-10 (Krizhevsky 2009) from the official binary archive: `source` is that file or a folder that has it; else it is downloaded."""
    archive = (
        source / "cifar-10-binary.tar.gz" if source is not None and source.is_dir() else source
    )
    if archive is None:
        archive = download(CIFAR10_URL, CIFAR10_SHA256)
    elif not archive.is_file():
        raise InputError(
            f"data.source={str(archive)!r} does not exist: give cifar-10-binary.tar.gz, or leave data.source out to download it"
        )
    elif (digest := digests.of_file(archive)) != CIFAR10_SHA256:
        raise InputError(
            f"{str(archive)!r} has SHA-256 {digest}: the official cifar-10-binary.tar.gz has {CIFAR10_SHA256}; fetch it again"
        )

    def examples(members: tuple[str, ...]) -> Iterator[Example]:
        with tarfile.open(archive) as tar:
            for member in members:
                file = tar.extractfile(f"cifar-10-batches-bin/{member}.bin")
                assert file is not None
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                for i, row in enumerate(rows):
                    yield (
                        f"{member}/{i:05d}.png",
                        png(row[1:].reshape(3, 32, 32).transpose(1, 2, 0)),
                        CIFAR10_CLASSES[row[0]],
                    )

    train = tuple(f"data_batch_{i}" for i in range(1, 6))
    splits = {
        "train": (50_000, functools.partial(examples, train)),
        "test": (10_000, functools.partial(examples, ("test_batch",))),
    }
    return Contents(CIFAR10_CLASSES, splits)


def imagenet2012(source: pathlib.Path | None) -> Contents:
    """ImageNet-1k (Russakovsky 2015) from `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar` in the folder `source`.

    Classes are the 1,000 WordNet ids in their standard order, which is alphabetical; the validation labels are the list that TFDS carries.
    """
    import tensorflow_datasets as tfds

    if source is None or not source.is_dir():
        raise InputError(
            f"data.source={str(source)!r} is not a folder: give the one with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
        )
    train, validation = source / "ILSVRC2012_img_train.tar", source / "ILSVRC2012_img_val.tar"
    for path in (train, validation):
        if not path.is_file():
            raise InputError(
                f"{str(path)!r} does not exist: ImageNet's tars are had from image-net.org after registration"
            )
    lists = tfds.core.tfds_path("datasets/imagenet2012")
    classes = tuple((lists / "labels.txt").read_text().split())
    labels = (lists / "validation_labels.txt").read_text().split()

    def train_examples() -> Iterator[Example]:
        with tarfile.open(train, "r:") as outer:
            for member, file in files(outer, LARGEST_CLASS):
                if not member.name.endswith(".tar"):
                    continue
                name = pathlib.PurePosixPath(member.name).stem
                if name not in classes:
                    raise InputError(
                        f"{str(train)!r} holds {member.name!r}: the rule is one tar for each of the 1,000 classes"
                    )
                with tarfile.open(fileobj=file, mode="r:") as inner:
                    yield from (
                        (image.name, content.read(), name)
                        for image, content in files(inner, LARGEST_IMAGE)
                    )

    def validation_examples() -> Iterator[Example]:
        with tarfile.open(validation, "r:") as tar:
            for image, content in files(tar, LARGEST_IMAGE):
                number = pathlib.PurePosixPath(image.name).stem.rsplit("_", 1)[-1]
                if not (number.isdigit() and 1 <= int(number) <= len(labels)):
                    raise InputError(
                        f"{str(validation)!r} holds {image.name!r}: the rule is ILSVRC2012_val_00000001.JPEG to _{len(labels):08d}.JPEG"
                    )
                yield image.name, content.read(), labels[int(number) - 1]

    counts = IMAGENET_IMAGES
    return Contents(
        classes,
        {
            "train": (counts["train"], train_examples),
            "validation": (counts["validation"], validation_examples),
        },
        True,
    )


def files(tar: tarfile.TarFile, largest: int) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The regular files of an archive, to be read as it is: nothing is unpacked, so that neither names nor links of members lead anywhere.

    ImageNet's archives are not compressed, and are opened as such, so that no member is larger than the archive itself. Raises InputError for a
    member of more than `largest` bytes, and for more of them than a dataset could have.
    """
    for count, member in enumerate(tar):
        if member.size > largest or count >= MOST_MEMBERS:
            raise InputError(
                f"{str(tar.name)!r}: member {count} {member.name!r} has {member.size:,} bytes: the rule is at most {MOST_MEMBERS:,} members of "
                f"{largest:,} bytes; get the archive anew"
            )
        if member.isreg() and (file := tar.extractfile(member)) is not None:
            yield member, file


BUILDERS: dict[str, Callable[[pathlib.Path | None], Contents]] = {
    f.__name__: f for f in (digits, folder, cifar10, imagenet2012)
}


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def download(url: str, digest: str) -> pathlib.Path:
    """The file at `url`, kept in the user's cache once its SHA-256 is `digest`; raises InputError where it can't be had."""
    target = cache_folder() / "downloads" / url.rsplit("/", 1)[-1]
    if target.is_file() and digests.of_file(target) == digest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            part.open("wb") as file,
            bar() as progress,
        ):
            task = progress.add_task(
                f"download {target.name} (KiB)",
                total=int(response.headers.get("Content-Length", 0)) // 1024 or None,
            )
            while block := response.read(1 << 20):
                file.write(block)
                progress.advance(task, len(block) // 1024)
    except (urllib.error.URLError, OSError) as error:
        raise InputError(
            f"{url} can't be downloaded ({error}): fetch it elsewhere and give its path as data.source"
        ) from error
    if (found := digests.of_file(part)) != digest:
        part.unlink()
        raise InputError(
            f"{url} came with SHA-256 {found}: the rule is {digest}; try again, or give a local copy as data.source"
        )
    part.rename(target)
    return target


def bar() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True, highlight=False, markup=False))
