"""A run whose workdir is in an object store: it works in a folder of this machine.

The store is the truth. A run takes its lock there, downloads what it resumes from, and works in its
staging folder. A thread uploads what changes: a checkpoint once it is sealed, its seal last. A step
whose upload was cut short does not verify, and is set aside like any other such step.

Orbax can write to some stores by itself. That is not used, because the digests of a step could then
be known only by reading it back, and a store that can't be reached for a moment would end the run.
"""

import contextlib
import os
import pathlib
import shutil
import threading
import time
import uuid
from collections.abc import Iterator

import jax

from flaxres.errors import InputError, WriteError
from flaxres.paths import expanded
from flaxres.remote import RemoteFolder, is_address
from flaxres.training import hosts
from flaxres.training.lock import Lock, acquire
from flaxres.training.lock_object import LockObject, naming
from flaxres.training.staging import READ, Mark, fetch, objects_of_steps, staging_folder
from flaxres.training.verification import DIGESTS, SEAL, problem, step_number, steps, write_seal
from flaxres.training.workdir import CHECKPOINTS, LOCK

UPLOAD_SECONDS = 30.0
"""Time between two looks for files that changed, where no checkpoint was saved meanwhile."""
RETRY_SECONDS = 60.0
"""A store that can't be written to for this long ends the run."""
WRITER = "writer.json"


class Workdir:
    """The folder that a run works in; this one needs no uploads.

    Attributes:
      folder: the folder.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def push(self) -> None:
        """Starts to upload what has changed."""

    def wait(self) -> None:
        """Returns once all that the folder holds is uploaded; raises WriteError if it can't be."""

    def check(self) -> None:
        """Raises the error of the uploads, if they have failed; does not wait for them."""

    def close(self, failed: bool) -> None:
        """Ends the work in the folder.

        Args:
          failed: an error ends the run.
        """


