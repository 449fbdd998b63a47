"""Weights of classes in the loss."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.config.check import check
from flaxres.data.datasets import open_or_prepare
from flaxres.data.labels import class_counts
from flaxres.diagnostics.described import described_run
from flaxres.errors import InputError
from flaxres.training.augmentation import inputs
from flaxres.training.losses import class_weights, example_losses, smooth_targets
from flaxres.training.run import feed, prepare_run
from flaxres.training.stepper import Stepper

COUNTS = np.array([120, 30, 0, 50])


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_mean_weight_of_all_examples_is_1(power: float) -> None:
    weights = class_weights(COUNTS, power)
    assert (weights * COUNTS).sum() == pytest.approx(COUNTS.sum())
    assert weights[1] / weights[0] == pytest.approx(4**power)
    assert weights[2] == 0
    if power == 1:
        np.testing.assert_allclose((weights * COUNTS)[[0, 1, 3]], 200 / 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_pytorchs(smoothing: float) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((16, 4)).astype(np.float32), rng.integers(0, 4, 16)
    weights = np.array([0.5, 2.0, 1.0, 3.0], np.float32)
    targets = smooth_targets(jnp.asarray(labels), 4, smoothing, jnp.float32) * weights
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits),
        torch.from_numpy(labels),
        torch.from_numpy(weights),
        reduction="none",
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(
        example_losses(OptimConfig(), jnp.asarray(logits), targets), theirs, rtol=1e-5
    )


@pytest.fixture
def config(photographs: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> Config:
    """A run on photographs of two classes, of which one has a fifth of the other's."""
    root = photographs(train=10)
    for path in sorted((root / "train" / "red").iterdir())[2:]:
        path.unlink()
    return Config(
        ModelConfig("resnet20", depths=(1, 1, 1)),
        DataConfig(
            "folder",
            source=str(root),
            data_dir=str(tmp_path / "data"),
            eval_split="val",
            image_size=16,
            eval_size=16,
            eval_resize=16,
        ),
        AugmentConfig(),
        OptimConfig(class_balance=1.0),
        TrainConfig(batch_size=8, eval_batch_size=8, steps=1, devices=1, tensorboard=False),
    )


@pytest.mark.parametrize("copy", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_step_weighs_the_classes_of_its_dataset(config: Config, copy: bool) -> None:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, copy=copy))
    run = prepare_run(config)
    assert (run.train.labels is None) == copy
    assert class_counts(run.train).tolist() == [10, 2]
    assert run.class_weights is not None
    np.testing.assert_allclose(run.class_weights, [0.6, 3.0])
    state, stepper = run.first_state(), Stepper(run)
    variables: Any = jax.device_get(state.variables)
    with feed(run, 0, print) as (batches, _):
        batch = next(iter(batches))
        stepper.prepare(state, batch)
        images, targets = inputs(config, batch, 0, len(run.train), state.step, 2)
        _, metrics = stepper(state, batch, 1)
    logits, _ = run.model.apply(variables, images, train=True, mutable=["batch_stats"])
    losses = -(jax.nn.log_softmax(logits) * targets * np.array([0.6, 3.0])).sum(-1)
    assert float(np.ravel(metrics["loss"])[0]) == pytest.approx(float(losses.mean()), rel=1e-4)


def test_a_dataset_that_is_not_there_has_classes_of_one_size() -> None:
    """Else `flaxres plan` of such a config would need the images."""
    config = Config(data=DataConfig("cifar10"), optim=OptimConfig(class_balance=1.0))
    np.testing.assert_allclose(described_run(config).class_weights, np.ones(10))


def test_what_it_does_not_weigh_is_refused() -> None:
    optim = OptimConfig(class_balance=0.5, loss="binary")
    with pytest.raises(InputError, match="optim.class_balance=0.5 with optim.loss='binary'"):
        check(Config(optim=optim))


def test_a_label_that_is_no_class_is_named(tmp_path: pathlib.Path) -> None:
    (source,) = open_or_prepare("digits", ["test"], data_dir=str(tmp_path))
    with pytest.raises(InputError, match="has label 10: the rule is 0 to 9"):
        class_counts(dataclasses.replace(source, labels=np.array([3, 10, 11])))
