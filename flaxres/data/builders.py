"""TFDS builders that need no TensorFlow: digits, folders of photographs, CIFAR-10 and ImageNet, written as ArrayRecord.

Each builder is a table of splits; each split is a list of classes and an iterator over `(name, bytes, class)`. Everything that could go
wrong with a file goes wrong here, once, and is counted: training then reads only images that decode.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import os
import pathlib
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxres.data.decode import UnreadableError, repair
from flaxres.errors import InputError, unknown

VERSION = "1.0.0"
EXTENSIONS = {".jpg", ".jpeg", ".png"}
Example = tuple[str, bytes, str]

IMAGENET_IMAGES = {"train": 1_281_167, "validation": 50_000}
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a source holds: its classes in label order, and for each split the number of files and an iterator over them."""

    classes: tuple[str, ...]
    splits: Mapping[str, tuple[int, Callable[[], Iterable[Example]]]]
    complete: bool = False  # whether fewer files than that are a mistake


def digits(source: pathlib.Path | None) -> Contents:
    """1,797 handwritten digits of 8x8 pixels; 50 a class are held out. See `digits.md` for their origin and licence."""
    del source
    with np.load(pathlib.Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"], file["test"]

    def examples(held_out: bool) -> Iterator[Example]:
        for i in np.flatnonzero(test == held_out):
            yield f"{i:04d}.png", png(np.repeat((images[i] * 255.0 / 16).round().astype(np.uint8)[..., None], 3, -1)), str(labels[i])

    counts = {"train": int((~test).sum()), "test": int(test.sum())}
    splits = {name: (count, functools.partial(examples, name == "test")) for name, count in counts.items()}
    return Contents(tuple("0123456789"), splits)


def folder(source: pathlib.Path | None) -> Contents:
    """`<split>/<class>/*.jpg|jpeg|png`; classes are numbered in the order of their names."""
    source = require_folder(source)
    found = {split.name: folder_split(split) for split in visible(source)}
    found = {split: classes for split, classes in found.items() if classes}
    if not found:
        raise InputError(f"data.source={str(source)!r} holds no <split>/<class>/*.jpg|jpeg|png: arrange the images like train/cat/1.jpg")
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
                    raise InputError(f"{str(path)!r} can't be read ({error.strerror}): mend its permissions, or take it away") from error
                yield str(path.relative_to(source)), data, name

    splits: dict[str, tuple[int, Callable[[], Iterable[Example]]]] = {}
    for split, classes in found.items():
        splits[split] = sum(map(len, classes.values())), functools.partial(examples, classes)
    return Contents(tuple(everywhere), splits)


def require_folder(source: str | pathlib.Path | None) -> pathlib.Path:
    """`source` as a path; raises InputError where it is no folder, since every folder of images is a dataset of its own."""
    if source is None:
        raise InputError("data.name='folder' needs data.source: the folder that holds <split>/<class>/*.jpg")
    if not (path := pathlib.Path(source).expanduser()).is_dir():
        raise InputError(f"data.source={str(source)!r} is not a folder: give the one that holds <split>/<class>/*.jpg")
    return path


def visible(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def folder_split(split: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Class -> image files, for the classes that have any; links to folders and nested folders are followed as they stand."""
    classes = {c.name: sorted(p for p in c.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()) for c in visible(split)}
    return {name: paths for name, paths in classes.items() if paths}


def cifar10(source: pathlib.Path | None) -> Contents:
    """CIFAR-10 (Krizhevsky 2009) from the official binary archive: `source` is that file or a folder that has it; else it is downloaded."""
    archive = source / "cifar-10-binary.tar.gz" if source is not None and source.is_dir() else source
    if archive is None:
        archive = download(CIFAR10_URL, CIFAR10_SHA256)
    elif not archive.is_file():
        raise InputError(f"data.source={str(archive)!r} does not exist: give cifar-10-binary.tar.gz, or leave data.source out to download it")
    elif (digest := sha256(archive)) != CIFAR10_SHA256:
        raise InputError(f"{str(archive)!r} has SHA-256 {digest}: the official cifar-10-binary.tar.gz has {CIFAR10_SHA256}; fetch it again")

    def examples(members: tuple[str, ...]) -> Iterator[Example]:
        with tarfile.open(archive) as tar:
            for member in members:
                file = tar.extractfile(f"cifar-10-batches-bin/{member}.bin")
                assert file is not None
                rows = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                for i, row in enumerate(rows):
                    yield f"{member}/{i:05d}.png", png(row[1:].reshape(3, 32, 32).transpose(1, 2, 0)), CIFAR10_CLASSES[row[0]]

    train = tuple(f"data_batch_{i}" for i in range(1, 6))
    splits = {"train": (50_000, functools.partial(examples, train)), "test": (10_000, functools.partial(examples, ("test_batch",)))}
    return Contents(CIFAR10_CLASSES, splits)


def imagenet2012(source: pathlib.Path | None) -> Contents:
    """ImageNet-1k (Russakovsky 2015) from `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar` in the folder `source`.

    Classes are the 1,000 WordNet ids in their standard order, which is alphabetical; the validation labels are the list that TFDS carries.
    """
    import tensorflow_datasets as tfds

    if source is None or not source.is_dir():
        raise InputError(f"data.source={str(source)!r} is not a folder: give the one with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar")
    train, validation = source / "ILSVRC2012_img_train.tar", source / "ILSVRC2012_img_val.tar"
    for path in (train, validation):
        if not path.is_file():
            raise InputError(f"{str(path)!r} does not exist: ImageNet's tars are had from image-net.org after registration")
    lists = tfds.core.tfds_path("datasets/imagenet2012")
    classes = tuple((lists / "labels.txt").read_text().split())
    labels = (lists / "validation_labels.txt").read_text().split()

    def train_examples() -> Iterator[Example]:
        with tarfile.open(train) as outer:
            for member in outer:
                file = outer.extractfile(member)
                if file is None or not member.name.endswith(".tar"):
                    continue
                name = pathlib.PurePosixPath(member.name).stem
                if name not in classes:
                    raise InputError(f"{str(train)!r} holds {member.name!r}: the rule is one tar for each of the 1,000 classes")
                with tarfile.open(fileobj=file) as inner:
                    yield from ((image.name, data, name) for image, data in files(inner))

    def validation_examples() -> Iterator[Example]:
        with tarfile.open(validation) as tar:
            for image, data in files(tar):
                number = pathlib.PurePosixPath(image.name).stem.rsplit("_", 1)[-1]
                if not (number.isdigit() and 1 <= int(number) <= len(labels)):
                    raise InputError(f"{str(validation)!r} holds {image.name!r}: the rule is ILSVRC2012_val_00000001.JPEG to _{len(labels):08d}.JPEG")
                yield image.name, data, labels[int(number) - 1]

    counts = IMAGENET_IMAGES
    return Contents(classes, {"train": (counts["train"], train_examples), "validation": (counts["validation"], validation_examples)}, True)


def files(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for member in tar:
        file = tar.extractfile(member)
        if file is not None:
            yield member, file.read()


BUILDERS: dict[str, Callable[[pathlib.Path | None], Contents]] = {f.__name__: f for f in (digits, folder, cifar10, imagenet2012)}


def png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, digest: str) -> pathlib.Path:
    """The file at `url`, kept in the user's cache once its SHA-256 is `digest`; raises InputError where it can't be had."""
    target = cache_folder() / "downloads" / url.rsplit("/", 1)[-1]
    if target.is_file() and sha256(target) == digest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file, bar() as progress:
            task = progress.add_task(f"download {target.name} (KiB)", total=int(response.headers.get("Content-Length", 0)) // 1024 or None)
            while block := response.read(1 << 20):
                file.write(block)
                progress.advance(task, len(block) // 1024)
    except (urllib.error.URLError, OSError) as error:
        raise InputError(f"{url} can't be downloaded ({error}): fetch it elsewhere and give its path as data.source") from error
    if (found := sha256(part)) != digest:
        part.unlink()
        raise InputError(f"{url} came with SHA-256 {found}: the rule is {digest}; try again, or give a local copy as data.source")
    part.rename(target)
    return target


def cache_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "flaxres"


def bar() -> Progress:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True, highlight=False, markup=False))


@dataclasses.dataclass
class Tally:
    """What preparation did with the files: counts by kind for each split, and the files that were refused, with the reason."""

    kinds: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """`train: 1200 JPEG, 3 refused`, a line a split. The refused files themselves are named while it works."""
        return [f"{split}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) for split, kinds in self.kinds.items()]


def readable(examples: Iterable[Example]) -> Iterator[Example]:
    """`examples`, with a damaged archive named as such."""
    try:
        yield from examples
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"the archive is damaged ({' '.join(str(error).split())}): get it anew") from error


def checked(split: str, total: int, examples: Iterable[Example], tally: Tally, progress: Progress, complete: bool) -> Iterator[Example]:
    """`examples` that decode, in order; files are decoded by several threads, and only a few hundred are held at a time."""
    task = progress.add_task(split, total=total)
    kinds = tally.kinds.setdefault(split, collections.Counter())

    def check(example: Example) -> tuple[str, Example | None, str]:
        name, data, label = example
        try:
            kind, data = repair(data)
            return kind, (name, data, label), ""
        except UnreadableError as error:
            return "refused", None, f"{name}\0{error}"

    iterator = readable(examples)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        while block := list(itertools.islice(iterator, 256)):
            for kind, example, reason in pool.map(check, block):
                kinds[kind] += 1
                progress.advance(task)
                if example is None:
                    name, _, why = reason.partition("\0")
                    tally.refused.append((name, why))
                    progress.console.print(f"refused {name}: {why}")
                else:
                    yield example
    if complete and (seen := sum(kinds.values())) != total:
        raise InputError(f"split {split!r} has {seen:,} images: the rule is {total:,}; the archive is incomplete, get it anew")
    if not sum(n for kind, n in kinds.items() if kind != "refused"):
        raise InputError(f"split {split!r} holds no image that can be read: {len(tally.refused)} files were refused")


def prepare(name: str, source: str | None, data_dir: str | None, splits: Iterable[str] = ()) -> tuple[pathlib.Path, Tally]:
    """Writes the dataset `name` as ArrayRecord under `data_dir` (TFDS's own folder by default) and returns where it is.

    A dataset that is there already is left alone. An interrupted preparation leaves nothing that is taken for a dataset: the next
    one starts it again. Of two processes that prepare the same dataset, one waits for the other.

    Raises InputError for an unknown name, a source that breaks its builder's rules, or one without a split of `splits`.
    """
    if name not in BUILDERS:
        raise unknown("dataset to prepare", name, BUILDERS)
    contents = BUILDERS[name](pathlib.Path(source).expanduser() if source else None)
    for split in splits:
        require_split(name, split, contents.splits)
    return write(name, contents, config_name(name, source), data_dir)


def require_split(name: str, split: str, there: Iterable[str]) -> None:
    """Refuses a split (sliced or not) of the dataset `name` that is not there."""
    if (base := split.partition("[")[0]) not in (there := list(there)):
        raise unknown(f"split of {name}", base, there)


def config_name(name: str, source: str | None) -> str | None:
    """The TFDS config that holds the folder `source`: its name and a digest of its files' names, sizes and times of change."""
    if name != "folder" or source is None:
        return None
    root = pathlib.Path(source).expanduser().resolve()
    digest = hashlib.sha256(str(root).encode())
    for split in visible(root) if root.is_dir() else []:
        for label, paths in folder_split(split).items():
            for path in paths:
                status = path.stat()
                digest.update(f"{split.name}/{label}/{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    readable = "".join(c if c.isalnum() else "_" for c in root.name.lower()) or "root"
    return f"{readable}_{digest.hexdigest()[:16]}"


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds other processes of this machine, and of those that share a file system with locks, off `folder`; ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"datasets can't be written to {str(folder)!r} ({error.strerror}): give another data_dir") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(name: str, contents: Contents, config: str | None, data_dir: str | None) -> tuple[pathlib.Path, Tally]:
    import tensorflow_datasets as tfds

    tally = Tally()
    tfds.disable_progress_bar()

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(VERSION)
            BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=config)] if config else []
            progress: Progress

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(contents.classes)),
                    "file_name": tfds.features.Text(),
                }
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label"), disable_shuffling=True
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                del dl_manager
                return {split: self._generate_examples(split) for split in contents.splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                total, examples = contents.splits[split]
                for i, (file, data, label) in enumerate(checked(split, total, examples(), tally, self.progress, contents.complete)):
                    yield i, {"image": data, "label": label, "file_name": file}

        Builder.name = name
        builder = Builder(data_dir=data_dir, config=config, file_format="array_record")

    folder_written = pathlib.Path(builder.data_path)
    with lock(folder_written.parent):
        if (folder_written / "dataset_info.json").exists():
            return folder_written, tally
        for leftover in folder_written.parent.glob(f"incomplete.*{folder_written.name}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with bar() as progress, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints where it writes
            builder.progress = progress
            builder.download_and_prepare()
    return folder_written, tally
