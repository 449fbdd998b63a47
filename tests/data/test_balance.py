"""Balanced sampling: shares of the classes, their records, and equality of NumPy and JAX."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from flaxres.config.check import check
from flaxres.data.balance import Balance
from flaxres.data.decode import CentreCrop
from flaxres.data.order import balanced_ids, sample_ids, training_ids
from flaxres.data.rows import training_rows
from flaxres.errors import InputError
from flaxres.training.non_finite import step_records
from flaxres.training.run import feed, prepare_run
from flaxres.training.stepper import Stepper

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 4], [500, 10, 90, 1]))
SIZE = len(LABELS)


@pytest.mark.parametrize(
    ("power", "shares"),
    [(0.0, [500, 10, 90, 1]), (0.5, []), (1.0, [151, 150, 150, 150])],
)
def test_each_epoch_has_the_exact_shares(power: float, shares: list[int]) -> None:
    balance = Balance.of(LABELS, power)
    if power == 0.5:
        exact = np.sqrt([500, 10, 90, 1])
        shares = np.round(SIZE * exact / exact.sum()).astype(int).tolist()
        assert sum(shares) == SIZE
    assert balance.shares.tolist() == shares
    for epoch in range(3):
        positions = np.arange(epoch * SIZE, (epoch + 1) * SIZE, dtype=np.uint32)
        labels = LABELS[balanced_ids(positions, balance, 5)]
        assert np.bincount(labels)[[0, 1, 3, 4]].tolist() == shares


def test_the_records_of_a_class_occur_equally_often() -> None:
    balance, epochs = Balance.of(LABELS, 1.0), 7
    ids = balanced_ids(np.arange(epochs * SIZE, dtype=np.uint32), balance, 5)
    times = np.bincount(ids, minlength=SIZE)
    for label in np.unique(LABELS):
        of_class = times[np.flatnonzero(label == LABELS)]
        assert of_class.max() - of_class.min() <= 1
        assert of_class.sum() == pytest.approx(epochs * SIZE / 4, abs=epochs)


def test_a_share_like_the_datasets_takes_each_record_once() -> None:
    ids = balanced_ids(np.arange(SIZE, dtype=np.uint32), Balance.of(LABELS, 0.0), 5)
    np.testing.assert_array_equal(np.sort(ids), np.arange(SIZE))


def test_the_order_is_random_and_depends_on_seed_epoch_and_class() -> None:
    balance = Balance.of(np.repeat([0, 1], 300), 1.0)
    positions = np.arange(1200, dtype=np.uint32)
    first = balanced_ids(positions, balance, 5)
    assert (first != balanced_ids(positions, balance, 6)).mean() > 0.9
    assert (first[:600] != first[600:]).mean() > 0.9
    assert abs(np.corrcoef(first[:600] % 300, positions[:600])[0, 1]) < 0.2
    one, two = (first[:600][first[:600] // 300 == label] % 300 for label in (0, 1))
    assert (one != two).mean() > 0.9


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_device_agrees(power: float, repeats: int) -> None:
    balance = Balance.of(LABELS, power)
    positions = np.arange(2 * SIZE, dtype=np.uint32)

    def ids(positions: np.ndarray) -> np.ndarray:
        return training_ids(positions, SIZE, 5, 4, repeats, balance)

    np.testing.assert_array_equal(jax.jit(ids)(positions), ids(positions))


def test_any_position_is_had_without_the_ones_before() -> None:
    balance = Balance.of(LABELS, 1.0)
    positions = np.asarray([4_000_000_000, 17, 1_300_000], np.uint32)
    together = balanced_ids(positions, balance, 0)
    alone = [int(balanced_ids(positions[i : i + 1], balance, 0)[0]) for i in range(3)]
    assert together.tolist() == alone


def test_a_resumed_run_takes_the_rest() -> None:
    balance = Balance.of(LABELS, 1.0)

    def batches(start: int) -> list[list[int]]:
        crop = CentreCrop(8, 8)
        rows = training_rows(SIZE, 4, 0, start, 300, lambda step: crop, 1, balance)
        return [batch.records.tolist() for batch in rows]

    whole = batches(0)
    for start in (1, 149, 151, 299):
        assert batches(start) == whole[start:]


@pytest.fixture
def config(tmp_path: pathlib.Path) -> Config:
    sizes = {"image_size": 8, "eval_size": 8, "eval_resize": 8}
    return Config(
        ModelConfig("resnet20", depths=(1, 1, 1)),
        DataConfig(data_dir=str(tmp_path), crop="centre", balance=1.0, **sizes),
        AugmentConfig(flip=False),
        train=TrainConfig(batch_size=50, steps=30, devices=1, tensorboard=False),
    )


def test_a_run_takes_the_balanced_records(config: Config) -> None:
    """Also where the dataset lies on the device, and where a step's records are named."""
    run = prepare_run(config)
    assert run.balance is not None
    ids = balanced_ids(np.arange(1300, dtype=np.uint32), run.balance, 0)
    expected = [run.train.read(int(record))[1] for record in ids]
    assert (ids != sample_ids(np.arange(1300, dtype=np.uint32), len(run.train), 0)).mean() > 0.9
    with feed(run, 0, print) as (batches, _):
        labels = [label for _, batch in zip(range(26), batches, strict=False)
                  for label in np.asarray(batch["label"]).tolist()]  # fmt: skip
    assert labels == expected
    counts = np.bincount(labels[: len(run.train)])
    assert counts.max() - counts.min() == 1
    assert step_records(3, run) == ids[100:150].tolist()


def test_a_resident_run_ends_with_the_same_bits(config: Config) -> None:
    states = []
    for resident in (False, True):
        data = dataclasses.replace(config.data, resident=resident)
        run = prepare_run(dataclasses.replace(config, data=data))
        state, stepper = run.first_state(), Stepper(run)
        with feed(run, 0, print) as (batches, _):
            for _, batch in zip(range(3), batches, strict=False):
                stepper.prepare(state, batch)
                state, metrics = stepper(state, batch, 1)
        states.append((float(np.ravel(metrics["loss"])[0]), jax.device_get(state.params)))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *(s[1] for s in states))


def test_flips_that_alternate_are_refused() -> None:
    config = Config(data=DataConfig(balance=0.5), augment=AugmentConfig(flip_alternates=True))
    with pytest.raises(InputError, match=r"flip_alternates=True with data.balance=0.5"):
        check(config)
