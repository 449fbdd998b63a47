"""The folder of this machine for a workdir in an object store, and what is read from there."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Literal

import jax

from flaxres.cache import cache_folder
from flaxres.errors import InputError
from flaxres.paths import expanded, replacing
from flaxres.remote import RemoteFolder, is_address
from flaxres.training.lock_object import naming
from flaxres.training.verification import problem, step_number
from flaxres.training.workdir import CHECKPOINTS, CLASSES, CONFIG, CURVES, METRICS, RUN, SUMMARY

MARK = ".staged.json"
# What commands read beside the checkpoints, and the folders of full evaluations.
READ, EVALUATIONS = (CONFIG, CLASSES, METRICS, SUMMARY, CURVES, RUN), "evaluation"


@dataclasses.dataclass
class Mark:
    """Facts on a staging folder and its address, kept in a file of the folder.

    Attributes:
      address: the address.
      objects: name -> version of the object when it was downloaded.
      writer: the word in the store as long as no other folder was the last to write there.
      uploaded: name -> size and time of the file when it was uploaded.
    """

    address: str
    objects: dict[str, str] = dataclasses.field(default_factory=dict)
    writer: str = ""
    uploaded: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: pathlib.Path, address: str) -> "Mark":
        """Reads the mark of a folder; returns an empty one if there is none that can be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / MARK).read_text(encoding="utf-8")))
        return cls(address)

    def write(self, folder: pathlib.Path) -> None:
        """Writes the mark in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / MARK) as part:
            part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def staging_folder(address: str, use: Literal["runs", "reads"]) -> pathlib.Path:
    """Returns the folder for an address in the user's cache; each process of a run has its own."""
    address = address.rstrip("/")
    scheme, _, path = address.partition("://")
    bucket, name = path.partition("/")[0], pathlib.PurePosixPath(path).name
    word = hashlib.sha256(address.encode()).hexdigest()[:8]
    # Without the first condition a command that only reads would start JAX's devices here.
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    process = f"-process{jax.process_index()}" if several else ""
    return cache_folder() / use / scheme / bucket / f"{name}-{word}{process}"


def is_staged(folder: pathlib.Path) -> bool:
    """Returns True for a staging folder, which the other processes of a run don't see."""
    return (folder / MARK).exists()


def shown(folder: pathlib.Path) -> str:
    """Returns the name of a workdir for messages: the address of a staging folder, or the path."""
    return Mark.read(folder, str(folder)).address


def local(
    workdir: str | os.PathLike[str], checkpoints: Literal["none", "newest", "all"] = "newest"
) -> pathlib.Path:
    """Returns a workdir as a folder to read; one in an object store is downloaded to the cache.

    Objects that did not change since the last call are not downloaded again.

    Args:
      workdir: a path, or an address.
      checkpoints: the checkpoints to download; "newest" is the newest that verifies.

    Raises:
      InputError: the store refuses or can't be reached, or holds no run there.

    Examples:
      >>> local("runs/digits").as_posix()
      'runs/digits'
    """
    if not is_address(workdir):
        return expanded(workdir)
    address = str(workdir).rstrip("/")
    remote, folder = RemoteFolder(address), staging_folder(address, "reads")
    with naming(address, "read"):
        names = remote.names()
        if checkpoints != "none" and CONFIG not in names:
            raise InputError(f"{address!r} holds no run: give the workdir of one")
        mark = Mark.read(folder, address)
        small = [name for name in names if name in READ or name.startswith(EVALUATIONS)]
        fetch(remote, folder, mark, {name: names[name] for name in small})
        for name in READ:
            if name not in names:
                (folder / name).unlink(missing_ok=True)
        steps = steps_of(names)
        for path in (folder / CHECKPOINTS).glob("*"):
            if step_number(path.name) not in steps:
                shutil.rmtree(path, ignore_errors=True)
        for step in sorted(steps, reverse=True) if checkpoints != "none" else ():
            if _fetch_step(remote, folder, mark, step, steps[step]) and checkpoints == "newest":
                break
    return folder


def publish(workdir: str | os.PathLike[str], path: pathlib.Path) -> None:
    """Uploads a file or a folder that was written to `local(workdir)`; for a path, does nothing.

    Raises:
      InputError: the store refuses, or can't be reached.
    """
    if not is_address(workdir):
        return
    address = str(workdir).rstrip("/")
    remote, folder = RemoteFolder(address), staging_folder(address, "reads")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    with naming(address, "written"):
        for file in sorted(files):
            remote.upload(file, file.relative_to(folder).as_posix())


def steps_of(names: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """Returns the objects of each step by its number, with their versions."""
    steps: dict[int, dict[str, str]] = {}
    for name, version in names.items():
        parts = name.split("/")
        step = step_number(parts[1]) if len(parts) > 2 and parts[0] == CHECKPOINTS else None
        if step is not None:
            steps.setdefault(step, {})[name] = version
    return steps


def objects_of_steps(names: Mapping[str, str]) -> list[str]:
    """Returns the names of the objects of all steps."""
    return [name for objects in steps_of(names).values() for name in objects]


def fetch(
    remote: RemoteFolder, folder: pathlib.Path, mark: Mark, objects: Mapping[str, str]
) -> None:
    """Downloads the objects that the folder does not have in their present versions."""
    for name, version in objects.items():
        if mark.objects.get(name) != version or not (folder / name).is_file():
            # A run may delete an old step meanwhile.
            with contextlib.suppress(FileNotFoundError):
                remote.download(name, folder / name)
                mark.objects[name] = version
    mark.write(folder)


def _fetch_step(
    remote: RemoteFolder, folder: pathlib.Path, mark: Mark, step: int, objects: Mapping[str, str]
) -> bool:
    """Downloads a step, a second time where its files were changed here; returns if it verifies."""
    place = folder / CHECKPOINTS / str(step)
    kept = [name for name in objects if mark.objects.get(name) == objects[name]]
    for path in place.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in objects:
            path.unlink()
    fetch(remote, folder, mark, objects)
    sound = not problem(place)
    if kept and not sound:
        for name in kept:
            del mark.objects[name]
        fetch(remote, folder, mark, objects)
        sound = not problem(place)
    return sound
