"""The lock of a workdir as an object in a store."""

import contextlib
import uuid
from collections.abc import Iterator

from flaxres.errors import InputError
from flaxres.remote import RemoteError, RemoteFolder
from flaxres.training.lock_holder import Holder, from_json
from flaxres.training.workdir import LOCK


class LockObject:
    """A lock.json in an object store; a sign of life writes it again.

    Args:
      remote: the workdir.
    """

    # Stores exist that ignore the condition of a write: the later one of two is the holder.
    settle_seconds = 1.0

    def __init__(self, remote: RemoteFolder) -> None:
        self.remote, self.workdir = remote, remote.address

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Names the address in the error of a failed write."""
        return naming(self.workdir, "written")

    def read(self) -> Holder | None:
        """Returns the holder that the object names, None if there is none."""
        content = self.remote.read(LOCK)
        return None if content is None else from_json(content)

    def exists(self) -> bool:
        """Returns True if there is an object, whatever it holds."""
        return self.remote.read(LOCK) is not None

    def create(self, holder: Holder) -> bool:
        """Creates the object; returns False if it exists."""
        return self.remote.create(LOCK, holder.to_json())

    def beat(self, holder: Holder) -> None:
        """Gives a sign of life."""
        self.remote.write(LOCK, holder.to_json())

    def times(self) -> tuple[float, float]:
        """Returns the time of the last sign of life, and the present time of the store.

        FileNotFoundError if there is no object.
        """
        beat, probe = self.remote.modified(LOCK), f"{LOCK}.{uuid.uuid4().hex}"
        self.remote.write(probe, b"")
        try:
            return beat, self.remote.modified(probe)
        finally:
            self.remote.remove(probe)

    def remove(self, judged: Holder | None) -> None:
        """Removes the lock of a dead process; leaves one that another process has taken since."""
        if self.read() == judged:
            self.remote.remove(LOCK)


@contextlib.contextmanager
def naming(address: str, done: str) -> Iterator[None]:
    """Names an address in the error of a store.

    Args:
      address: the address.
      done: "read" or "written".

    Raises:
      InputError: the store refuses, or can't be reached.
    """
    try:
        yield
    except RemoteError as error:
        raise InputError(
            f"{address!r} can't be {done} ({error}): check the bucket, the network and your "
            "credentials, or give another --workdir"
        ) from error
