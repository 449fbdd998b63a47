"""Checkpoints through Orbax that are verified before they are trusted: the whole state, and beside it what it belongs to.

A step is a folder that Orbax renames into place once everything is in it. Before that, the digest of each of its files is written beside them, so
that what has no digests was never finished, and what does not agree with them is damaged. Orbax itself restores a flipped byte without a word.
"""

import dataclasses
import hashlib
import json
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxres.data.digests import file_digest
from flaxres.errors import InputError, WriteError
from flaxres.training import hosts
from flaxres.training.state import State

DIGESTS, SEAL, PART = "flaxres_digests.json", "flaxres_seal.json", "flaxres_seal.json.part"
# Orbax writes these once more when it moves the folder: their digests are in the seal, which comes last.
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")
REFUSED = "refused"


@dataclasses.dataclass(frozen=True)
class Found:
    """A step in a folder of checkpoints, and what is wrong with it, or ''."""

    step: int
    path: pathlib.Path
    problem: str


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file in `folder` but those that are written after the digests."""
    files = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (DIGESTS, SEAL, PART)
    )
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in files
        if str(path.relative_to(folder)) not in LATE
    }


def late_digests(folder: pathlib.Path) -> dict[str, str]:
    """File name -> SHA-256 of the files that the seal speaks for."""
    return {
        name: file_digest(folder / name) for name in (*LATE, DIGESTS) if (folder / name).exists()
    }


def whole(files: dict[str, str]) -> str:
    """SHA-256 over the digests themselves."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def problem(folder: pathlib.Path) -> str:
    """What is wrong with the step in `folder`, the first thing found: missing, changed or new files; '' where it is what was saved."""
    try:
        written = json.loads((folder / DIGESTS).read_text())
        seal = json.loads((folder / SEAL).read_text()) if (folder / SEAL).exists() else {}
        there = digests(folder)
        expected = written["files"]
        if whole(expected) != written["sha256"]:
            return f"{DIGESTS} has changed since it was saved"
        if str(written["step"]) != folder.name:
            return f"it is a copy of step {written['step']}"
        json.loads((folder / LATE[0]).read_text())
        late = late_digests(folder)
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is missing: the save was not finished, or the file was deleted"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it can't be read ({' '.join(str(error).split())})"
    for name, digest in (expected | seal).items():
        found = (there | late).get(name)
        if found != digest:
            return (
                f"{name} is missing" if found is None else f"{name} has changed since it was saved"
            )
    if new := sorted(set(there) - set(expected)):
        return f"{new[0]} was added since it was saved"
    return ""


def read_provenance(folder: pathlib.Path) -> dict[str, Any]:
    """What a step says of where it comes from."""
    return json.loads((folder / "provenance" / "metadata").read_text())


def steps(folder: pathlib.Path) -> list[int]:
    """The numbers of the steps in a folder of checkpoints, the newest first, whatever state they are in."""
    return sorted(
        (int(path.name) for path in folder.glob("*") if path.name.isdigit() and path.is_dir()),
        reverse=True,
    )


def survey(folder: pathlib.Path) -> list[Found]:
    """Every step in a folder of checkpoints, the newest first, verified."""
    return [Found(step, folder / str(step), problem(folder / str(step))) for step in steps(folder)]


def newest_sound(folder: pathlib.Path) -> tuple[int | None, list[Found]]:
    """The newest step that verifies, and the newer ones, which don't."""
    refused: list[Found] = []
    for step in steps(folder):
        if not (wrong := problem(folder / str(step))):
            return step, refused
        refused.append(Found(step, folder / str(step), wrong))
    return None, refused


def set_aside(found: Found) -> pathlib.Path:
    """Moves a step that can't be trusted to `refused/` in the workdir, where nothing is deleted, and returns its new place."""
    target = found.path.parents[1] / REFUSED
    target.mkdir(exist_ok=True)
    place = next(
        p
        for i in range(10**6)
        if not (p := target / (str(found.step) if not i else f"{found.step}.{i}")).exists()
    )
    found.path.rename(place)
    return place


def top1(measured: Any) -> float:
    return measured["top1"]


