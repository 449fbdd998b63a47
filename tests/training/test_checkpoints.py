"""Damaged checkpoints are named, set aside and never deleted; bad or stuck steps stop a run."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxres
from flaxres.cli import main
from flaxres.errors import InputError, WriteError
from flaxres.training import augmentation
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.non_finite import NonFiniteError
from flaxres.training.run import prepare_run
from flaxres.training.state import State
from flaxres.training.verification import DIGESTS, SEAL, newest_sound, problem, steps, survey
from flaxres.training.watchdog import EXIT_STUCK
from tests.training.test_loop import digits

ROOT = pathlib.Path(__file__).parents[2]


def state(step: int, width: int = 8) -> State:
    key = jax.random.key(step)
    params = {
        "conv1": {"kernel": jax.random.normal(key, (3, 3, 3, width))},
        "fc": {"bias": jnp.full(width, float(step))},
    }
    return State(
        jnp.int32(step),
        params,
        {"bn1": {"mean": jnp.zeros(width)}},
        optax.sgd(0.1, 0.9).init(params),
    )


def like(saved: State) -> State:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), saved
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with the steps 10, 20 and 30."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir / "checkpoints", writing=True) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(state(step), step, {"note": "n"})
    return workdir


@pytest.fixture
def workdir(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy, which is as good as what was saved."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def files(step: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def test_fault_06_every_flipped_bit_of_every_file_is_found(workdir: pathlib.Path) -> None:
    folder, choose, samples = workdir / "checkpoints" / "30", random.Random(0), 0
    assert {SEAL, DIGESTS, "_CHECKPOINT_METADATA"} <= {path.name for path in files(folder)}
    assert problem(folder) == ""
    for path in files(folder):
        sound = path.read_bytes()
        for at in {choose.randrange(len(sound)) for _ in range(40)} if sound else ():
            path.write_bytes(
                sound[:at] + bytes([sound[at] ^ 1 << choose.randrange(8)]) + sound[at + 1 :]
            )
            assert problem(folder), f"{path} byte {at}"
            samples += 1
        path.write_bytes(sound)
        assert problem(folder) == ""
    assert samples >= 200


@pytest.mark.parametrize("damage", ["cut", "deleted", "emptied", "added"])
def test_fault_07_every_damaged_file_sends_a_run_to_the_step_before(
    workdir: pathlib.Path, damage: str
) -> None:
    folder = workdir / "checkpoints" / "30"
    for path in files(folder):
        if path.name == SEAL and damage == "deleted":
            # A kill right after the save leaves it so; all that is restored is in the digests.
            continue
        sound = path.read_bytes()
        if damage == "cut":
            path.write_bytes(sound[: len(sound) // 2])
        elif damage == "deleted":
            path.unlink()
        elif damage == "emptied":
            path.write_bytes(b"")
        else:
            (path.parent / "new").write_text("new")
        unchanged = path.exists() and path.read_bytes() == sound and damage != "added"
        assert newest_sound(workdir / "checkpoints")[0] == (30 if unchanged else 20), path
        path.write_bytes(sound)
        (path.parent / "new").unlink(missing_ok=True)


def test_fault_06_fault_07_what_is_refused_is_named_kept_and_saved_anew(
    workdir: pathlib.Path,
) -> None:
    folder = workdir / "checkpoints"
    (victim,) = (folder / "30" / "state").glob("manifest.ocdbt")
    damaged = victim.read_bytes()[::-1]
    victim.write_bytes(damaged)
    (folder / "40").mkdir()  # Orbax counts an empty folder as the latest step
    said: list[str] = []
    with Checkpoints(
        folder, say=said.append
    ) as checkpoints:  # an evaluation leaves everything in its place
        assert checkpoints.step == 20
    assert (folder / "40").exists()
    with Checkpoints(folder, writing=True, say=said.append) as checkpoints:
        restored = checkpoints.restore(like(state(20)))
        np.testing.assert_array_equal(restored.params["fc"]["bias"], 20.0)
        for step in (30, 40):
            checkpoints.save(state(step), step, {})
        checkpoints.read_back(state(40))
    assert (workdir / "refused" / "30" / "state" / "manifest.ocdbt").read_bytes() == damaged
    assert (workdir / "refused" / "40").is_dir()
    assert [found.problem for found in survey(folder)] == [""] * 3
    assert (
        "step 30 is not trusted: state/manifest.ocdbt has changed since it was saved; using step 20"
        in said[1]
    )
    assert "step 40 is not trusted: " + DIGESTS + " is missing" in said[0]
    assert "is kept in" in said[3]


def test_fault_08_leftovers_and_copies(workdir: pathlib.Path) -> None:
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "30", folder / "50.orbax-checkpoint-tmp")
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp-123")
    (folder / "30" / f"{SEAL}.part").write_text("a kill while the seal was written")
    shutil.copytree(folder / "20", folder / "60")
    said: list[str] = []
    with Checkpoints(folder, writing=True, say=said.append) as checkpoints:
        assert checkpoints.step == 30
        assert int(checkpoints.restore(like(state(30))).step) == 30
        for step in (40, 50):
            checkpoints.save(state(step), step, {})
        checkpoints.read_back(state(50))
        checkpoints.manager.save = lambda *_, **__: False  # type: ignore[method-assign]
        with pytest.raises(WriteError, match="step 45 was not saved"):
            checkpoints.save(state(45), 45, {})
    assert "step 60 is not trusted: it is a copy of step 20, and is kept in" in said[0]
    assert (folder.parent / "refused" / "60").is_dir()


def test_a_seal_that_can_not_be_written_is_told_and_does_not_look_like_a_save(
    workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: pathlib.Path, target: pathlib.Path) -> None:
        raise OSError(28, "No space left on device")

    with Checkpoints(workdir / "checkpoints", writing=True) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "rename", full)
            checkpoints.save(state(40), 40, {})
            with pytest.raises(
                WriteError, match="step 40 .* is saved, but not its seal: .*No space left"
            ):
                checkpoints.wait()
        assert checkpoints.saving_since is None
        checkpoints.seal_error = None
    assert newest_sound(workdir / "checkpoints") == (40, [])


def test_the_best_is_kept_beside_the_newest(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path / "checkpoints", keep=2, keep_best=1, writing=True) as checkpoints:
        for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.6), (4, None), (5, 0.7)):
            checkpoints.save(state(step), step, {}, accuracy)
        checkpoints.wait()
        assert steps(tmp_path / "checkpoints") == [5, 4, 2]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            state(30, width=16),
            r"batch_stats/bn1/mean is float32\[8\] in the checkpoint and float32\[16\] in the run",
        ),
        (
            state(30).replace(params={"conv1": state(30).params["conv1"]}),
            r"params/fc/bias is float32\[8\] in the checkpoint and not there in the run",
        ),
        (
            jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state(30)),
            r"is float32\[.*\] in the checkpoint and bfloat16",
        ),
    ],
)
def test_fault_12_another_structure_names_the_leaf_and_both_shapes(
    workdir: pathlib.Path, other: State, named: str
) -> None:
    with (
        Checkpoints(workdir / "checkpoints") as checkpoints,
        pytest.raises(InputError, match=named),
    ):
        checkpoints.restore(like(other))


def test_fault_10_a_last_checkpoint_that_can_not_be_read_back_is_no_success(
    workdir: pathlib.Path,
) -> None:
    with Checkpoints(workdir / "checkpoints", writing=True) as checkpoints:
        checkpoints.save(state(40), 40, {})
        with pytest.raises(WriteError, match="what was read back is not what was saved"):
            checkpoints.read_back(state(41))
        (workdir / "checkpoints" / "40" / "state" / "_METADATA").write_text("")
        with pytest.raises(
            WriteError, match="step 40 .* does not verify: state/_METADATA has changed"
        ):
            checkpoints.read_back(state(40))


def test_the_checkpoints_command(workdir: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(workdir), "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)["checkpoints"]
    assert [(entry["step"], entry["problem"], entry["provenance"]) for entry in listed] == [
        (step, "", {"note": "n"}) for step in (30, 20, 10)
    ]
    (workdir / "checkpoints" / "20" / DIGESTS).unlink()
    assert main(["checkpoints", str(workdir), "--provenance"]) == 2
    output = capfd.readouterr()
    assert "note: n" in output.out
    assert DIGESTS in output.out
    assert "1 of 3 checkpoints do not verify" in output.err
    assert main(["checkpoints", str(workdir / "nothing")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
def test_fault_28_a_loss_that_is_not_finite_stops_the_run_with_the_state_before_it(
    data_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    config = digits(
        data_dir,
        tensorboard=False,
        steps=12,
        eval_every_epochs=0.2,
        checkpoint_every_epochs=100,
        devices=1,
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, resident=resident))
    real = augmentation.augmented

    def damaged(batch: dict[str, jax.Array], *settings: Any) -> jax.Array:
        """Makes the image at position 6 * 64 + 5, which is of step 7, NaN."""
        chosen = (batch["position"] == 6 * 64 + 5)[:, None, None, None]
        return jnp.where(chosen, jnp.nan, real(batch, *settings))

    # The state before the bad step, of a run that saved there and never met it.
    saving = dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, checkpoint_every_epochs=6 / (1297 / 64), keep_checkpoints=9
        ),
    )
    flaxres.fit(saving, tmp_path / "reference")
    monkeypatch.setattr(augmentation, "augmented", damaged)
    with pytest.raises(
        NonFiniteError,
        match="step 7: loss or gradient is not finite; step 6 is saved. Its samples are the",
    ):
        flaxres.fit(config, tmp_path / "stop")
    noted = json.loads((tmp_path / "stop" / "non_finite.json").read_text())
    assert noted["step"] == 7
    assert len(noted["records"]) == 64
    run = prepare_run(config)
    with Checkpoints(tmp_path / "stop" / "checkpoints") as checkpoints:
        assert checkpoints.step == 6
        kept = checkpoints.restore(run.abstract_state())
    with Checkpoints(tmp_path / "reference" / "checkpoints") as checkpoints:
        checkpoints.step = 6
        reference = checkpoints.restore(run.abstract_state())
    for ours, expected in zip(jax.tree.leaves(kept), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(
            ours, expected, rtol=1e-5, atol=1e-7
        )  # the program that spoils a picture is another one, with other roundings

    skipping = dataclasses.replace(
        config, train=dataclasses.replace(config.train, non_finite="skip")
    )
    final = flaxres.fit(skipping, tmp_path / "skip")
    assert int(final.step) == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(final)))
    assert json.loads((tmp_path / "skip" / "summary.json").read_text())["steps_left_out"] == 1
    counts = [
        leaf for leaf in jax.tree.leaves(final.opt_state) if jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    assert counts
    assert all(int(count) == 12 for count in counts), "the schedule goes on with the run"


@pytest.mark.slow
def test_a_run_that_does_not_move_ends_and_says_where(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    program = f"""
import time, flaxres
from tests.training.test_loop import digits
from flaxres.training.stepper import Stepper
real = Stepper.__call__
def stuck(self, state, batch, count):
    if int(state.step) == 3:
        time.sleep(1000)
    return real(self, state, batch, count)
Stepper.__call__ = stuck
config = digits(
    {data_dir!r}, tensorboard=False, devices=1, watchdog_seconds=30.0, checkpoint_every_epochs=100,
    eval_every_epochs=100,
)
flaxres.fit(config, {str(tmp_path)!r})
"""
    environment = os.environ | {"XLA_FLAGS": ""}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == EXIT_STUCK, done.stderr
    assert time.monotonic() - begun < 150
    assert "flaxres: step 4 has not moved for 3" in done.stderr
    assert "stuck" in (tmp_path / "stacks.txt").read_text()
