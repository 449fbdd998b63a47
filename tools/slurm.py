"""Trains on a Slurm cluster of two nodes and under Open MPI, on this machine, as the docs say.

    python -m tools.slurm [NAME ...] [--json]

The job is the script of docs/guide/multi-host.md. Only the numbers of nodes, tasks and GPUs, the
config and the workdir are replaced. Each of these trains the same steps on two processes in
float64:

starting    SIGTERM comes before training listens to it; the job requeues itself.
preempted   a more urgent job takes the nodes; the job saves, requeues itself and resumes.
time_limit  the time limit comes near; the job saves, requeues itself and resumes.
node1       the node of the script and of process 0 loses power; Slurm requeues the job.
node2       the other node loses power; Slurm requeues the job.
cancelled   `scancel` ends the job, which saves and must not be requeued; sent again, it resumes.
mpirun      two processes of Open MPI, without Slurm.

The program prints for each the largest relative difference between the losses of all steps and
those of one process, the number of steps whose training accuracy (a count of images) differs, and
how often the job was started again. `--logs FOLDER` keeps the logs of the jobs. It needs root,
Slurm and Open MPI (`apt install slurm-wlm munge openmpi-bin iproute2`), and takes about twenty
minutes on two cores.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks import command as arguments
from tools import processes
from tools.cluster import Cluster, inside, missing, wait_until

PAGE = processes.ROOT / "docs" / "guide" / "multi-host.md"
# Slurm looks at time limits every 30 seconds; the job must take longer.
STEPS, STOP_AT = 320, 25
GET = "run it as root, after apt install slurm-wlm munge openmpi-bin iproute2"
# States of a job that has ended. Others may come and go: SIGNALING takes a moment of RUNNING.
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
# Every epoch, so that a run that loses a node resumes after its first step.
OFTEN = ("--train.checkpoint-every-epochs", "1")
URGENT = ("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 5")


def script(training: list[str]) -> str:
    """Returns the script of the page for two nodes with a process each, and a command.

    Raises:
      RuntimeError: the page has no longer what is replaced.
    """
    found = re.search(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.DOTALL)
    text = found[1] if found else ""
    for pattern, replacement in (
        (r"--nodes=\d+", "--nodes=2"),
        (r"--ntasks-per-node=\d+", "--ntasks-per-node=1"),
        (r"--gpus-per-node=\d+", "--gpus-per-node=1"),
        (r"--cpus-per-task=\d+", "--cpus-per-task=1"),
        (r"train\.py --config \S+ --workdir \S+", " ".join(training)),
    ):
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise RuntimeError(f"{PAGE.name}: {pattern!r} is {count} times in the script: keep one")
    return text


class Job:
    """A job of the script, as it runs.

    Args:
      cluster: the cluster.
      name: name of its workdir in the folder of the cluster.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.workdir = cluster, cluster.folder.parent / name
        self.log = self.workdir.with_suffix(".log")
        self.file = self.workdir.with_suffix(".sh")
        training = processes.training(self.workdir, "float64", STEPS, quick=True)
        self.file.write_text(script([*training, *OFTEN]))
        self.number = self.submit()

    def submit(self) -> str:
        """Sends the job to the queue and returns its number."""
        return self.cluster.run("sbatch", "--parsable", "--output", self.log, self.file)

    @property
    def state(self) -> str:
        """The state of the job, as Slurm names it."""
        return self.cluster.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        """The number of times that the job was requeued."""
        return int(self.cluster.job(self.number)["Restarts"])

    def come(self, step: int) -> None:
        """Waits until a step is logged."""
        wait_until(
            lambda: max(processes.rows(self.workdir), default=0) >= step or self.ended(),
            f"step {step}",
        )
        if self.ended():
            raise RuntimeError(f"the job ended before step {step}: {self.end_of_log()}")

    def requeued(self) -> None:
        """Waits until the job was requeued and its processes are gone."""
        wait_until(lambda: self.restarts > 0 or self.ended(), "the requeue")
        if self.ended():
            raise RuntimeError(f"the job was not requeued: {self.end_of_log()}")

    def end_of_log(self) -> str:
        """Returns the last lines of the job."""
        return self.log.read_text()[-2000:]

    def ended(self) -> bool:
        """Returns True if the job has ended for good."""
        return self.state in ENDS

    def finish(self) -> None:
        """Waits for the end of the job.

        Raises:
          RuntimeError: it failed.
        """
        wait_until(self.ended, "the end of the job", 600)
        if self.state != "COMPLETED":
            raise RuntimeError(f"the job ended as {self.state}: {self.end_of_log()}")


