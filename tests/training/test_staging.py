"""Workdirs in an object store: runs resume from there, and what is damaged there is named."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator

import jax
import numpy as np
import pytest

import flaxres
from flaxres import Config, remote as remote_module
from flaxres.cache import cache_folder
from flaxres.cli import main
from flaxres.data.datasets import ensure_prepared
from flaxres.errors import InputError, WriteError
from flaxres.remote import RemoteError, RemoteFolder
from flaxres.training import staging, uploads
from flaxres.training.lock import acquire
from flaxres.training.lock_holder import this_process
from flaxres.training.lock_object import LockObject
from flaxres.training.staging import Mark, local, staging_folder
from flaxres.training.verification import DIGESTS, SEAL
from flaxres.training.workdir import LOCK
from tests.training.test_loop import digits
from tools import kill, processes
from tools.stores import KINDS, Store, served


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def address(cache: pathlib.Path) -> str:
    """An address that no other test has, in the memory of this process."""
    return f"memory://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def config(data_dir: str) -> Config:
    """A run of two epochs, with a checkpoint after each."""
    return digits(
        data_dir,
        steps=4,
        batch_size=648,
        checkpoint_every_epochs=1.0,
        eval_every_epochs=1.0,
        log_every_steps=1,
        tensorboard=False,
        devices=1,
    )


def same(ours: object, theirs: object) -> bool:
    equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), ours, theirs)
    return jax.tree.all(equal)


def longer(config: Config, steps: int) -> Config:
    train = dataclasses.replace(config.train, steps=steps, extend=True)
    return dataclasses.replace(config, train=train)


def test_a_run_in_a_store_is_the_run_on_a_disk_and_goes_on_on_another_machine(
    config: Config,
    address: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for steps in (2, 4):
        expected = flaxres.fit(longer(config, steps), tmp_path / "disk")
    flaxres.fit(longer(config, 2), address)
    assert f"everything is in {address}" in capfd.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    state = flaxres.fit(longer(config, 4), address)
    assert "resuming at 2" in capfd.readouterr().err
    names = set(RemoteFolder(address).names())
    assert {"config.json", "classes.json", "summary.json", "metrics.jsonl", "curves.png"} <= names
    assert {f"checkpoints/{step}/{SEAL}" for step in (2, 4)} <= names
    assert LOCK not in names
    assert same(state, expected)
    assert same(flaxres.load_run(address).variables, expected.variables)
    assert kill.log(local(address)) == kill.log(tmp_path / "disk")
    assert flaxres.evaluate(config, address).examples == 500


@pytest.mark.parametrize(
    "damage", ["a byte", "cut short", "without digests", "one object is missing"]
)
def test_fault_39_a_step_that_was_damaged_in_the_store_is_named_and_set_aside_there(
    damage: str,
    config: Config,
    address: str,
    cache: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flaxres.fit(config, address)
    remote = RemoteFolder(address)
    data = max(
        (name for name in remote.names() if name.startswith("checkpoints/4/state/")),
        key=lambda name: len(remote.read(name) or b""),
    )
    content = bytearray(remote.read(data) or b"")
    if damage == "a byte":
        content[len(content) // 2] ^= 1
        remote.write(data, bytes(content))
    elif damage == "cut short":
        remote.write(data, bytes(content[:-1]))
    elif damage == "without digests":  # as a kill during the upload leaves it
        remote.remove(f"checkpoints/4/{DIGESTS}")
        remote.remove(f"checkpoints/4/{SEAL}")
    else:
        remote.remove(data)
    assert flaxres.evaluate(config, address).step == 2
    shutil.rmtree(cache)
    capfd.readouterr()
    state = flaxres.fit(config, address)
    said = capfd.readouterr().err
    assert "checkpoint of step 4 is not trusted" in said
    assert "using step 2" in said
    assert int(state.step) == 4
    assert flaxres.evaluate(config, address).step == 4
    names = remote.names()
    assert any(name.startswith("refused/4/") for name in names)
    assert f"checkpoints/4/{SEAL}" in names


def test_a_checkpoint_that_was_not_uploaded_is_not_lost(
    config: Config, address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    upload = RemoteFolder.upload

    def failing(self: RemoteFolder, path: pathlib.Path, name: str) -> None:
        if name.startswith("checkpoints/4/state/"):
            raise RemoteError("the disk of the store is full")
        upload(self, path, name)

    monkeypatch.setattr(RemoteFolder, "upload", failing)
    monkeypatch.setattr(uploads, "RETRY_SECONDS", 0.5)
    with pytest.raises(WriteError, match="can't be written to .*store is full.*on this machine"):
        flaxres.fit(config, address)
    remote = RemoteFolder(address)
    assert LOCK not in remote.names()
    assert f"checkpoints/4/{SEAL}" not in remote.names()
    assert flaxres.evaluate(config, address).step == 2

    monkeypatch.setattr(RemoteFolder, "upload", upload)
    capfd.readouterr()
    flaxres.fit(config, address)
    assert "step 4 was the last one" in capfd.readouterr().err
    assert flaxres.evaluate(config, address).step == 4
    assert json.loads(remote.read("summary.json") or b"")["step"] == 4


def test_a_step_that_was_saved_but_not_sealed_is_uploaded(
    config: Config, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaxres.fit(config, address)
    folder, remote = staging_folder(address, "runs"), RemoteFolder(address)
    # As if the process was killed before the seal of the last step.
    (folder / "checkpoints" / "4" / SEAL).unlink()
    for name in remote.names():
        if name.startswith("checkpoints/4/") or name == "summary.json":
            remote.remove(name)
    mark = Mark.read(folder, address)
    mark.uploaded = {name: at for name, at in mark.uploaded.items() if name in remote.names()}
    mark.write(folder)
    assert flaxres.fit(config, address).step == 4
    assert f"checkpoints/4/{SEAL}" in remote.names()
    assert flaxres.evaluate(config, address).step == 4


def test_a_staging_folder_that_another_machine_left_behind_is_replaced(
    config: Config, address: str, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaxres.fit(longer(config, 2), address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "other"))
    flaxres.fit(longer(config, 4), address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert flaxres.fit(longer(config, 4), address).step == 4
    assert (
        Mark.read(staging_folder(address, "runs"), "").writer
        == (RemoteFolder(address).read("writer.json") or b"").decode()
    )


def test_a_step_is_uploaded_once_it_is_sealed_and_its_seal_comes_last(
    config: Config, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    upload = RemoteFolder.upload

    def noted(self: RemoteFolder, path: pathlib.Path, name: str) -> None:
        sent.append(name)
        upload(self, path, name)

    monkeypatch.setattr(RemoteFolder, "upload", noted)
    flaxres.fit(config, address)
    for step in (2, 4):
        ours = [name for name in sent if name.startswith(f"checkpoints/{step}/")]
        assert ours[-1].endswith(SEAL), ours
        assert ours[-2].endswith(DIGESTS), ours
        assert len(ours) == len(set(ours)) > 10
    assert not [name for name in sent if "tmp" in name or LOCK in name or ".staged" in name]


def test_old_steps_are_deleted_in_the_store_too(config: Config, address: str) -> None:
    train = dataclasses.replace(config.train, keep_checkpoints=1)
    flaxres.fit(dataclasses.replace(config, train=train), address)
    assert list(staging.steps_of(RemoteFolder(address).names())) == [4]


def test_a_workdir_in_a_store_has_one_writer(
    config: Config, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteFolder(address)
    held = acquire(LockObject(remote))
    with pytest.raises(InputError, match=f"is written to by process {os.getpid()} on "):
        flaxres.fit(config, address)
    other = dataclasses.replace(this_process(), host="node7", token="other")
    remote.write(LOCK, other.to_json())
    with pytest.raises(InputError, match="was taken over by process .* on node7"):
        held.require()
    held.release()
    assert remote.read(LOCK) == other.to_json()
    dead = dataclasses.replace(other, started="1")
    remote.write(LOCK, dead.to_json())
    acquire(LockObject(remote)).release()
    assert remote.names() == {}


def test_a_run_whose_lock_was_taken_ends_and_changes_nothing(
    config: Config, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(this_process(), host="node7", token="other")
    upload = RemoteFolder.upload

    def taken(self: RemoteFolder, path: pathlib.Path, name: str) -> None:
        upload(self, path, name)
        if name == f"checkpoints/2/{SEAL}":
            self.write(LOCK, other.to_json())

    monkeypatch.setattr(RemoteFolder, "upload", taken)
    with pytest.raises(InputError, match="was taken over by process .* on node7"):
        flaxres.fit(config, address)
    remote = RemoteFolder(address)
    assert list(staging.steps_of(remote.names())) == [2]
    assert remote.read(LOCK) == other.to_json()


def test_what_did_not_change_is_not_downloaded_again(
    config: Config, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaxres.fit(config, address)
    folder = local(address)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["4"]
    fetched: list[str] = []
    download = RemoteFolder.download

    def noted(self: RemoteFolder, name: str, path: pathlib.Path) -> None:
        fetched.append(name)
        download(self, name, path)

    monkeypatch.setattr(RemoteFolder, "download", noted)
    local(address)
    assert not fetched
    (folder / "checkpoints" / "4" / "state" / "_METADATA").write_text("spoilt here")
    assert flaxres.evaluate(config, address).step == 4
    assert "checkpoints/4/state/_METADATA" in fetched
    local(address, "all")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"2", "4"}


@pytest.mark.slow
def test_the_commands_take_an_address(
    config: Config,
    cache: pathlib.Path,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "mounted" / "run"
    address = f"file://{place}"
    flaxres.fit(config, address)
    assert main(["checkpoints", address]) == 0
    assert [line.split()[1] for line in capfd.readouterr().out.splitlines()] == ["4", "2"]
    assert main(["evaluate", "--workdir", address]) == 0
    assert main(["evaluate", "--full", "--workdir", address]) == 0
    assert f"wrote {address}/evaluation" in capfd.readouterr().out
    assert json.loads((place / "evaluation" / "evaluation.json").read_text())["step"] == 4
    assert main(["report", address, "--no-sheet"]) == 0
    assert f"wrote {address}/report.html" in capfd.readouterr().out
    assert f"--workdir {address}" in (place / "report.html").read_text()
    assert main(["convert", address, str(tmp_path / "weights.safetensors")]) == 0
    assert main(["evaluate", "--workdir", f"{address}/none"]) == 2
    assert f"'{address}/none' holds no run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket", "is a whole bucket: give a folder in it, memory://bucket/NAME"),
        ("nowhere://bucket/run", "the scheme 'nowhere' is unknown to fsspec: give gs://, s3://"),
        ("az://bucket/run", "needs a package that is not installed: pip install 'adlfs'"),
    ],
)
def test_addresses_that_can_t_be_opened_are_refused(
    address: str, message: str, cache: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["train", "--workdir", address], ["checkpoints", address]):
        assert main(words) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fault_38_runs_in_real_stores_are_killed_and_resumed(kind: str) -> None:
    pytest.importorskip("moto", reason="the extra stores is not installed")
    words = ["-m", "tools.kill", "--kills", "2", "--points", "--store", kind, "--json"]
    done = subprocess.run(
        [sys.executable, *words], cwd=processes.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["kills"], figures["mismatches"], figures["losses"]) == (2, 0, 0)


@pytest.fixture
def store(cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A server of S3 in another process, which this process and its children find."""
    pytest.importorskip("moto", reason="the extra stores is not installed")
    with served("s3") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        remote_module._of_bucket.cache_clear()
        yield store
    remote_module._of_bucket.cache_clear()


