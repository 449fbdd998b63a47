"""A Slurm cluster of two nodes on one machine, which `tools.slurm` trains on.

Linux namespaces stand for the machines: the cluster has a network, a table of mounts and process
numbers of its own, and so has no port, socket or file in common with a Slurm that is installed
here. A node has its own host name and process numbers; killing its first process kills all of
them at once, as when a machine loses its power. When the process that started the cluster ends,
in whatever way, the kernel ends the whole cluster.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "scontrol",
    "mpirun",
    "setpriv",
    "unshare",
    "ip",
)
# A network of documentation (RFC 5737), inside the cluster's own network namespace. Addresses of
# the loopback are not enough: glibc then resolves no name, and Open MPI finds no network.
ADDRESSES = {"node1": "192.0.2.1", "node2": "192.0.2.2"}
SPACES = ("--uts", "--ipc", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
# A node counts as dead after 10 s in place of 5 minutes, and a job starts again 5 s after a
# requeue in place of 2 minutes.
CONFIG = """
ClusterName=flaxres
SlurmctldHost=node1
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def missing() -> list[str]:
    """Returns the programs that are needed and not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def inside(words: list[str]) -> int:
    """Runs a Python program in the namespaces of a cluster that is to be started.

    Args:
      words: arguments of Python.

    Returns:
      Its exit code.
    """
    # The kernel ends `unshare` with this process, and the namespaces with `unshare`.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--net",
        *SPACES,
        sys.executable,
        *words,
    ]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 300) -> None:
    """Waits for a condition.

    Raises:
      RuntimeError: it did not come.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


class Cluster:
    """The controller and the nodes; must be made in the namespaces of `inside`.

    Args:
      folder: an empty folder for configuration, state and logs.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.nodes = folder, dict[str, subprocess.Popen[str]]()
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        self._network()
        self._files()
        munge = {name: folder / "munge" / name for name in ("socket", "key", "pid", "log", "seed")}
        self._daemon(
            *("munged", "--foreground", "--force", "--socket", munge["socket"]),
            *("--key-file", munge["key"], "--pid-file", munge["pid"]),
            *("--log-file", munge["log"], "--seed-file", munge["seed"]),
        )
        wait_until(munge["socket"].exists, "munged listens")
        self._daemon("slurmctld", "-D")
        for node in ADDRESSES:
            self.switch_on(node)

    def _network(self) -> None:
        names = "".join(f"{address} {node}\n" for node, address in ADDRESSES.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        # A bridge without ports: a network card that every kernel has.
        self.run("ip", "link", "add", "card", "type", "bridge")
        for address in ADDRESSES.values():
            self.run("ip", "address", "add", f"{address}/24", "dev", "card")
        for device in ("lo", "card"):
            self.run("ip", "link", "set", device, "up")
        self.run("mount", "--bind", self.folder / "hosts", "/etc/hosts")
        self.run("hostname", "node1")

    def _files(self) -> None:
        for name in ("state", "munge"):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        lines = [CONFIG.format(folder=self.folder)]
        for port, (node, address) in enumerate(ADDRESSES.items(), 7001):
            lines.append(f"NodeName={node} NodeAddr={address} Port={port} CPUs=1 Gres=gpu:1\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        # A stand-in for a GPU, so that the request for one is granted.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")

    def _daemon(self, *command: str | pathlib.Path) -> "subprocess.Popen[str]":
        with (self.folder / "daemons.log").open("a") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, text=True)

    def run(self, *command: str | pathlib.Path) -> str:
        """Runs a command and returns its output.

        Raises:
          RuntimeError: it failed.
        """
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def switch_on(self, node: str) -> None:
        """Starts a node and waits until it takes jobs."""
        self.nodes[node] = self._daemon(
            "unshare", *SPACES, "sh", "-c", f"hostname {node} && exec slurmd -D"
        )
        wait_until(lambda: "idle" in self.state(node), f"{node} is idle", 60)

    def switch_off(self, node: str) -> None:
        """Kills all processes of a node at once."""
        process = self.nodes.pop(node)
        process.kill()
        process.wait()

    def state(self, node: str) -> str:
        """Returns the state of a node, '' as long as the controller does not answer."""
        command = ["sinfo", "--noheader", "--format=%T", f"--nodes={node}"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Returns what `scontrol show job` says of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)