def starting(job: Job) -> None:
    """Sends SIGTERM to the processes while they start."""
    steps = ("squeue", "--steps", "--noheader", f"--jobs={job.number}")
    wait_until(lambda: ".0" in job.cluster.run(*steps), "the processes")
    time.sleep(0.5)  # The step is listed before its processes run.
    job.cluster.run("scancel", "--signal=TERM", job.number)
    job.requeued()


def preempted(job: Job) -> None:
    """Lets a more urgent job take the nodes."""
    job.come(STOP_AT)
    job.cluster.run(*URGENT)
    job.requeued()


def time_limit(job: Job) -> None:
    """Brings the time limit near, to less than the two minutes of the script's signal."""
    job.come(1)
    limit = ("scontrol", "update", f"JobId={job.number}")
    job.cluster.run(*limit, "TimeLimit=2")
    job.requeued()
    job.cluster.run(*limit, "TimeLimit=720")


def lose(node: str) -> Callable[[Job], None]:
    """Returns a function that switches a node off, and on again after the requeue."""

    def lost(job: Job) -> None:
        job.come(STOP_AT)
        job.cluster.switch_off(node)
        job.requeued()
        job.cluster.switch_on(node)

    return lost


def cancelled(job: Job) -> None:
    """Cancels the job; it must stay cancelled. Then sends it again."""
    job.come(STOP_AT)
    job.cluster.run("scancel", job.number)
    wait_until(job.ended, "the end of the job")
    time.sleep(10)
    if job.state != "CANCELLED":
        raise RuntimeError(f"the job was cancelled and is now {job.state}")
    job.number = job.submit()


EVENTS = {
    "starting": starting,
    "preempted": preempted,
    "time_limit": time_limit,
    "node1": lose("node1"),
    "node2": lose("node2"),
    "cancelled": cancelled,
}
NAMES = (*EVENTS, "mpirun")


def mpirun(workdir: pathlib.Path) -> None:
    """Trains on two processes that Open MPI starts; they find each other by its environment."""
    training = processes.training(workdir, "float64", STEPS, quick=True)
    options = ("-n", "2", "--allow-run-as-root", "--oversubscribe")
    log = workdir.with_suffix(".log")
    with log.open("w") as file:
        code = subprocess.call(["mpirun", *options, "python", *training], stdout=file, stderr=file)
    if code or "2 x cpu" not in log.read_text():
        raise RuntimeError(f"exit code {code}, not joined or failed: {log.read_text()[-2000:]}")


def measure(folder: pathlib.Path, names: list[str], quiet: bool) -> dict[str, float]:
    """Runs the events of these names in the namespaces of the cluster; returns the figures."""
    alone = folder / "alone"
    training = processes.training(alone, "float64", STEPS, quick=True)
    processes.finish(processes.start(training, 1, x64=True))
    # The environment of the command that submits a job is that of the job.
    os.environ |= processes.environment(x64=True)
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    state = folder / "cluster"
    state.mkdir()
    cluster = Cluster(state)
    figures: dict[str, float] = {}
    for name in names:
        workdir = folder / name
        if name == "mpirun":
            mpirun(workdir)
        else:
            job = Job(cluster, name)
            EVENTS[name](job)
            job.finish()
            figures[f"{name}_restarts"] = job.restarts
        ours, theirs = processes.rows(workdir), processes.rows(alone)
        figures |= {
            f"{name}_losses": processes.difference(workdir, alone, STEPS),
            f"{name}_steps_that_differ": sum(
                ours[step]["train/top1"] != theirs[step]["train/top1"] for step in theirs
            ),
        }
        if not quiet:
            print(*(f"{k}: {v:.3g}" for k, v in figures.items() if k.startswith(name)), sep="\n")
    return figures


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("names", nargs="*", choices=(*NAMES, []), metavar="NAME", default=[])
    parser.add_argument("--logs", type=pathlib.Path, help="folder for the logs of the jobs")
    parser.add_argument("--inside", type=pathlib.Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.chdir(processes.ROOT)
    if chosen.inside:
        figures = measure(chosen.inside, chosen.names or [*NAMES], chosen.json)
        if chosen.json:
            arguments.show(figures, True)
        return
    if lacking := [*missing(), *(["root"] if os.geteuid() else [])]:
        print(f"tools.slurm needs {', '.join(lacking)}: {GET}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder:
        try:
            code = inside(["-m", "tools.slurm", "--inside", folder, *sys.argv[1:]])
        finally:
            if chosen.logs:
                chosen.logs.mkdir(parents=True, exist_ok=True)
                for path in pathlib.Path(folder).rglob("*.log"):
                    shutil.copy(path, chosen.logs)
    sys.exit(code)


if __name__ == "__main__":
    main()
