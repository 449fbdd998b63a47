"""Checkpoints of a run through Orbax: saved asynchronously, verified before they are restored."""

import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from flaxres.errors import InputError, WriteError
from flaxres.training import hosts
from flaxres.training.lock import Lock
from flaxres.training.mesh import place
from flaxres.training.staging import is_staged, shown
from flaxres.training.state import State
from flaxres.training.uploads import Workdir
from flaxres.training.verification import (
    DIGESTS,
    newest_sound,
    problem,
    set_aside,
    steps,
    write_digests,
    write_seal,
)


def _top1(metrics: Any) -> float:
    return float(metrics["top1"])


class _Steps(type(ocp.path.step.standard_name_format())):  # type: ignore[misc]
    """Orbax's names of steps, without other files and folders that it would take for one."""

    def find_all(self, base_path: Any) -> Iterator[Any]:
        ours = set(steps(pathlib.Path(base_path)))
        return (found for found in super().find_all(base_path) if found.path.name in map(str, ours))


def _all_processes() -> ocp.options.MultiprocessingOptions:
    """Returns the options of a folder that all processes see."""
    return ocp.options.MultiprocessingOptions()


def _only_this_process() -> ocp.options.MultiprocessingOptions:
    """Returns the options of a folder that only this process sees."""
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"alone{number}"
    )


