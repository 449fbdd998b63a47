"""The loader: order, sharding, bounds on memory, and the end of its threads."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

from flaxres.data.decode import CentreCrop
from flaxres.data.loader import Loader, Speed, local_rows
from flaxres.data.order import sample_ids
from flaxres.data.rows import evaluation_rows, training_rows
from flaxres.data.source import Source
from flaxres.serving.crop import centre_crop
from flaxres.training.mesh import data_mesh, split
from tests.data.loading import Damaged, evaluation, load, training


def test_batches_hold_the_samples_of_their_positions(digits: Source) -> None:
    batches = load(
        digits, training(len(digits), 64, seed=3, start=18, stop=24)
    )  # over the end of the first epoch, 1,297 images
    positions = np.concatenate([batch["position"] for batch in batches])
    np.testing.assert_array_equal(positions, np.arange(18 * 64, 24 * 64))
    for position, image, label in zip(
        positions,
        *(np.concatenate([batch[name] for batch in batches]) for name in ("image", "label")),
        strict=True,
    ):
        data, expected = digits.read(int(sample_ids(np.asarray([position], np.uint32), 1297, 3)[0]))
        assert label == expected
        np.testing.assert_array_equal(image, centre_crop(data, 8, 8, "bilinear"))


@pytest.mark.parametrize(("devices", "threads", "prefetch"), [(1, 1, 1), (2, 4, 2), (8, 3, 7)])
def test_devices_threads_and_prefetching_change_nothing(
    digits: Source, devices: int, threads: int, prefetch: int
) -> None:
    expected = load(digits, training(1297, 16, 0, 0, 5))
    for ours, batch in zip(
        load(digits, training(1297, 16, 0, 0, 5), devices, threads, prefetch), expected, strict=True
    ):
        for name, array in batch.items():
            np.testing.assert_array_equal(ours[name], array)


def test_the_batch_is_split_over_the_devices(digits: Source) -> None:
    sharding = split(data_mesh(8))
    with Loader(digits, training(1297, 16, 0, 0, 1), sharding, Speed(2)) as loader:
        (batch,) = loader
    assert all(array.sharding == sharding for array in batch.values())
    assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2, 8, 8, 3)}
    np.testing.assert_array_equal(local_rows(sharding, 16), np.arange(16))


def test_padding_is_black_and_weightless(digits: Source) -> None:
    few = dataclasses.replace(digits, records=[digits.records[i] for i in range(5)])
    (batch,) = load(few, evaluation(5, 8))
    assert batch["weight"].tolist() == [1] * 5 + [0] * 3
    assert batch["image"][:5].any()
    assert not batch["image"][5:].any()


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_early_ends_the_threads(digits: Source, taken: int) -> None:
    def ours() -> set[str]:
        return {
            thread.name for thread in threading.enumerate() if thread.name.startswith("flaxres")
        }

    with Loader(digits, training(1297, 16, 0, 0, 10_000), split(data_mesh(2)), Speed(2)) as loader:
        for _ in zip(range(taken), loader, strict=False):
            pass
        assert ours()
    deadline = time.monotonic() + 10
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ours()


def test_the_stall_is_the_time_that_the_consumer_waits(digits: Source) -> None:
    class Slow(CentreCrop):
        def __call__(self, data: bytes, numbers: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            return super().__call__(data, numbers)

    rows = training_rows(1297, 8, 0, 0, 5, lambda step: Slow(8, 8))
    with Loader(digits, rows, split(data_mesh(1)), Speed(1, 0, 1)) as loader:
        begun = time.perf_counter()
        list(loader)
        assert 0.5 < loader.stall_seconds / (time.perf_counter() - begun) <= 1
    with Loader(digits, training(1297, 8, 0, 0, 3), split(data_mesh(1)), Speed(2)) as loader:
        for _ in loader:
            time.sleep(0.2)
        assert loader.stall_seconds < 0.3


def test_pictures_may_grow_from_step_to_step(digits: Source) -> None:
    rows = training_rows(1297, 16, 0, 0, 6, lambda step: CentreCrop(8 if step < 3 else 12, 12))
    with Loader(digits, rows, split(data_mesh(2)), Speed(2, buffer_bytes=1)) as loader:
        assert [batch["image"].shape[1] for batch in loader] == [8, 8, 8, 12, 12, 12]


def test_bytes_bound_what_is_decoded_ahead(digits: Source) -> None:
    class Counted(Damaged):
        read = 0

        def __getitem__(self, index: int) -> Any:
            Counted.read += 1
            return self.records[index]

    source = dataclasses.replace(digits, records=Counted(digits.records, None))
    batch_bytes = 8 * 8 * 8 * 3
    for most, expected in ((1, 1), (3 * batch_bytes, 3), (10**9, 6)):
        Counted.read = 0
        with Loader(
            source, training(1297, 8, 0, 0, 1000), split(data_mesh(1)), Speed(2, 0, 6, most)
        ) as loader:
            next(iter(loader))
            time.sleep(0.3)
            # One was taken, two are ready, one waits for the queue, and the others are in decoding.
            assert Counted.read / 8 <= 4 + expected
            assert Counted.read / 8 >= 3 + expected - 1


@pytest.mark.parametrize("taken", [0, 1])
def test_leaving_while_batches_wait_for_a_thread_ends_at_once(digits: Source, taken: int) -> None:
    class Slow:
        def __init__(self, records: Any) -> None:
            self.records = records

        def __len__(self) -> int:
            return len(self.records)

        def __getitem__(self, index: int) -> Any:
            time.sleep(0.02)
            return self.records[index]

    source = dataclasses.replace(digits, records=Slow(digits.records))
    with Loader(source, training(1297, 64, 0, 0, 1000), split(data_mesh(1)), Speed(1)) as loader:
        for _ in range(taken):
            next(iter(loader))
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    assert not loader.feeder.is_alive()


@pytest.mark.slow
def test_the_input_is_the_same_whatever_feeds_it() -> None:
    """Threads, loading processes, hosts and resumes; see `tools/input_digest.py`."""
    output = subprocess.run(
        [sys.executable, "-m", "tools.input_digest", "--hosts", "2", "--json"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    figures = json.loads(output.splitlines()[-1])
    assert figures["rows"] == 240
    assert figures["differing"] == 0


def test_an_iteration_after_the_end_of_the_loader_ends(digits: Source) -> None:
    rows = list(evaluation_rows(len(digits), 64, CentreCrop(8, 8)))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Loader(digits, rows, device, Speed(1)) as loader:
        batches = iter(loader)
        next(batches)
    assert list(batches) == []
    assert list(loader) == []
