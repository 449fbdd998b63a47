"""Digests of a prepared dataset's files and examples, stored beside it, and checks against them."""

import concurrent.futures
import dataclasses
import json
import pathlib
from collections import Counter
from typing import Any

from rich.progress import Progress

from flaxres.data import digests
from flaxres.data._progress import progress_bar
from flaxres.data.images import repair
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.serving.crop import UnreadableError

FILE = "flaxres_digests.json"
RECORDS_AT_ONCE = 1024


def add(digest: Any, name: str, data: bytes, label: str) -> None:
    """Adds an example to the digest of its split.

    Args:
      digest: a `hashlib` object.
      name: file name of the example.
      data: its encoded image.
      label: its class.
    """
    digest.update(json.dumps([name, label, len(data)]).encode())
    digest.update(data)


def write(folder: pathlib.Path, contents: dict[str, str], report: dict[str, Any]) -> None:
    """Writes the digests of a dataset beside its files.

    Args:
      folder: the folder with the files of the dataset.
      contents: digest of the examples of each split.
      report: facts about the preparation; see `flaxres.data.prepare.Tally.report`.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digests.file_digest(path)}
        for path in sorted(folder.iterdir())
        if path.name != FILE
    }
    known = {"contents": contents, "files": files, "report": report}
    (folder / FILE).write_text(json.dumps(known, indent=2) + "\n")


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the digests that `write` stored.

    Args:
      folder: the folder with the files of the dataset.

    Returns:
      `contents`, the digest of each split's examples, `files`, the size and SHA-256 of each file,
      and `report`. All are empty for datasets that TFDS prepared.

    Raises:
      InputError: the digests can't be read.
    """
    try:
        known: dict[str, Any] = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return {"contents": {}, "files": {}, "report": {}}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(folder / FILE)!r} can't be read ({error}): prepare the dataset again"
        ) from error
    return {"report": {}, **known}


def require_whole(folder: pathlib.Path, files: dict[str, Any]) -> None:
    """Checks the sizes of a dataset's files before anything is read from them.

    Args:
      folder: the folder with the files of the dataset.
      files: the sizes that were stored; see `read`.

    Raises:
      InputError: a file is missing or has another size.
    """
    for name, facts in files.items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size == facts["bytes"]:
            continue
        problem = "is missing"
        if size is not None:
            problem = f"has {size:,} bytes and was written with {facts['bytes']:,}"
        raise InputError(
            f"{str(path)!r} {problem}: copy it again, or delete {str(folder)!r} and prepare the "
            "dataset again"
        )


@dataclasses.dataclass
class Verdict:
    """The result of `verify`.

    Attributes:
      records: number of records of each split.
      counts: for each split the number of records with each result: `record` if it was only read,
        `unreadable record`, or for decoded images their format and `unreadable image`.
      files: `sound`, `changed` or `missing` for each file with a digest.
      problems: a message for each problem.
    """

    records: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


def verify(folder: pathlib.Path, sources: list[Source], decode: bool) -> Verdict:
    """Compares every file with its digest and reads every record; shows the progress on stderr.

    Args:
      folder: the folder with the files of the dataset.
      sources: all splits of the dataset.
      decode: decode every image too.

    Returns:
      The verdict. Damage is reported there and raises no error.
    """
    verdict, known = Verdict(), read(folder)["files"]
    with progress_bar() as progress, concurrent.futures.ThreadPoolExecutor() as pool:
        task = progress.add_task("files", total=len(known))
        for name, facts in known.items():
            state = verdict.files[name] = _file_state(folder / name, facts["sha256"])
            if state != "sound":
                verdict.problems.append(f"file {name}: {state} since it was written")
            progress.advance(task)
        for source in sources:
            _verify_records(source, decode, verdict, pool, progress)
    return verdict


def _file_state(path: pathlib.Path, digest: str) -> str:
    """Compares a file with its SHA-256."""
    if not path.exists():
        return "missing"
    return "sound" if digests.file_digest(path) == digest else "changed"


def _verify_records(
    source: Source,
    decode: bool,
    verdict: Verdict,
    pool: concurrent.futures.Executor,
    progress: Progress,
) -> None:
    """Reads every record of a split and adds the results to `verdict`."""
    task = progress.add_task(source.name, total=len(source))
    counts: Counter[str] = Counter()

    def check(record: int) -> tuple[str, str]:
        return _check_record(source, record, decode)

    for first in range(0, len(source), RECORDS_AT_ONCE):
        block = range(first, min(first + RECORDS_AT_ONCE, len(source)))
        for result, problem in pool.map(check, block):
            counts[result] += 1
            if problem:
                verdict.problems.append(problem)
        progress.advance(task, len(block))
    verdict.records[source.name] = len(source)
    verdict.counts[source.name] = dict(sorted(counts.items()))


def _check_record(source: Source, record: int, decode: bool) -> tuple[str, str]:
    """Returns the result for a record (see `Verdict.counts`), and its problem or ''."""
    try:
        data, _ = source.read(record)
    except InputError as error:
        return "unreadable record", str(error)
    if not decode:
        return "record", ""
    try:
        return repair(data)[0], ""
    except UnreadableError as error:
        return "unreadable image", f"{source.describe(record)}: {error}"
