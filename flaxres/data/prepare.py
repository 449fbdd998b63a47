"""Writes datasets as ArrayRecord through TFDS, with digests beside them.

Everything that could go wrong with a file goes wrong here, once, and is counted: training then reads only images that decode.
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
from typing import TYPE_CHECKING, Any, ClassVar

from rich.progress import Progress

from flaxres.data import integrity
from flaxres.data.builders import BUILDERS, Contents, Example, bar, folder_split, visible
from flaxres.data.choices import BadImages
from flaxres.data.decode import UnreadableError, repair, shrink_image
from flaxres.errors import InputError, unknown

if TYPE_CHECKING:
    from flaxres.data.sources import Source

VERSION = "1.1.0"
STAGING = ".flaxres-incomplete"
Change = Callable[[bytes], tuple[str, bytes]]


@dataclasses.dataclass
class Tally:
    """What preparation did with the files: counts by kind for each split, and the files that were refused, with the reason."""

    kinds: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    contents: dict[str, Any] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """`train: 1200 JPEG, 3 refused`, a line a split. The refused files themselves are named while it works."""
        return [
            f"{split}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            for split, kinds in self.kinds.items()
        ]


def readable(examples: Iterable[Example]) -> Iterator[Example]:
    """`examples`, with a damaged archive named as such."""
    try:
        yield from examples
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"the archive is damaged ({' '.join(str(error).split())}): get it anew"
        ) from error


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is written, and how its images are changed on the way; `change` says of which kind a file is, and raises UnreadableError."""

    name: str
    config: str | None
    contents: Contents
    change: Change
    bad_images: BadImages = "skip"

    def examples(self, split: str, tally: Tally, progress: Progress) -> Iterator[Example]:
        """The split's examples that decode, in order; files are decoded by several threads, and only a few hundred are held at a time."""
        total, examples = self.contents.splits[split]
        task = progress.add_task(split, total=total)
        kinds = tally.kinds.setdefault(split, collections.Counter())
        digest = tally.contents[split] = hashlib.sha256()

        def changed(example: Example) -> tuple[str, bytes | None, str]:
            try:
                return *self.change(example[1]), ""
            except UnreadableError as error:
                return "refused", None, str(error)

        iterator = readable(examples())
        with concurrent.futures.ThreadPoolExecutor() as pool:
            while block := list(itertools.islice(iterator, 256)):
                for (name, _, label), (kind, data, why) in zip(
                    block, pool.map(changed, block), strict=True
                ):
                    kinds[kind] += 1
                    progress.advance(task)
                    if data is not None:
                        integrity.add(digest, name, data, label)
                        yield name, data, label
                        continue
                    if self.bad_images == "error":
                        raise InputError(
                            f"{split}: {name}: {why}; mend or remove it, or let bad images be skipped (data.bad_images='skip')"
                        )
                    tally.refused.append((name, why))
                    progress.console.print(f"refused {name}: {why}")
        if self.contents.complete and (seen := sum(kinds.values())) != total:
            raise InputError(
                f"split {split!r} has {seen:,} images: the rule is {total:,}; the archive is incomplete, get it anew"
            )
        if not sum(n for kind, n in kinds.items() if kind != "refused"):
            raise InputError(
                f"split {split!r} holds no image that can be read: {len(tally.refused)} files were refused"
            )


def prepare(
    name: str,
    source: str | None,
    data_dir: str | None,
    splits: Iterable[str] = (),
    bad_images: BadImages = "skip",
) -> tuple[pathlib.Path, Tally]:
    """Writes the dataset `name` as ArrayRecord under `data_dir` (TFDS's own folder by default) and returns where it is.

    A dataset that is there already is left alone. An interrupted preparation leaves nothing that is taken for a dataset: the next
    one starts it again. Of two processes that prepare the same dataset, one waits for the other.

    Raises InputError for an unknown name, a source that breaks its builder's rules, one without a split of `splits`, or, with
    `bad_images="error"`, an image that can't be decoded.
    """
    if name not in BUILDERS:
        raise unknown("dataset to prepare", name, BUILDERS)
    contents = BUILDERS[name](pathlib.Path(source).expanduser() if source else None)
    for split in splits:
        require_split(name, split, contents.splits)
    return write(Plan(name, config_name(name, source), contents, repair, bad_images), data_dir)


