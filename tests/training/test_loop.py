"""Whole runs: the files that they leave, exact counts, and the same bits in all their forms."""

import dataclasses
import itertools
import json
import pathlib
import shutil
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from flaxres.config.files import from_json, load_config, resolved, to_json
from flaxres.errors import InputError
from flaxres.ops import native
from flaxres.training import metrics, run
from flaxres.training.display import Display
from flaxres.training.log import Log
from flaxres.training.run import prepare_run
from flaxres.training.stepper import Stepper

ROOT = pathlib.Path(__file__).parents[2]


def digits(data_dir: str, **train: object) -> Config:
    """Returns the recipe of the digits with a network of eight layers, 12 steps and one device.

    A program for eight devices takes half as long again to compile.
    """
    config = load_config(str(ROOT / "configs" / "digits.py"))
    short = {
        "steps": 12,
        "batch_size": 64,
        "log_every_steps": 4,
        "eval_every_epochs": 0.3,
        "checkpoint_every_epochs": 0.3,
        "progress": False,
        "devices": 1,
    }
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, depths=(1, 1, 1)),
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
        "classes.json",
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
    assert {k: v for k, v in dataclasses.asdict(report).items() if v is not None} == {
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


@pytest.mark.slow
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
    assert f"computed its convolutions by XLA and now does by {compiler}" in said_from_step_6()


@pytest.mark.slow
def test_a_scanned_run_leaves_weights_for_the_plain_network(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    config = digits(data_dir, steps=3, tensorboard=False)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, depths=None))
    deep = dataclasses.replace(config.model, scan_blocks=True, remat=True, stochastic_depth=0.2)
    state = flaxres.fit(dataclasses.replace(config, model=deep), tmp_path / "run")
    report = flaxres.evaluate(dataclasses.replace(config, model=deep), tmp_path / "run")
    flaxres.save_weights(
        tmp_path / "w.safetensors", state.variables, flaxres.ResNet20(scan_blocks=True)
    )
    plain = flaxres.evaluate(config, weights=tmp_path / "w.safetensors")
    assert plain.loss == pytest.approx(report.loss, rel=1e-5)
    assert plain.examples == report.examples == 500


def test_weights_of_a_network_without_norms_are_evaluated(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    config = digits(data_dir, steps=1, tensorboard=False)
    config = dataclasses.replace(config, model=ModelConfig("test_nfnet"))
    model = flaxres.create_model("test_nfnet", num_classes=10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    flaxres.save_weights(tmp_path / "w.safetensors", variables, model)
    report = flaxres.evaluate(config, weights=tmp_path / "w.safetensors")
    assert report.examples == 500


def test_a_run_that_never_saved_does_not_hold_its_workdir(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    config = digits(data_dir, steps=2, tensorboard=False)
    (tmp_path / "config.json").write_text(
        to_json(dataclasses.replace(config, model=ModelConfig("resnet32")))
    )
    flaxres.fit(config, tmp_path)
    assert from_json(tmp_path / "config.json") == resolved(config)


def test_metrics_are_read_once_computed_and_after_two_dispatches_at_the_latest(
    data_dir: str, tmp_path: pathlib.Path
) -> None:
    """Read later, those of dispatches that return computed would show the time of a read."""
    computed = jax.block_until_ready(jnp.ones(()))
    product = lambda _, x: 1e-3 * (x @ x)  # noqa: E731
    seconds = jax.jit(lambda x: jax.lax.fori_loop(0, 60, product, x).sum())

    def metrics_of(loss: jax.Array) -> dict[str, jax.Array]:
        names = "top1", "learning_rate", "gradient_norm", "finite"
        return {"loss": loss} | dict.fromkeys(names, computed)

    config = digits(data_dir, tensorboard=False, log_every_steps=1, devices=1)
    display = Display(1, 0, False, False)
    with Log(prepare_run(config), tmp_path, 0, (0.0, 0.0), display, None) as log:
        log.add(1, 1, metrics_of(computed))
        assert not log.pending
        log.add(2, 1, metrics_of(seconds(jnp.ones((1500, 1500)))))
        log.add(3, 1, metrics_of(computed))
        assert [step for _, step, _ in log.pending] == [2, 3]
        log.add(4, 1, metrics_of(computed))
        assert not log.pending
    assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_the_clock_counts_each_second_once(data_dir: str, tmp_path: pathlib.Path) -> None:
    with Log(
        prepare_run(digits(data_dir, tensorboard=False)),
        tmp_path,
        0,
        (10.0, 1.0),
        Display(1, 0, False, False),
        None,
    ) as log:
        time.sleep(0.3)
        with log.paused(jnp.zeros(())):
            inside = log.all_times()[0]
            time.sleep(0.3)
            assert log.all_times()[0] == inside
        assert 10.3 <= inside < 10.5
        assert inside <= log.all_times()[0] < inside + 0.1


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_pictures_grow_with_the_epochs_and_each_size_compiles_once(
    photographs: Callable[..., pathlib.Path],
    data_dir: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared, folder = list[int](), str(photographs(16, 4))
    prepare = Stepper.prepare

    def counted(self: Stepper, state: object, batch: dict[str, jax.Array]) -> None:
        prepared.append(batch["image"].shape[1])
        prepare(self, state, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "prepare", counted)

    def trained(name: str, dispatch: int | None, resident: bool) -> list[float]:
        """Trains with images of 8, 12 and 8 pixels and returns the losses."""
        config = Config(
            model=ModelConfig("resnet20", depths=(1, 1, 1)),
            data=DataConfig(
                "folder",
                folder,
                data_dir,
                eval_split="val",
                image_size=8,
                eval_size=16,
                eval_resize=16,
                crop="centre",
                resident=resident,
                progressive_sizes=((1.0, 12), (2.0, 8)),
            ),
            augment=AugmentConfig(mixup=0.2, cutmix=1.0),
            train=TrainConfig(
                batch_size=8,
                eval_batch_size=8,
                epochs=3,
                log_every_steps=1,
                devices=1,
                tensorboard=False,
                steps_per_dispatch=dispatch,
            ),
        )
        prepared.clear()
        flaxres.fit(config, tmp_path / name)
        assert prepared == [8, 12]
        assert from_json(tmp_path / name / "config.json") == resolved(config)
        rows = metrics.read_metrics(tmp_path / name)
        return [row["train/loss"] for row in rows if "train/loss" in row]

    losses = trained("loader", None, resident=False)
    assert len(losses) == 12
    # A dispatch of 16 steps ends where the next size begins. It is another program, so other
    # roundings.
    np.testing.assert_allclose(trained("alone", 1, resident=True), losses, rtol=1e-4)
    np.testing.assert_allclose(trained("together", 16, resident=True), losses, rtol=1e-4)
