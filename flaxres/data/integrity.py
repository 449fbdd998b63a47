"""Whether a prepared dataset is what was written: digests of its files and of its examples, kept beside it."""

import concurrent.futures
import dataclasses
import json
import pathlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from flaxres.data import digests
from flaxres.data.builders import bar
from flaxres.data.decode import UnreadableError, repair
from flaxres.errors import InputError

if TYPE_CHECKING:
    from flaxres.data.sources import Source

FILE = "flaxres_digests.json"
AT_ONCE = 1024


def add(digest: Any, name: str, data: bytes, label: str) -> None:
    """Takes an example into the digest of its split."""
    digest.update(json.dumps([name, label, len(data)]).encode())
    digest.update(data)


def write(folder: pathlib.Path, contents: dict[str, str]) -> None:
    """Writes the digests of a dataset's files, and of the examples of each split, beside them."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digests.of_file(path)}
        for path in sorted(folder.iterdir())
        if path.name != FILE
    }
    (folder / FILE).write_text(json.dumps({"contents": contents, "files": files}, indent=2) + "\n")


def read(folder: pathlib.Path) -> dict[str, Any]:
    """What `write` wrote, or empty: datasets that TFDS itself prepared have none."""
    try:
        return json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return {"contents": {}, "files": {}}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(folder / FILE)!r} can't be read ({error}): prepare the dataset again"
        ) from error


def require_whole(folder: pathlib.Path, files: dict[str, Any]) -> None:
    """Refuses a dataset of which a file is missing or has another size, before anything is read from it."""
    for name, facts in files.items():
        size = (folder / name).stat().st_size if (folder / name).exists() else None
        if size != facts["bytes"]:
            found = (
                "is missing"
                if size is None
                else f"has {size:,} bytes and was written with {facts['bytes']:,}"
            )
            raise InputError(
                f"{str(folder / name)!r} {found}: copy it anew, or delete {str(folder)!r} and prepare the dataset again"
            )


@dataclasses.dataclass
class Verdict:
    """What `verify` found: of each split the number of records and, where they were decoded, the kinds of images; and every problem, in words."""

    records: dict[str, int] = dataclasses.field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


def verify(folder: pathlib.Path, sources: list["Source"], decode: bool) -> Verdict:
    """Compares every file with its digest, reads every record, and with `decode` decodes every image. Progress goes to stderr."""
    verdict, known = Verdict(), read(folder)["files"]
    with bar() as progress, concurrent.futures.ThreadPoolExecutor() as pool:
        task = progress.add_task("files", total=len(known))
        for name, facts in known.items():
            path = folder / name
            verdict.files[name] = (
                "missing"
                if not path.exists()
                else "sound"
                if digests.of_file(path) == facts["sha256"]
                else "changed"
            )
            if verdict.files[name] != "sound":
                verdict.problems.append(f"file {name}: {verdict.files[name]} since it was written")
            progress.advance(task)
        for source in sources:
            task = progress.add_task(source.name, total=len(source))
            kinds: Counter[str] = Counter()
            for first in range(0, len(source), AT_ONCE):
                block = range(first, min(first + AT_ONCE, len(source)))
                for kind, problem in pool.map(
                    lambda i, source=source: check(source, i, decode), block
                ):
                    kinds[kind] += 1
                    if problem:
                        verdict.problems.append(problem)
                progress.advance(task, len(block))
            verdict.records[source.name] = len(source)
            verdict.kinds[source.name] = dict(sorted(kinds.items()))
    return verdict


def check(source: "Source", record: int, decode: bool) -> tuple[str, str]:
    """The kind of image of a record, and what is wrong with it, or ''."""
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
