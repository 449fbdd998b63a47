"""Writes datasets as ArrayRecord through TFDS, with digests beside them.

Files that can't be used are refused and counted here, once. Training then reads only images that
decode.
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
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from PIL import Image
from rich.progress import Progress

from flaxres.data import integrity
from flaxres.data._naming import config_name, require_divisible, require_split, version
from flaxres.data._progress import progress_bar
from flaxres.data.builders import BUILDERS
from flaxres.data.choices import IN_PLACE, BadImages
from flaxres.data.contents import Contents, Example, require_images
from flaxres.data.folders import folder
from flaxres.data.images import repair, shrink_image
from flaxres.data.source import Source
from flaxres.errors import InputError, unknown
from flaxres.paths import expanded
from flaxres.serving.crop import NoImageError, UnreadableError

STAGING = ".flaxres-incomplete"
EXAMPLES_AT_ONCE = 256
Change = Callable[[bytes], tuple[str, bytes]]
"""Returns the format of a file and the bytes to write; raises UnreadableError."""


@dataclasses.dataclass
class Tally:
    """The result of a preparation.

    Attributes:
      counts: for each split the number of files of each format, and of those that were refused.
        It is empty for a dataset that existed before.
      refused: name of each file that was refused, and the reason.
      contents: a `hashlib` object for each split, over its examples.
      classes: for each split the number of images of each class that were written.
      notes: sentences on what is left out or unusual.
    """

    counts: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    contents: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """Returns what `flaxres data info` tells about the preparation, to store it."""
        return {
            "files": {split: dict(sorted(counts.items())) for split, counts in self.counts.items()},
            "classes": {split: dict(sorted(n.items())) for split, n in self.classes.items()},
            "refused": dict(self.refused),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Returns a line for each split: `train: 1200 JPEG, 3 refused`.

        The names of refused files are printed during the preparation.
        """
        return [
            f"{split}: " + ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
            for split, counts in self.counts.items()
        ] + list(self.notes)


def require_complete(name: str, report: dict[str, Any] | None) -> None:
    """Refuses a dataset that was prepared without images that can't be decoded.

    Args:
      name: of the dataset.
      report: of its preparation, see `Tally.report`; None if TFDS prepared it.

    Raises:
      InputError: some were left out.
    """
    counts = (report or {}).get("files", {}).values()
    if count := sum(kinds.get("refused", 0) for kinds in counts):
        raise InputError(
            f"dataset {name!r} was prepared without {count:,} images that can't be decoded "
            "(flaxres data info lists them): repair or remove them, or skip bad images "
            "(data.bad_images='skip')"
        )


def prepare(
    name: str,
    source: str | None,
    data_dir: str | None,
    splits: Iterable[str] = (),
    bad_images: BadImages = "skip",
    validation: float = 0.0,
) -> tuple[pathlib.Path, Tally]:
    """Writes a dataset as ArrayRecord, unless it exists already.

    An interrupted preparation leaves nothing that could pass for a dataset, and the next one starts
    again. If two processes prepare the same dataset, one waits for the other.

    Args:
      name: `digits`, `folder`, `cifar10` or `imagenet2012`.
      source: path of the original files; see `flaxres.data.builders`.
      data_dir: folder of prepared datasets; None is the folder of TFDS.
      splits: splits that the dataset must have.
      bad_images: `error` refuses a dataset with an image that can't be decoded; `skip` leaves such
        images out.
      validation: share of each class of a folder's split `train` that becomes the split `val`.

    Returns:
      The folder of the dataset, and a tally of its files.

    Raises:
      InputError: the name is unknown, the source breaks the rules of its builder or lacks a split
        of `splits`, or, with `bad_images="error"`, an image can't be decoded.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     place, tally = prepare("digits", None, folder)
      >>> tally.lines()
      ['train: 1297 PNG', 'test: 500 PNG']
    """
    if name in IN_PLACE and name not in BUILDERS:
        raise InputError(
            f"{name!r} is read in place and needs no preparation: train with --data.name {name} "
            "--data.source DIR"
        )
    if name not in BUILDERS:
        raise unknown("dataset to prepare", name, BUILDERS)
    path = expanded(source) if source else None
    require_divisible(name, validation)
    contents = folder(path, validation) if name == "folder" else BUILDERS[name](path)
    for split in splits:
        require_split(name, split, contents.splits)
    config = config_name(name, source, validation)
    return _write(_Plan(name, config, contents, repair, bad_images), data_dir)


def shrink(
    sources: Mapping[str, Source], short_side: int, quality: int, data_dir: str | None
) -> tuple[str, pathlib.Path, Tally]:
    """Writes a prepared dataset again with smaller images.

    Images with a short side above `short_side` pixels are resized to it and become JPEGs. The
    others are kept to the byte.

    Args:
      sources: all splits of the dataset by name.
      short_side: largest short side in pixels.
      quality: quality of the JPEGs, 1 to 100.
      data_dir: folder of prepared datasets; None is the folder of TFDS.

    Returns:
      The name to train on, `name/[config_]DIGEST_256px_q90`; the folder of the dataset; a tally.

    Raises:
      InputError: a number is out of range, or a record has no label.
    """
    if not (short_side > 0 and 1 <= quality <= 100):
        raise InputError(
            f"--short-side={short_side} --quality={quality}: the rule is > 0, and 1 to 100"
        )
    first = next(iter(sources.values()))
    dataset, *config = first.dataset.partition(":")[0].split("/")
    splits = {
        split: (len(source), functools.partial(_examples, source))
        for split, source in sources.items()
    }
    # The digest prevents a shrunk older state of the dataset from passing for this one.
    name = "_".join([*config, first.digest[:8], f"{short_side}px_q{quality}"])
    change = functools.partial(shrink_image, short_side=short_side, quality=quality)
    plan = _Plan(dataset, name, Contents(first.classes, splits), change)
    return f"{dataset}/{name}", *_write(plan, data_dir)


