"""The process that holds the lock of a workdir, and whether it still runs."""

import dataclasses
import datetime
import json
import os
import pathlib
import socket
import uuid


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as written in lock.json.

    Attributes:
      host: name of its host.
      pid: number of the process.
      since: time at which it took the lock, with the time zone.
      machine: start of the kernel and namespace of process numbers; '' without /proc.
      started: start of the process, in ticks since the kernel's start; it tells a process from a
        later one with the same number.
      token: a random word of this lock.
    """

    host: str
    pid: int
    since: str
    machine: str
    started: str
    token: str

    def describe(self) -> str:
        """Returns the holder in words."""
        return f"process {self.pid} on {self.host} since {self.since}"

    def to_json(self) -> bytes:
        """Returns the content of lock.json."""
        return (json.dumps(dataclasses.asdict(self)) + "\n").encode()


def from_json(content: bytes) -> Holder | None:
    """Returns the holder that lock.json names, None if it can't be parsed."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def this_process() -> Holder:
    """Returns this process, as the holder of a new lock."""
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    host, pid = socket.gethostname(), os.getpid()
    return Holder(host, pid, since, _machine(), _started(pid) or "", uuid.uuid4().hex)


def is_dead(holder: Holder | None) -> bool | None:
    """Returns True or False for a process of this machine, None for another one."""
    if holder is None or not holder.machine or holder.machine != _machine():
        return None
    started = _started(holder.pid)
    if started is None:
        # /proc may hide the processes of other users.
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return None
    return started != holder.started


def _machine() -> str:
    """Returns what tells this machine, and this container, from others; '' if nothing does."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot.strip()} {pathlib.Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Returns the start of a process in ticks, '' if it has ended, None if it can't be seen."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return None
    fields = text.decode("ascii").split()
    return "" if fields[0] in "ZX" else fields[19]
