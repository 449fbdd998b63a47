"""Runs with bad images, kills, signals, refusals and other data than before."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

import flaxres
from flaxres import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.training import metrics, run
from tests.training.test_loop import digits
from tools import kill, processes

ROOT = pathlib.Path(__file__).parents[2]


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
            match=r"digits/train record 20 .*: this is no JPEG or PNG image; .*bad_images='skip'",
        ):
            flaxres.fit(strict, tmp_path / "strict")


@pytest.mark.parametrize(
    ("dtype", "devices"),
    [("float32", 1), pytest.param("bfloat16", 8, marks=pytest.mark.slow)],
)
def test_photographs_train_and_every_one_is_counted(
    dtype: str,
    devices: int,
    photographs: Callable[..., pathlib.Path],
    data_dir: str,
    tmp_path: pathlib.Path,
) -> None:
    root = photographs(train=20, val=7)
    config = Config(
        model=ModelConfig("resnet20", depths=(1, 1, 1), dtype=dtype, bn_group=8),  # type: ignore[arg-type]
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


@pytest.mark.slow
def test_fault_01_kill_9_and_the_same_command_end_in_the_same_bits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.kill", "--kills", "1", "--outputs", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == 1
    assert figures["mismatches"] == figures["losses"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fault_02_a_signal_saves_once_and_exits_with_75(
    number: signal.Signals, data_dir: str, tmp_path: pathlib.Path
) -> None:
    less = ("--train.checkpoint-every-epochs", "100", "--model.depths", *"111")
    words = kill.arguments(tmp_path, pathlib.Path(data_dir), *less)
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
    with pytest.raises(InputError, match="positions have 32 bits"):
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
