"""Checkpoints through Orbax: the whole state, and beside it what it belongs to."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from flaxres.errors import InputError
from flaxres.training.state import State


class Checkpoints:
    """The folder `checkpoints/` of a workdir. Saves are asynchronous: `close` waits for the last one. A context manager."""

    def __init__(self, folder: pathlib.Path, keep: int = 3) -> None:
        self.folder = folder.resolve()
        options = ocp.CheckpointManagerOptions(preservation_policy=LatestN(keep), enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: State, step: int, provenance: dict[str, Any]) -> None:
        """Starts to save `state`; `provenance` (JSON) holds what a resume is compared with."""
        if step != self.manager.latest_step():
            self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), provenance=ocp.args.JsonSave(provenance)))

    def restore(self, like: State) -> State:
        """The newest state, in the shapes and shardings of `like` (an `abstract_state`)."""
        return self.manager.restore(self.required_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]

    def provenance(self) -> dict[str, Any]:
        """What was saved beside the newest state."""
        return self.manager.restore(self.required_step(), args=ocp.args.Composite(provenance=ocp.args.JsonRestore()))["provenance"]

    def required_step(self) -> int:
        if (step := self.manager.latest_step()) is None:
            raise InputError(f"{str(self.folder)!r} holds no checkpoint: train first, or give another workdir")
        return step

    def wait(self) -> None:
        self.manager.wait_until_finished()