def shrink(
    sources: "Mapping[str, Source]", short_side: int, quality: int, data_dir: str | None
) -> tuple[str, pathlib.Path, Tally]:
    """Writes all splits of a prepared dataset again with smaller images.

    Returns the name to train on, `name/[config_]DIGEST_256px_q90`, and where it is.

    Images whose short side is above `short_side` pixels are resized to it and become JPEGs of that quality; the others are kept to the byte.
    """
    if not (short_side > 0 and 1 <= quality <= 100):
        raise InputError(
            f"--short-side={short_side} --quality={quality}: the rule is > 0, and 1 to 100"
        )

    def examples(source: "Source") -> Iterator[Example]:
        for record in range(len(source)):
            data, label = source.read(record)
            if label < 0:
                raise InputError(
                    f"{source.describe(record)} has no label: only labelled splits can be shrunk"
                )
            yield source.file_name(record), data, source.classes[label]

    first = next(iter(sources.values()))
    dataset, *config = first.dataset.partition(":")[0].split("/")
    contents = Contents(
        first.classes,
        {
            split: (len(source), functools.partial(examples, source))
            for split, source in sources.items()
        },
    )
    # The digest keeps what was shrunk from another state of the source from being taken for this one.
    name = "_".join([*config, first.digest[:8], f"{short_side}px_q{quality}"])
    change = functools.partial(shrink_image, short_side=short_side, quality=quality)
    return f"{dataset}/{name}", *write(Plan(dataset, name, contents, change), data_dir)


def require_split(name: str, split: str, there: Iterable[str]) -> None:
    """Refuses a split (sliced or not) of the dataset `name` that is not there."""
    if (base := split.partition("[")[0]) not in (there := list(there)):
        raise unknown(f"split of {name}", base, there)


def config_name(name: str, source: str | None) -> str | None:
    """The TFDS config that holds the folder `source`: its name and a digest of its files' names, sizes and times of change."""
    if name != "folder" or source is None:
        return None
    root = pathlib.Path(source).expanduser().resolve()
    digest = hashlib.sha256(f"{VERSION}\n{root}".encode())
    for split in visible(root) if root.is_dir() else []:
        for label, paths in folder_split(split).items():
            for path in paths:
                status = path.stat()
                digest.update(
                    f"{split.name}/{label}/{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode()
                )
    readable = "".join(c if c.isalnum() else "_" for c in root.name.lower()) or "root"
    return f"{readable}_{digest.hexdigest()[:16]}"


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds other processes of this machine, and of those that share a file system with locks, off `folder`; ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"datasets can't be written to {str(folder)!r} ({error.strerror}): give another data_dir"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(plan: Plan, data_dir: str | None) -> tuple[pathlib.Path, Tally]:
    """Writes into a staging folder beside the dataset's place and moves it there when everything is in it, the digests too."""
    import tensorflow_datasets as tfds

    contents, tally = plan.contents, Tally()
    tfds.disable_progress_bar()
    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    relative = pathlib.Path(plan.name, *([plan.config] if plan.config else []))

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(VERSION)
            BUILDER_CONFIGS: ClassVar = (
                [tfds.core.BuilderConfig(name=plan.config)] if plan.config else []
            )
            progress: Progress

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(contents.classes)),
                    "file_name": tfds.features.Text(),
                }
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                del dl_manager
                return {split: self._generate_examples(split) for split in contents.splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                for i, (file, data, label) in enumerate(plan.examples(split, tally, self.progress)):
                    yield i, {"image": data, "label": label, "file_name": file}

        Builder.name = plan.name
        place = root / relative / VERSION
        with lock(place.parent):
            if (place / "dataset_info.json").exists():
                return place, tally
            staging = place.parent / STAGING
            shutil.rmtree(staging, ignore_errors=True)
            try:
                builder = Builder(
                    data_dir=str(staging), config=plan.config, file_format="array_record"
                )
                with (
                    bar() as progress,
                    contextlib.redirect_stdout(io.StringIO()),
                ):  # TFDS prints where it writes
                    builder.progress = progress
                    builder.download_and_prepare()
                written = staging / relative / VERSION
                integrity.write(
                    written, {split: digest.hexdigest() for split, digest in tally.contents.items()}
                )
                written.rename(place)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return place, tally
