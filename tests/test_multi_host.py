"""The files of the page on several hosts: the Slurm script and the JobSet do what it says."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tools.cluster import missing
from tools.slurm import PAGE, script


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (1, False), (2, False), (74, False), (75, True), (143, True)]
)
def test_the_slurm_script_requeues_a_preempted_job_alone(
    code: int, requeued: bool, tmp_path: pathlib.Path
) -> None:
    for name, line in (("srun", f"exit {code}"), ("scontrol", 'echo "$@" >> calls')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script(["train.py"]))
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {"PATH": path, "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment)
    calls = tmp_path / "calls"
    assert done.returncode == code
    assert (calls.read_text() if calls.exists() else "") == ("requeue 7\n" if requeued else "")


def test_the_jobset_agrees_with_its_schema() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs the extra references")
    validate = pytest.importorskip("kubernetes_validate", reason="needs the extra references")
    yaml = pytest.importorskip("yaml", reason="needs the extra references")
    found = re.search(r"```yaml\n(apiVersion: jobset.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    manifest = yaml.safe_load(found[1])
    # The models check types, and drop fields that a JobSet does not have.
    assert models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
    workers = manifest["spec"]["replicatedJobs"][0]
    job = workers["template"]["spec"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": job}
    validate.validate(whole, validate.latest_version(), strict=True)
    name, count = manifest["metadata"]["name"], job["completions"]
    (command,) = job["template"]["spec"]["containers"][0]["args"]
    assert job["parallelism"] == count
    assert f"--coordinator {name}-{workers['name']}-0-0.{name}:1234 --processes {count}" in command


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()) or os.geteuid() != 0, reason="needs root, Slurm and Open MPI")
def test_a_preempted_job_of_slurm_resumes_to_the_losses_of_one_process() -> None:
    program = [sys.executable, "-m", "tools.slurm", "preempted", "mpirun", "--json"]
    done = subprocess.run(program, cwd=PAGE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["preempted_restarts"] == 1
    assert max(found["preempted_losses"], found["mpirun_losses"]) < 1e-8
    assert found["preempted_steps_that_differ"] == found["mpirun_steps_that_differ"] == 0


def test_the_cluster_names_the_programs_that_it_lacks(tmp_path: pathlib.Path) -> None:
    program = [sys.executable, "-m", "tools.slurm"]
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(
        program, cwd=PAGE.parents[2], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "mpirun" in line
    assert "apt install slurm-wlm" in line
