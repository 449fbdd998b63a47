#!/usr/bin/env bash
# Two joined JAX processes that are pinned to a core each lose three quarters of their time where a
# step sums many small arrays. The scheduling policy SCHED_BATCH for one thread gives it back.
#
# Packages: jax 0.10.2, jaxlib 0.10.2, numpy 2.4.6; Python 3.11 or newer; Linux, two idle cores (beside
#           a third process that computes, both take 250 to 400 ms).
# Guess:    a sum over loopback of 64 bytes costs some ten microseconds, and the thread of Gloo that
#           waits in `epoll_wait` costs nothing in between. What a step loses, it loses to the network.
# Seen:     64 sums take 250 ms in place of 7. The thread wakes and finds the lock of
#           its connection taken, by the thread that sends or waits; it returns to `epoll_wait`,
#           which returns at once, since nothing was read: it polls until its time slice ends, and
#           keeps the holder of the lock from the core. `nice -n 19` for it helps by a quarter in a
#           training step. Under SCHED_BATCH, which any user may set, a thread that wakes does not
#           displace the one that runs.
# Matters:  containers and schedulers of clusters pin processes to cores. ResNet-20 on two processes
#           with a core each runs at 0.18 of twice one without it, and at 0.85 with it (flaxres/training/gloo.py).
#
# Output seen (two cores):
#   usual policy: 64 sums of 16 numbers take 250.9 ms
#   SCHED_BATCH:  64 sums of 16 numbers take 6.5 ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
cat > program.py <<'PYTHON'
import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

port, process, policy = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[process]})
tasks = pathlib.Path("/proc/self/task")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
before = {path.name for path in tasks.iterdir()}
mesh = Mesh(jax.devices(), ("data",), axis_types=(AxisType.Auto,))
time.sleep(0.2)
started = [path for path in tasks.iterdir() if path.name not in before]
of_gloo = [path.name for path in started if (path / "wchan").read_text() in ("do_epoll_wait", "ep_poll")]
assert len(of_gloo) == 1, of_gloo
if policy == "batch":
    os.sched_setscheduler(int(of_gloo[0]), os.SCHED_BATCH, os.sched_param(0))

rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
step = jax.jit(lambda xs: [x.sum(0) for x in xs], in_shardings=rows, out_shardings=whole)
arrays = [jax.device_put(jnp.ones((2, 16)) * i, rows) for i in range(64)]
seconds = []
for _ in range(25):
    start = time.perf_counter()
    sums = jax.block_until_ready(step(arrays))
    seconds.append(time.perf_counter() - start)
assert all(float(total[0]) == 2 * i for i, total in enumerate(sums))
print(1000 * statistics.median(seconds[5:]), flush=True)
PYTHON

measure() {
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" program.py "$port" 1 "$1" > /dev/null 2>&1 &
  JAX_PLATFORMS=cpu "$folder/venv/bin/python" program.py "$port" 0 "$1" 2> /dev/null | tail -1
  wait
}
usual=$(measure usual)
batch=$(measure batch)
printf 'usual policy: 64 sums of 16 numbers take %.1f ms\n' "$usual"
printf 'SCHED_BATCH:  64 sums of 16 numbers take %.1f ms\n' "$batch"
python3 -c "raise SystemExit(not $usual > 3 * $batch)"