class Checkpoints:
    """The folder `checkpoints/` of a workdir. Saves are asynchronous: `close` waits for the last one. A context manager.

    `say` is told of each step that is passed over because it does not verify; with `writing` those are set aside.

    Attributes:
      saving_since: when the save under way was begun, on the monotonic clock; None where there is none.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int = 3,
        keep_best: int = 0,
        writing: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder.resolve()
        self.step = self.chosen(writing, say)
        best = BestN(get_metric_fn=top1, n=keep_best, keep_checkpoints_without_metrics=False)
        policies = [LatestN(keep), *([best] if keep_best else [])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=top1,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self.digest),
            create=writing,
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "provenance": ocp.JsonCheckpointHandler(),
        }
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        self.saving: int | None = None
        self.saving_since: float | None = None
        self.sealer: threading.Thread | None = None
        self.seal_error: OSError | None = None

    def chosen(self, writing: bool, say: Callable[[str], None]) -> int | None:
        """The newest step that verifies, read by the first process and told to the others."""
        step: int | None = None
        if hosts.leader():
            step, refused = newest_sound(self.folder)
            for found in refused:
                kept = f", and is kept in {set_aside(found)}" if writing else ""
                taken = "none is older" if step is None else f"step {step} is taken"
                say(
                    f"checkpoint of step {found.step} is not trusted: {found.problem}{kept}; {taken}"
                )
        hosts.wait_for_all("newest step is known")
        return hosts.gather(step)[0]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.manager.close()
        except Exception as error:
            if kind is None:
                raise self.unwritten(error) from error
        if self.sealer:
            self.sealer.join()

    def save(
        self, state: State, step: int, provenance: dict[str, Any], accuracy: float | None = None
    ) -> None:
        """Starts to save `state`; `provenance` (JSON) holds what a resume is compared with, `accuracy` is what the best are chosen by."""
        if step == self.step:
            return
        self.wait()
        self.saving, self.saving_since = step, time.monotonic()
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), provenance=ocp.args.JsonSave(provenance)
        )
        if not self.manager.save(
            step, args=content, metrics=None if accuracy is None else {"top1": accuracy}
        ):
            self.saving_since = None
            raise WriteError(
                f"step {step} was not saved: {self.folder} has a step {self.manager.latest_step()}, which is not of this run; move it away"
            )
        self.step = step
        self.sealer = threading.Thread(
            target=self.seal, args=(step,), name="flaxres-seal", daemon=True
        )
        self.sealer.start()

    def digest(self) -> None:
        """Orbax calls this from its thread when all files of a step are written, before it moves them to their place."""
        folder = max(
            self.folder.glob(f"{self.saving}.orbax-checkpoint-tmp*"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        files = digests(folder)
        (folder / DIGESTS).write_text(
            json.dumps({"step": self.saving, "sha256": whole(files), "files": files}, indent=1)
        )

    def seal(self, step: int) -> None:
        """Runs in a thread of its own until the save of `step` is over."""
        try:
            while self.manager.is_saving_in_progress():
                time.sleep(0.02)
            folder = self.folder / str(step)
            if hosts.leader() and (folder / DIGESTS).exists():
                (folder / PART).write_text(json.dumps(late_digests(folder)))
                (folder / PART).rename(folder / SEAL)
        except (
            OSError
        ) as error:  # a step without its seal is sound, but what kept it from being written is not
            self.seal_error = error
        finally:
            self.saving_since = None

    def restore(self, like: State) -> State:
        """The newest sound state, in the shapes and shardings of `like` (an `abstract_state`); raises InputError where it has others."""
        step = self.required_step()
        require_same_structure(
            self.manager.item_metadata(step)["state"].tree, like, self.folder / str(step)
        )
        return self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
        )["state"]

    def provenance(self) -> dict[str, Any]:
        """What was saved beside the newest sound state."""
        return self.manager.restore(
            self.required_step(), args=ocp.args.Composite(provenance=ocp.args.JsonRestore())
        )["provenance"]

    def required_step(self) -> int:
        if self.step is None:
            raise InputError(
                f"{str(self.folder)!r} holds no checkpoint that verifies: train first, or give another workdir"
            )
        return self.step

    def check(self) -> None:
        """Raises WriteError where a save that runs beside has failed; doesn't wait for it."""
        try:
            self.manager.check_for_errors()
        except Exception as error:
            raise self.unwritten(error) from error
        if self.seal_error:
            raise WriteError(
                f"step {self.step} in {self.folder} is saved, but not its seal: {self.seal_error}"
            ) from self.seal_error

    def wait(self) -> None:
        """Until the save under way is over; raises WriteError where it failed."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self.unwritten(error) from error
        if self.sealer:
            self.sealer.join()
        self.check()

    def unwritten(self, error: Exception) -> WriteError:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 300 else f"... {reason[-280:]}"
        return WriteError(
            f"step {self.saving} could not be saved in {self.folder}: {reason}; the steps before are intact: make room, or mend the disk, "
            "and start the same command again"
        )

    def read_back(self, state: State) -> None:
        """Makes sure that what was saved last can be read and is `state`, bit for bit; raises WriteError where it is not."""
        self.wait()
        wrong = problem(self.folder / str(self.step)) if hosts.leader() else ""
        hosts.wait_for_all("last step is verified")
        wrong = hosts.gather(wrong)[0]
        if not wrong:
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                state,
            )
            same = jax.tree.map(
                lambda a, b: a.tobytes() == b.tobytes(),
                jax.device_get(self.restore(like)),
                jax.device_get(state),
            )
            wrong = "" if jax.tree.all(same) else "what was read back is not what was saved"
        if wrong:
            raise WriteError(
                f"the last checkpoint, step {self.step} in {self.folder}, does not verify: {wrong}"
            )


def require_same_structure(saved: Any, like: State, place: pathlib.Path) -> None:
    """Refuses a checkpoint whose leaves are not those of the run, naming the first that differs, with both shapes and dtypes."""

    def leaves(tree: Any) -> dict[str, str]:
        found = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda node: hasattr(node, "shape")
        ):
            if hasattr(leaf, "shape"):
                keys = (
                    getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))
                    for key in path
                )
                found["/".join(map(str, keys))] = f"{leaf.dtype}{list(leaf.shape)}"
        return found

    theirs, ours = leaves(saved), leaves(like)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"checkpoint {str(place)!r} does not fit this run: {name} is {theirs.get(name, 'not there')} in the checkpoint and "
                f"{ours.get(name, 'not there')} in the run; give the config it was trained with, or another workdir"
            )
