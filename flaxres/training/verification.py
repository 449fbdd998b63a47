"""Digests of checkpoints, by which a step is verified before it is trusted.

A step is a folder that Orbax renames into place once everything is in it. Before that, we write the
digest of each of its files beside them. A step without digests was never finished; one whose files
do not agree with them is damaged. Orbax itself restores a flipped byte without an error.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

from flaxres.data.digests import file_digest

DIGESTS, SEAL, PART = "flaxres_digests.json", "flaxres_seal.json", "flaxres_seal.json.part"
# Orbax writes these once more when it moves the folder. Their digests are in the seal, which is
# written last.
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")
REFUSED = "refused"
_STEP = re.compile("0|[1-9][0-9]{0,18}")


@dataclasses.dataclass(frozen=True)
class SavedStep:
    """A step in a folder of checkpoints.

    Attributes:
      step: its number.
      path: its folder.
      problem: the reason not to trust it, '' if it verifies.
    """

    step: int
    path: pathlib.Path
    problem: str


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns relative path -> SHA-256 of the files that are complete before the folder moves."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.name not in (DIGESTS, SEAL, PART) and name not in LATE:
            result[name] = file_digest(path)
    return result


def late_digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns file name -> SHA-256 of the files that the seal covers."""
    paths = (folder / name for name in (*LATE, DIGESTS))
    return {path.name: file_digest(path) for path in paths if path.exists()}


def write_digests(folder: pathlib.Path, step: int | None) -> None:
    """Writes the digests of a step whose files are complete."""
    files = digests(folder)
    content = {"step": step, "sha256": _combined(files), "files": files}
    (folder / DIGESTS).write_text(json.dumps(content, indent=1))


def write_seal(folder: pathlib.Path) -> None:
    """Writes the seal of a step that is in its place."""
    (folder / PART).write_text(json.dumps(late_digests(folder)))
    (folder / PART).rename(folder / SEAL)


def _combined(files: dict[str, str]) -> str:
    """Returns the SHA-256 over the digests themselves."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def problem(folder: pathlib.Path) -> str:
    """Returns the first problem of the step in `folder`; '' if it is as it was saved."""
    try:
        written = json.loads((folder / DIGESTS).read_text())
        seal = json.loads((folder / SEAL).read_text()) if (folder / SEAL).exists() else {}
        files = digests(folder)
        expected = written["files"]
        if _combined(expected) != written["sha256"]:
            return f"{DIGESTS} has changed since it was saved"
        if str(written["step"]) != folder.name:
            return f"it is a copy of step {written['step']}"
        json.loads((folder / LATE[0]).read_text())
        late = late_digests(folder)
    except FileNotFoundError as error:
        name = pathlib.Path(error.filename).name
        return f"{name} is missing: the save was not finished, or the file was deleted"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it can't be read ({' '.join(str(error).split())})"
    for name, digest in (expected | seal).items():
        actual = (files | late).get(name)
        if actual is None:
            return f"{name} is missing"
        if actual != digest:
            return f"{name} has changed since it was saved"
    if added := sorted(set(files) - set(expected)):
        return f"{added[0]} was added since it was saved"
    return ""


def read_provenance(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the provenance that a step was saved with, as JSON."""
    content: dict[str, Any] = json.loads((folder / "provenance" / "metadata").read_text())
    return content


def step_number(name: str) -> int | None:
    """Returns the step that a folder is named after, None for any other name.

    Only names count that we write: "10", but not "010", nor a digit of another script.
    """
    return int(name) if _STEP.fullmatch(name) else None


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the numbers of the steps in a folder of checkpoints, the newest first, unverified."""
    found = [step_number(path.name) for path in folder.glob("*") if path.is_dir()]
    return sorted((step for step in found if step is not None), reverse=True)


def survey(folder: pathlib.Path) -> list[SavedStep]:
    """Verifies every step in a folder of checkpoints; returns the newest first."""
    return [
        SavedStep(step, folder / str(step), problem(folder / str(step))) for step in steps(folder)
    ]


def newest_sound(folder: pathlib.Path) -> tuple[int | None, list[SavedStep]]:
    """Returns the newest step that verifies, and the newer ones, which do not."""
    refused: list[SavedStep] = []
    for step in steps(folder):
        if not (reason := problem(folder / str(step))):
            return step, refused
        refused.append(SavedStep(step, folder / str(step), reason))
    return None, refused


def set_aside(saved: SavedStep) -> pathlib.Path:
    """Moves a step that does not verify to `refused/` in the workdir; returns its new place.

    Nothing there is overwritten or deleted.
    """
    target = saved.path.parents[1] / REFUSED
    target.mkdir(exist_ok=True)
    names = (f"{saved.step}.{i}" if i else str(saved.step) for i in range(10**6))
    place = next(target / name for name in names if not (target / name).exists())
    saved.path.rename(place)
    return place
