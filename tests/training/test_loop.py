"""`fit` and `evaluate`, whole: what a run writes, that it goes on in the same bits, that it counts exactly, and that it refuses."""

import dataclasses
import itertools
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.config.files import from_json, load_config, resolved, to_json
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.ops import native
from flaxres.training import metrics, run
from flaxres.training.display import Display
from flaxres.training.log import Log
from flaxres.training.run import prepare_run
from flaxres.training.stepper import Stepper
from tools import kill, processes

ROOT = pathlib.Path(__file__).parents[2]


def digits(data_dir: str, **train: object) -> Config:
    config = load_config(str(ROOT / "configs" / "digits.py"))
    short = {
        "steps": 12,
        "batch_size": 64,
        "log_every_steps": 4,
        "eval_every_epochs": 0.3,
        "checkpoint_every_epochs": 0.3,
        "progress": False,
    }
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, data_dir=data_dir),
        train=dataclasses.replace(config.train, **(short | train)),  # type: ignore[arg-type]
    )


def test_a_run_leaves_what_it_should_and_is_not_run_twice(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = digits(data_dir)
    state = flaxres.fit(config, tmp_path)
    assert int(state.step) == 12
    names = {
        path.name.split(".")[0] if path.name.startswith("events") else path.name
        for path in tmp_path.iterdir()
    }
    assert names == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "checkpoints",
        "events",
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.keys() == {
        "top1",
        "top5",
        "loss",
        "examples",
        "step",
        "seconds",
        "images_per_second",
        "input_stall_percent",
    }
    assert (summary["examples"], summary["step"]) == (500, 12)
    rows = metrics.read_metrics(tmp_path)
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8, 12]
    assert [row["step"] for row in rows if "eval/top1" in row] == [6, 12]
    assert all({"step", "epoch"} <= row.keys() for row in rows)
    report = flaxres.evaluate(config, tmp_path)
    assert dataclasses.asdict(report) == {
        key: summary[key] for key in ("top1", "top5", "loss", "examples", "step")
    }

    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    capfd.readouterr()
    again = flaxres.fit(config, tmp_path)
    assert "this run is finished" in capfd.readouterr().err
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), again, state)
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before

    with pytest.raises(
        InputError,
        match=r"another config \(optim.learning_rate: 0.1 -> 0.2\): use another --workdir",
    ):
        flaxres.fit(
            dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=0.2)),
            tmp_path,
        )
    (tmp_path / "summary.json").unlink()  # as a kill after the last checkpoint leaves it
    flaxres.fit(config, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["top1"] == summary["top1"]


@pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler")
def test_a_run_that_goes_on_with_other_convolutions_says_so(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = digits(data_dir, devices=1, tensorboard=False)

    def said_from_step_6() -> str:
        shutil.rmtree(tmp_path / "checkpoints" / "12", ignore_errors=True)
        capfd.readouterr()
        flaxres.fit(config, tmp_path)
        said = capfd.readouterr().err
        assert "resuming at 6" in said
        return said

    flaxres.fit(config, tmp_path)
    assert "convolutions" not in said_from_step_6()
    compiler = flaxres.use_native_convolutions()
    assert f"the run's convolutions were XLA's and are now {compiler}'s" in said_from_step_6()


def test_a_scanned_run_leaves_weights_for_the_plain_network(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    config = digits(data_dir, steps=3, tensorboard=False)
    deep = dataclasses.replace(config.model, scan_blocks=True, remat=True, stochastic_depth=0.2)
    state = flaxres.fit(dataclasses.replace(config, model=deep), tmp_path / "run")
    report = flaxres.evaluate(dataclasses.replace(config, model=deep), tmp_path / "run")
    flaxres.save_weights(
        tmp_path / "w.safetensors", state.variables, flaxres.ResNet20(scan_blocks=True)
    )
    plain = flaxres.evaluate(config, weights=tmp_path / "w.safetensors")
    assert plain.loss == pytest.approx(report.loss, rel=1e-5)
    assert plain.examples == report.examples == 500


def test_a_run_that_never_saved_does_not_hold_its_workdir(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    config = digits(data_dir, steps=2, tensorboard=False)
    (tmp_path / "config.json").write_text(
        to_json(dataclasses.replace(config, model=ModelConfig("resnet32")))
    )
    flaxres.fit(config, tmp_path)
    assert from_json(tmp_path / "config.json") == resolved(config)


def test_the_clock_counts_each_second_once(data_dir: str, tmp_path: pathlib.Path) -> None:
    log = Log(
        prepare_run(digits(data_dir, tensorboard=False)),
        tmp_path,
        0,
        (10.0, 1.0),
        Display(1, 0, False, False),
        None,
    )
    time.sleep(0.3)
    with log.paused(jnp.zeros(())):
        inside = log.all_times()[0]
        time.sleep(0.3)
        assert log.all_times()[0] == inside
    assert 10.3 <= inside < 10.5
    assert inside <= log.all_times()[0] < inside + 0.1
    log.close()


def test_the_loader_and_the_device_feed_the_same_run(data_dir: str, tmp_path: pathlib.Path) -> None:
    losses = []
    for resident in (False, True):
        config = digits(data_dir, tensorboard=False, log_every_steps=1, steps=4)
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, resident=resident)
        )
        flaxres.fit(config, tmp_path / str(resident))
        losses.append(
            [
                row["train/loss"]
                for row in metrics.read_metrics(tmp_path / str(resident))
                if "train/loss" in row
            ]
        )
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("epochs", [0.001, 0.5, 1, 2.5])
def test_epochs_that_are_no_whole_steps_end_where_the_run_does(
    data_dir: str, epochs: float
) -> None:
    batches = [1, 7, 64, 83, 1297, 2000]  # of 1,297 examples
    for batch in batches:
        prepared = run.Run(Config(train=TrainConfig(batch, epochs=10)), *(range(1297),) * 2)  # type: ignore[arg-type]
        ends = [0]
        while ends[-1] < prepared.steps:
            ends.append(prepared.next_end(ends[-1], epochs))
        period = max(epochs * 1297 / batch, 1)
        assert ends == [round(number * period) for number in range(len(ends))]
        if epochs * 1297 / batch >= 1:
            assert ends[-1] == prepared.steps, "the last evaluation is that of the last epoch"
        for start, end in itertools.pairwise(ends):
            assert all(
                prepared.next_end(step, epochs) == end
                for step in range(start, min(end, start + 50))
            )


def test_many_steps_in_a_dispatch_are_the_same_steps_however_they_are_cut(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    def trained(name: str, **train: object) -> tuple[object, list[float]]:
        config = digits(
            data_dir, tensorboard=False, log_every_steps=1, steps=10, devices=1, **train
        )
        state = flaxres.fit(config, tmp_path / name)
        rows = [row for row in metrics.read_metrics(tmp_path / name) if "train/loss" in row]
        assert [row["step"] for row in rows] == list(range(1, 11))
        return state, [row["train/loss"] for row in rows]

    alone, losses = trained("alone", steps_per_dispatch=1)
    state, together = trained(
        "together", steps_per_dispatch=4, eval_every_epochs=100, checkpoint_every_epochs=100
    )
    cut, pieces = trained(
        "cut", steps_per_dispatch=4, eval_every_epochs=0.15, checkpoint_every_epochs=0.1
    )
    assert pieces == together, "the same bits, whether 4 steps run together or 2"
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), state, cut)
    )
    np.testing.assert_allclose(together, losses, rtol=1e-4)  # another program, so other roundings
    assert int(alone.step) == 10