def words(workdir: object, data_dir: str, steps: int = 40) -> list[str]:
    """Returns the command of a run on the digits."""
    command = kill.arguments(str(workdir), pathlib.Path(data_dir))
    command[command.index("--train.steps") + 1] = str(steps)
    return ["train.py", *command]


@pytest.mark.slow
def test_two_processes_that_share_no_disk_train_the_run_of_two_that_do(
    store: Store, data_dir: str, tmp_path: pathlib.Path
) -> None:
    ensure_prepared("digits", data_dir=data_dir)
    address = f"{store.address}/two"
    for workdir in (tmp_path / "disk", address):
        processes.finish(processes.start(words(workdir, data_dir), 2))
    assert kill.digest(local(address)) == kill.digest(tmp_path / "disk")
    # They also resume without a common disk: the second has no folder of the first.
    remote = RemoteFolder(address)
    for name in remote.names():
        if name.startswith("checkpoints/40/") or name == "summary.json":
            remote.remove(name)
    shutil.rmtree(cache_folder() / "runs")
    texts = processes.finish(processes.start(words(address, data_dir), 2))
    assert "resuming at 30" in texts[0]
    assert kill.digest(local(address)) == kill.digest(tmp_path / "disk")


# train.py, for which a store may be away for 5 seconds.
IMPATIENT = """import sys, flaxres.cli, flaxres.training.uploads
flaxres.training.uploads.RETRY_SECONDS = 5.0
sys.exit(flaxres.cli.main(["train", *sys.argv[1:]]))"""


@pytest.mark.slow
def test_fault_39_a_store_that_goes_away_ends_the_run_in_a_line_and_loses_nothing(
    store: Store, data_dir: str, tmp_path: pathlib.Path
) -> None:
    ensure_prepared("digits", data_dir=data_dir)
    address = f"{store.address}/away"
    processes.finish(processes.start(words(tmp_path / "disk", data_dir), 1))
    started = processes.start(["-c", IMPATIENT, *words(address, data_dir)[1:]], 1)
    kill.wait_for_step(staging_folder(address, "runs"), 5, started)
    store.close_port()
    (text,) = processes.finish(started, 74)
    assert "Traceback" not in text
    assert f"flaxres: {address} can't be written to for " in text.splitlines()[-1]
    store.open_port()
    processes.finish(processes.start(words(address, data_dir), 1))
    assert kill.digest(local(address)) == kill.digest(tmp_path / "disk")