class Checkpoints:
    """The folder `checkpoints/` of a workdir. A context manager, which waits for the last save.

    Args:
      folder: the folder.
      keep: number of the newest steps to keep.
      keep_best: number of the most accurate steps to keep besides.
      writing: creates the folder, and sets steps aside that do not verify.
      say: gets a line about each step that does not verify.
      lock: the lock of the workdir, which a save requires; None in processes that hold none.
      workdir: uploads a step once it is sealed; None where nobody reads the steps elsewhere.

    In a staging folder of an address, which other processes don't see, the first process saves the
    state, which all have, and each restores it from its own folder.

    Attributes:
      step: the newest step that is saved and verifies, or None.
      saving_since: start of the save under way, on the monotonic clock; None if there is none.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int = 3,
        keep_best: int = 0,
        writing: bool = False,
        say: Callable[[str], None] = print,
        lock: Lock | None = None,
        workdir: Workdir | None = None,
    ) -> None:
        self.folder, self.lock = folder.resolve(), lock
        self.workdir = workdir or Workdir(self.folder.parent)
        self.alone = jax.process_count() > 1 and is_staged(self.folder.parent)
        self.step = self._newest(writing, say)
        best = BestN(get_metric_fn=_top1, n=keep_best, keep_checkpoints_without_metrics=False)
        policies = [LatestN(keep), *([best] if keep_best else [])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=_top1,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self.digest),
            create=writing and not self.alone,
            step_name_format=_Steps(),
            multiprocessing_options=_only_this_process() if self.alone else _all_processes(),
        )
        if writing and self.alone:  # Orbax refuses to, where it saves in one process
            self.folder.mkdir(parents=True, exist_ok=True)
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "provenance": ocp.JsonCheckpointHandler(),
        }
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        self.saving: int | None = None
        self.saving_since: float | None = None
        self.sealer: threading.Thread | None = None
        self.seal_error: OSError | None = None

    def _newest(self, writing: bool, say: Callable[[str], None]) -> int | None:
        """Returns the newest step that verifies; the first process reads it for all."""
        step: int | None = None
        if hosts.leader():
            step, refused = newest_sound(self.folder)
            for saved in refused:
                kept = f", and is kept in {set_aside(saved)}" if writing else ""
                instead = "there is no older one" if step is None else f"using step {step}"
                say(
                    f"checkpoint of step {saved.step} is not trusted: {saved.problem}{kept}; "
                    f"{instead}"
                )
        hosts.wait_for_all("newest step is known")
        chosen: list[int | None] = hosts.gather(step)
        return chosen[0]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.manager.close()
        except Exception as error:
            if kind is None:
                raise self._write_error(error) from error
        if self.sealer:
            self.sealer.join()

    def save(
        self,
        state: State,
        step: int,
        provenance: Mapping[str, Any],
        accuracy: float | None = None,
    ) -> None:
        """Starts to save a state; does nothing if this step is saved.

        Args:
          state: the state.
          step: its step.
          provenance: JSON that is saved beside it.
          accuracy: of the state, by which the best are kept.

        Raises:
          WriteError: a save failed.
          InputError: another process took the lock.
        """
        if step == self.step:
            return
        if self.alone and not hosts.leader():
            self.step = step
            return
        if self.lock is not None:
            self.lock.require()
        self.wait()
        self.saving, self.saving_since = step, time.monotonic()
        saved = jax.device_get(state) if self.alone else state
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(saved), provenance=ocp.args.JsonSave(dict(provenance))
        )
        measured = None if accuracy is None else {"top1": accuracy}
        if not self.manager.save(step, args=content, metrics=measured):
            self.saving_since = None
            raise WriteError(
                f"step {step} was not saved: {self.folder} has a step "
                f"{self.manager.latest_step()}, which is not of this run; move it away"
            )
        self.step = step
        self.sealer = threading.Thread(
            target=self.seal, args=(step,), name="flaxres-seal", daemon=True
        )
        self.sealer.start()

    def digest(self) -> None:
        """Writes the digests of the step that is being saved.

        Orbax calls this from its thread when all files are written, before it moves them.
        """
        write_digests(self.folder / f"{self.saving}{TMP_DIR_SUFFIX}", self.saving)

    def seal(self, step: int) -> None:
        """Waits until the save of `step` is over, and seals it; runs in a thread."""
        try:
            while self.manager.is_saving_in_progress():
                time.sleep(0.02)
            folder = self.folder / str(step)
            if hosts.leader() and (folder / DIGESTS).exists():
                write_seal(folder)
                self.workdir.push()
        except OSError as error:
            # A step without its seal is sound, but the error may concern the next save too.
            self.seal_error = error
        finally:
            self.saving_since = None

    def restore(self, like: State) -> State:
        """Restores the newest step that verifies.

        Args:
          like: shapes, dtypes and shardings of the result, as of `abstract_state`.

        Raises:
          InputError: there is no step that verifies, or it has other shapes or dtypes.
        """
        step = self._required_step()
        metadata = self.manager.item_metadata(step)["state"].tree
        require_same_structure(metadata, like, self.folder / str(step))
        if not self.alone:
            return self._read(step, like)
        arrays = self._read(step, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
        state: State = jax.tree.map(lambda array, leaf: place(array, leaf.sharding), arrays, like)
        return state

    def _read(self, step: int, like: State) -> State:
        """Reads a step as arrays of the kind of `like`: on devices, or of NumPy."""
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        state: State = self.manager.restore(step, args=arguments)["state"]
        return state

    def provenance(self) -> dict[str, Any]:
        """Returns the JSON that the newest step that verifies was saved with.

        Raises:
          InputError: there is no step that verifies.
        """
        arguments = ocp.args.Composite(provenance=ocp.args.JsonRestore())
        restored = self.manager.restore(self._required_step(), args=arguments)
        content: dict[str, Any] = restored["provenance"]
        return content

    def _required_step(self) -> int:
        if self.step is None:
            raise InputError(
                f"workdir {shown(self.folder.parent)!r} holds no checkpoint that verifies: train "
                "first, or give another workdir"
            )
        return self.step

    def check(self) -> None:
        """Raises WriteError where the save under way has failed; does not wait for it."""
        try:
            self.manager.check_for_errors()
        except Exception as error:
            raise self._write_error(error) from error
        if self.seal_error:
            raise WriteError(
                f"step {self.step} in {self.folder} is saved, but not its seal: {self.seal_error}"
            ) from self.seal_error
        self.workdir.check()

    def wait(self) -> None:
        """Waits for the save under way; raises WriteError where it failed."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error
        if self.sealer:
            self.sealer.join()
        self.workdir.wait()
        self.check()

    def _write_error(self, error: Exception) -> WriteError:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < 300 else f"... {reason[-280:]}"
        return WriteError(
            f"step {self.saving} could not be saved in {self.folder}: {reason}; the steps before "
            "are intact: make room, or mend the disk, and start the same command again"
        )

    def read_back(self, state: State) -> None:
        """Checks that the last save can be read and equals `state`, bit for bit.

        Raises:
          WriteError: it does not.
        """
        self.wait()
        reason = problem(self.folder / str(self.step)) if hosts.leader() else ""
        hosts.wait_for_all("last step is verified")
        reason = hosts.gather(reason)[0]
        if not reason and not all(hosts.gather(self._restores(state))):
            reason = "what was read back is not what was saved"
        if reason:
            raise WriteError(
                f"the last checkpoint, step {self.step} in {self.folder}, does not verify: {reason}"
            )

    def _restores(self, state: State) -> bool:
        """Returns True if the newest step equals `state`, bit for bit, or is not here."""
        expected = jax.device_get(state)
        if self.alone:
            if not hosts.leader():
                return True
            saved = self._read(self._required_step(), expected)
        else:
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                state,
            )
            saved = jax.device_get(self.restore(like))
        same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), saved, expected)
        return bool(jax.tree.all(same))


def require_same_structure(saved: Any, like: State, place: pathlib.Path) -> None:
    """Checks that a checkpoint has the leaves of a run.

    Raises:
      InputError: it does not; the message names the first leaf that differs, with both shapes and
        dtypes.
    """
    theirs, ours = _described_leaves(saved), _described_leaves(like)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"checkpoint {str(place)!r} does not fit this run: {name} is "
                f"{theirs.get(name, 'not there')} in the checkpoint and "
                f"{ours.get(name, 'not there')} in the run; give the config it was trained with, "
                "or another workdir"
            )


def _described_leaves(tree: Any) -> dict[str, str]:
    """Returns path -> dtype and shape of the array-like leaves of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    described = {}
    for path, leaf in leaves:
        if hasattr(leaf, "shape"):
            keys = [
                getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))) for key in path
            ]
            described["/".join(map(str, keys))] = f"{leaf.dtype}{list(leaf.shape)}"
    return described
