"""A scheduling policy for the thread by which CPU devices of several processes communicate."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

import jax

TASKS = pathlib.Path("/proc/self/task")
SECONDS = 0.1
# Functions of the kernel in which a thread waits for messages, by its version.
WAITS = ("do_epoll_wait", "ep_poll")


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Gives Gloo's thread, if it starts within the context, the policy `SCHED_BATCH`.

    JAX's CPU devices of several processes sum by Gloo. Its thread sleeps until a message comes, and
    then asks again and again for a lock that the thread which sends or waits for messages holds.
    Under the usual policy Linux runs a thread that wakes at once, in place of the one that runs.
    Where both share a core, the holder of the lock waits for the end of the other's time slice, and
    a step with many sums takes several times as long (docs/scaling.md). A thread of `SCHED_BATCH`
    waits for its turn.

    On other systems than Linux, and where JAX has an accelerator, it does nothing.
    """
    before = _threads()
    yield
    if not hasattr(os, "SCHED_BATCH") or jax.default_backend() != "cpu":
        return
    begun = time.monotonic()
    while time.monotonic() - begun < SECONDS:
        # The backend's other threads wait for work, not for messages.
        for thread in filter(_waits_for_messages, _threads() - before):
            with contextlib.suppress(OSError):  # a container may forbid it
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
        time.sleep(0.01)


def _threads() -> set[int]:
    """Returns the threads of this process by Linux's numbers; none elsewhere."""
    return {int(path.name) for path in TASKS.iterdir()} if TASKS.exists() else set()


def _waits_for_messages(thread: int) -> bool:
    """Returns whether a thread waits in `epoll_wait`; False where Linux does not tell."""
    try:
        return (TASKS / str(thread) / "wchan").read_text() in WAITS
    except OSError:
        return False
