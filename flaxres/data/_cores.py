"""The number of decoding processes where a run does not say it."""

import os
import pathlib
import re
import shutil
import sys

# With fewer cores, threads in one interpreter are about as fast, and start at once.
MANY_CORES, MOST_WORKERS = 8, 32
# Left to the training loop and XLA.
OTHER_CORES = 2
# Starting a process takes as long as decoding about so many images.
IMAGES_PER_WORKER = 1000
# What an interpreter with a decoder takes, beside its cache.
WORKER_BYTES = 256 << 20
SHARED, CGROUP = pathlib.Path("/dev/shm"), pathlib.Path("/sys/fs/cgroup")


def default_workers(images: int, shared: int, cache: int, processes: int) -> tuple[int, str]:
    """Returns how many processes decode where `data.workers` is None, and what prevents more.

    On many cores the threads of one interpreter are in each other's way, and in the training
    loop's: 16 threads decode 2,100 JPEGs of CIFAR-10 a second, and 14 processes 30,820
    (benchmarks/RESULTS.md).

    Args:
      images: number of images to decode.
      shared: bytes of shared memory that the batches in decoding take.
      cache: largest cache of each process in bytes.
      processes: number of processes of the run, which may share this host.

    Returns:
      The number, 0 for threads, and '' or the reason for 0 where processes would be faster.
    """
    cores = usable_cores()
    most = min(cores - OTHER_CORES, MOST_WORKERS, images // IMAGES_PER_WORKER)
    if cores < MANY_CORES or most < 2:
        return 0, ""
    slower = f"{cores} threads decode, which is slower than processes"
    if processes > 1:
        return 0, f"{slower}: set data.workers, for each of the {processes} processes of the run"
    if not main_module_is_guarded():
        return 0, f"{slower}: run the training under `if __name__ == '__main__':`"
    if (free := free_shared_memory()) < shared:
        return 0, (
            f"{slower}: /dev/shm has {free >> 20:,} MiB free, and they would take "
            f"{-(-shared >> 20):,}; make it larger (docker run --shm-size), or lower data.prefetch"
        )
    need, free = WORKER_BYTES + cache, available_memory()
    if (fitting := free // 4 // need) < 2:
        return 0, (
            f"{slower}: each would take {need >> 20:,} MiB, and a quarter of the free "
            f"{free >> 20:,} MiB holds fewer than two; free memory, or set data.workers"
        )
    return min(most, fitting), ""


def main_module_is_guarded() -> bool:
    """Returns whether a spawned process can import the main module of this one.

    It does so first, and a script that trains at its top level would train again. Commands of
    flaxres and notebooks are safe; so is a script that asks for its `__name__`.
    """
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None:
        return True
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^if __name__ ==", text, re.MULTILINE) is not None


def usable_cores() -> int:
    """Returns the number of cores that this process may use, a container's limit included."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    return min(cores, int(quota) // int(period)) if quota.isdigit() else cores


def available_memory() -> int:
    """Returns the bytes of memory that are available, within a container's limit."""
    found = re.search(r"MemAvailable:\s*(\d+)", _read(pathlib.Path("/proc/meminfo")))
    free = int(found[1]) << 10 if found else 0
    limit, used = _read(CGROUP / "memory.max"), _read(CGROUP / "memory.current")
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def free_shared_memory() -> int:
    """Returns the free bytes of /dev/shm; 0 if there is none."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:
        return 0


def _read(path: pathlib.Path) -> str:
    """Returns the content of a file of Linux; '' where it does not exist."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