def _examples(source: Source) -> Iterator[Example]:
    """Iterates over the examples of a prepared split."""
    for record in range(len(source)):
        data, label = source.read(record)
        if label < 0:
            raise InputError(
                f"{source.describe(record)} has no label: only labelled splits can be shrunk"
            )
        yield source.file_name(record), data, source.classes[label]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A dataset to write, and the change that its images undergo."""

    name: str
    config: str | None
    contents: Contents
    change: Change
    bad_images: BadImages = "skip"

    def examples(self, split: str, tally: Tally, progress: Progress) -> Iterator[Example]:
        """Iterates in order over the examples of a split that decode.

        Several threads decode; only a few hundred files are in memory at a time.
        """
        total, examples = self.contents.splits[split]
        task = progress.add_task(split, total=total)
        counts = tally.counts.setdefault(split, collections.Counter())
        digest = tally.contents[split] = hashlib.sha256()
        written = tally.classes.setdefault(split, collections.Counter())
        iterator = _readable(examples())
        with concurrent.futures.ThreadPoolExecutor() as pool:
            while block := list(itertools.islice(iterator, EXAMPLES_AT_ONCE)):
                changed = pool.map(self._changed, block)
                for (name, _, label), (result, data, reason) in zip(block, changed, strict=True):
                    counts[result] += 1
                    written[label] += data is not None
                    progress.advance(task)
                    if data is not None:
                        integrity.add(digest, name, data, label)
                        yield name, data, label
                        continue
                    if self.bad_images == "error" and result == "refused":
                        raise InputError(
                            f"{split}: {name}: {reason}; repair or remove it, or skip bad images "
                            "(data.bad_images='skip')"
                        )
                    tally.refused.append((name, reason))
                    progress.console.print(f"left out {name}: {reason}")
        if self.contents.complete and (actual := counts.total()) != total:
            raise InputError(
                f"split {split!r} has {actual:,} images: the rule is {total:,}; the archive is "
                "incomplete, download it again"
            )
        require_images(split, counts.total() - written.total(), written)

    def _changed(self, example: Example) -> tuple[str, bytes | None, str]:
        """Returns the format of a file and the bytes to write; without bytes the reason."""
        try:
            return *self.change(example[1]), ""
        except NoImageError as error:
            suffix = pathlib.PurePosixPath(example[0]).suffix.lower()
            by_name = suffix in Image.registered_extensions()
            result = "refused" if by_name else f"no image ({suffix or 'no extension'})"
            return result, None, str(error)
        except UnreadableError as error:
            return "refused", None, str(error)


def _readable(examples: Iterable[Example]) -> Iterator[Example]:
    """Iterates over `examples`; raises InputError if their archive is damaged."""
    try:
        yield from examples
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the archive is damaged ({reason}): download it again") from error


def _write(plan: _Plan, data_dir: str | None) -> tuple[pathlib.Path, Tally]:
    """Writes a dataset into a staging folder and moves it into place once it is complete."""
    import tensorflow_datasets as tfds

    tally = Tally(notes=plan.contents.notes)
    tfds.disable_progress_bar()
    root = expanded(data_dir or tfds.core.constants.DATA_DIR)
    relative = pathlib.Path(plan.name, *([plan.config] if plan.config else []), version(plan.name))
    place = root / relative
    with _lock(place.parent):
        if (place / "dataset_info.json").exists():
            if plan.bad_images == "error":
                require_complete(plan.name, integrity.read(place)["report"])
            return place, Tally()
        staging = place.parent / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            with (
                progress_bar() as progress,
                contextlib.redirect_stdout(io.StringIO()),  # TFDS prints where it writes
            ):
                _tfds_builder(plan, tally, progress, staging).download_and_prepare()
            contents = {split: digest.hexdigest() for split, digest in tally.contents.items()}
            integrity.write(staging / relative, contents, tally.report())
            (staging / relative).rename(place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return place, tally


def _tfds_builder(plan: _Plan, tally: Tally, progress: Progress, folder: pathlib.Path) -> Any:
    """Returns the TFDS builder that writes a dataset into `folder`."""
    import tensorflow_datasets as tfds

    configs = [tfds.core.BuilderConfig(name=plan.config)] if plan.config else []

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
            VERSION = tfds.core.Version(version(plan.name))
            BUILDER_CONFIGS: ClassVar = configs

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(plan.contents.classes)),
                    "file_name": tfds.features.Text(),
                }
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                del dl_manager
                return {split: self._generate_examples(split) for split in plan.contents.splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                for i, (file, data, label) in enumerate(plan.examples(split, tally, progress)):
                    yield i, {"image": data, "label": label, "file_name": file}

    Builder.name = plan.name
    return Builder(data_dir=str(folder), config=plan.config, file_format="array_record")


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Creates `folder` and excludes other processes from it until the context or process ends.

    The lock holds for processes of this machine, and of machines that share a file system with
    locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"datasets can't be written to {str(folder)!r} ({error.strerror}): give another "
            "data_dir"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