class StagedWorkdir(Workdir):
    """The staging folder of an address, and the thread that uploads what changes there.

    Args:
      remote: the address.
      folder: the staging folder.
      lock: the lock of the address.
      mark: of the folder.
    """

    def __init__(self, remote: RemoteFolder, folder: pathlib.Path, lock: Lock, mark: Mark) -> None:
        super().__init__(folder)
        self.remote, self.lock, self.mark = remote, lock, mark
        self.error: WriteError | InputError | None = None
        self._failing_since: float | None = None
        self._turn, self._wanted, self._ended = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="flaxres-uploads", daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Starts to upload what has changed."""
        self._wanted.set()

    def wait(self) -> None:
        """Uploads what has changed, and tries again until `RETRY_SECONDS` are over.

        Raises:
          WriteError: the store can't be written to.
          InputError: another run took the lock.
        """
        while not self._try():
            self.check()
            time.sleep(1)
        self.check()

    def check(self) -> None:
        """Raises the error of the uploads, if they have failed; does not wait for them."""
        if self.error:
            raise self.error

    def close(self, failed: bool) -> None:
        """Uploads the rest, unless an error of the uploads ends the run, and releases the lock."""
        self._ended = True
        self._wanted.set()
        self._thread.join()
        try:
            if failed and not self.error:
                self._try()
            elif not failed:
                self.wait()
        finally:
            self.lock.release()

    def _run(self) -> None:
        while not self._ended:
            self._wanted.wait(1.0 if self._failing_since else UPLOAD_SECONDS)
            self._wanted.clear()
            if not self._ended and not self.error:
                self._try()

    def _try(self) -> bool:
        """Uploads what has changed; returns False, and keeps the error, if that failed."""
        with self._turn:
            try:
                self.lock.require()
                self._upload()
            except InputError as error:
                self.error = error
                return False
            except OSError as error:  # of the store, or of the disk
                now = time.monotonic()
                self._failing_since = self._failing_since or now
                if now - self._failing_since > RETRY_SECONDS:
                    self.error = WriteError(
                        f"{self.remote.address} can't be written to for {RETRY_SECONDS:.0f} s "
                        f"({error}); everything is kept in {self.folder}: mend the access, and "
                        "start the same command again on this machine"
                    )
                return False
            self._failing_since = None
            return True

    def _upload(self) -> None:
        """Makes the store hold what the folder holds: first what is new, then without the rest."""
        present = self._files()
        for name, stamp in present.items():
            if self.mark.uploaded.get(name) != stamp:
                # Orbax may delete an old step meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    self.remote.upload(self.folder / name, name)
                    self.mark.uploaded[name] = stamp
        for name in [name for name in self.mark.uploaded if name not in present]:
            self.remote.remove(name)
            del self.mark.uploaded[name]
        self.mark.write(self.folder)

    def _files(self) -> dict[str, list[int]]:
        """Returns name -> size and time of the files to upload, a seal after all of its step."""
        files = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if self._is_uploaded(name) and path.is_file():
                    status = path.stat()
                    files[name] = [status.st_size, status.st_mtime_ns]
        return dict(sorted(files.items(), key=lambda item: (_order(item[0]), item[0])))

    def _is_uploaded(self, name: str) -> bool:
        """Returns False for files that are being written, or are of this machine alone."""
        parts = name.split("/")
        if parts[0] == CHECKPOINTS:
            sealed = len(parts) > 2 and step_number(parts[1]) is not None
            return sealed and (self.folder / parts[0] / parts[1] / SEAL).exists()
        return not parts[0].startswith((LOCK, ".")) and not name.endswith(".part")


def _order(name: str) -> int:
    """Returns the place of a file among the uploads: digests and seals after what they cover."""
    return {DIGESTS: 1, SEAL: 2}.get(name.rpartition("/")[2], 0)


@contextlib.contextmanager
def working_folder(workdir: str | os.PathLike[str]) -> Iterator[Workdir]:
    """Yields the folder that a run works in, with the uploads to its address.

    The first process of a run holds the lock and uploads; the others only download. A run that
    finds its own staging folder, and the store as that folder left it, goes on from the folder,
    which may hold a checkpoint whose upload was cut short.

    Args:
      workdir: a path, or an address.

    Raises:
      InputError: the address can't be written, or another run holds its lock.
      WriteError: the last uploads failed.
    """
    if not is_address(workdir):
        yield Workdir(expanded(workdir))
        return
    address = str(workdir).rstrip("/")
    place = hosts.leader_first(lambda: _open(address))
    try:
        yield place
    except BaseException:
        place.close(failed=True)
        raise
    place.close(failed=False)


def _open(address: str) -> Workdir:
    """Returns the staging folder of this process, with the present state of the address."""
    remote, folder = RemoteFolder(address), staging_folder(address, "runs")
    if not hosts.leader():
        with naming(address, "read"):
            _download(remote, folder)
        return Workdir(folder)
    lock = acquire(LockObject(remote))
    try:
        with naming(address, "written"):
            mark = _claimed(remote, folder)
    except BaseException:
        lock.release()
        raise
    place = StagedWorkdir(remote, folder, lock, mark)
    if jax.process_count() > 1:  # the others download what this one resumes from
        place.wait()
    return place


def _claimed(remote: RemoteFolder, folder: pathlib.Path) -> Mark:
    """Brings the staging folder up to date, and marks the store as last written by it."""
    mark = Mark.read(folder, remote.address)
    last = (remote.read(WRITER) or b"").decode(errors="replace")
    if mark.writer and mark.writer == last:
        _seal_complete_steps(folder / CHECKPOINTS)
        # What a kill left half uploaded is uploaded again, or deleted.
        mark.uploaded = {name: [] for name in objects_of_steps(remote.names())} | mark.uploaded
        return mark
    mark = _download(remote, folder)
    mark.writer = uuid.uuid4().hex
    remote.write(WRITER, mark.writer.encode())
    mark.write(folder)
    return mark


def _seal_complete_steps(folder: pathlib.Path) -> None:
    """Seals steps whose process was killed between the end of a save and the seal."""
    for step in steps(folder):
        place = folder / str(step)
        if not (place / SEAL).exists() and not problem(place):
            write_seal(place)


def _download(remote: RemoteFolder, folder: pathlib.Path) -> Mark:
    """Replaces a staging folder by what a run needs of the store to resume."""
    shutil.rmtree(folder, ignore_errors=True)
    names, mark = remote.names(), Mark(remote.address)
    wanted = [name for name in names if name in READ] + objects_of_steps(names)
    fetch(remote, folder, mark, {name: names[name] for name in wanted})
    for name in wanted:
        with contextlib.suppress(FileNotFoundError):
            status = (folder / name).stat()
            mark.uploaded[name] = [status.st_size, status.st_mtime_ns]
    return mark