def test_pictures_grow_with_the_epochs_and_each_size_compiles_once(
    photographs: Callable[..., pathlib.Path],
    data_dir: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = []
    prepare = Stepper.prepare

    def counted(self: Stepper, state: object, batch: dict[str, jax.Array]) -> None:
        prepared.append(batch["image"].shape[1])
        prepare(self, state, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "prepare", counted)
    config = Config(
        model=ModelConfig("resnet20"),
        data=DataConfig(
            "folder",
            str(photographs(16, 4)),
            data_dir,
            eval_split="val",
            image_size=8,
            eval_size=16,
            eval_resize=16,
            progressive_sizes=((1.0, 12), (2.0, 8)),
        ),
        augment=AugmentConfig(auto="ta_wide", mixup=0.2, cutmix=1.0),
        train=TrainConfig(
            batch_size=16,
            eval_batch_size=8,
            epochs=3,
            log_every_steps=1,
            devices=2,
            tensorboard=False,
        ),
    )
    flaxres.fit(config, tmp_path / "run")
    assert prepared == [8, 12]
    assert from_json(tmp_path / "run" / "config.json") == resolved(config)


def test_an_image_that_went_bad_is_named_in_the_log_and_counted(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def spoilt(*arguments: object) -> list[Source]:
        return [
            dataclasses.replace(
                source,
                records=[
                    *[source.records[i] for i in range(20)],
                    source.records[20] | {"image": b"text"},
                ],
            )
            for source in real(*arguments)
        ]

    real = run.open_or_prepare
    config = digits(data_dir, tensorboard=False, steps=3, batch_size=24, eval_batch_size=24)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, resident=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_or_prepare", spoilt)
        flaxres.fit(config, tmp_path / "run")
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["images_skipped"] == 1
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["examples"] == 20
        assert "skipped digits/train record 20" in capfd.readouterr().err
        strict = dataclasses.replace(
            config, data=dataclasses.replace(config.data, bad_images="error")
        )
        with pytest.raises(
            InputError,
            match=r"digits/train record 20 .*: this is no JPEG or PNG image; .* or set data.bad_images='skip'",
        ):
            flaxres.fit(strict, tmp_path / "strict")


@pytest.mark.parametrize(("dtype", "devices"), [("float32", 1), ("bfloat16", 8)])
def test_photographs_train_and_every_one_is_counted(
    dtype: str,
    devices: int,
    photographs: Callable[..., pathlib.Path],
    data_dir: str,
    tmp_path: pathlib.Path,
) -> None:
    root = photographs(train=20, val=7)
    config = Config(
        model=ModelConfig("resnet20", dtype=dtype, bn_group=8),  # type: ignore[arg-type]
        data=DataConfig(
            "folder",
            str(root),
            data_dir,
            eval_split="val",
            image_size=16,
            eval_size=16,
            eval_resize=20,
        ),
        optim=OptimConfig(learning_rate=0.05),
        train=TrainConfig(
            batch_size=16,
            eval_batch_size=8,
            steps=6,
            log_every_steps=2,
            devices=devices,
            tensorboard=False,
        ),
    )
    flaxres.fit(config, tmp_path / "run")
    report = flaxres.evaluate(config, tmp_path / "run")
    assert report.examples == 14
    assert report.top5 is None
    half = dataclasses.replace(config, data=dataclasses.replace(config.data, eval_split="val[:5]"))
    assert flaxres.evaluate(half, tmp_path / "run").examples == 5


def test_fault_01_kill_9_and_the_same_command_end_in_the_same_bits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.kill", "--kills", "1", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == 1
    assert figures["mismatches"] == figures["losses"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fault_02_a_signal_saves_once_and_exits_with_75(
    number: signal.Signals, data_dir: str, tmp_path: pathlib.Path
) -> None:
    words = kill.arguments(
        tmp_path, pathlib.Path(data_dir), "--train.checkpoint-every-epochs", "100"
    )
    started = kill.start(words)
    kill.wait_for_step(tmp_path, 5, started)
    started[0].send_signal(number)
    (said,) = processes.finish(started, 75)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(saved) == 1
    assert f"step {saved[0]} is saved" in said
    assert 5 <= saved[0] < 40
    (said,) = processes.finish(kill.start(words))
    assert f"resuming at {saved[0]}" in said
    assert sorted(
        {row["step"] for row in metrics.read_metrics(tmp_path) if "train/loss" in row}
    ) == list(range(1, 41))


def test_fault_05_refusals_come_before_anything_is_written_or_compiled(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    config = digits(data_dir)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"workdir .*file.* can't be written .*give another --workdir"
    ):
        flaxres.fit(config, tmp_path / "file")
    with pytest.raises(InputError, match="has no checkpoints: train first"):
        flaxres.evaluate(config, tmp_path / "nothing")
    with pytest.raises(InputError, match="set JAX_ENABLE_X64=1"):
        flaxres.fit(
            dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float64")),
            tmp_path / "run",
        )
    with pytest.raises(InputError, match="positions are 32 bits wide"):
        flaxres.fit(digits(data_dir, steps=2**27), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fault_29_a_checkpoint_trained_on_other_data_or_classes_is_refused(
    data_dir: str, photographs: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    config = digits(data_dir, steps=2, tensorboard=False)
    root = photographs()
    folder = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, name="folder", source=str(root), eval_split="val"),
    )
    flaxres.fit(folder, tmp_path / "run")
    (root / "train" / "blue" / "0.jpg").unlink()
    with pytest.raises(InputError, match="has digest"):
        flaxres.fit(folder, tmp_path / "run")
    (root / "train" / "red").rename(root / "train" / "green")
    (root / "val" / "red").rename(root / "val" / "green")
    for function in (flaxres.fit, flaxres.evaluate):
        with pytest.raises(
            InputError,
            match="the 2 classes of folder/.* are not those that the checkpoint was trained on",
        ):
            function(folder, tmp_path / "run")
    assert any((tmp_path / "run" / "checkpoints").iterdir())
