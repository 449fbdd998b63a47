"""The loader: order, padding, sharding, errors, and that leaving it ends its threads."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flaxres.data.decode import CentreCrop, centre_crop
from flaxres.data.loader import (
    Loader,
    Rows,
    Speed,
    evaluation_rows,
    local_rows,
    resident,
    training_rows,
)
from flaxres.data.order import sample_ids
from flaxres.data.sources import Source, open_source
from flaxres.errors import InputError
from flaxres.training.mesh import data_mesh, replicated, split


@pytest.fixture
def digits(data_dir: str) -> Source:
    return open_source("digits", "train", data_dir=data_dir)


AS_THEY_ARE = CentreCrop(8, 8)


def training(size: int, batch: int, seed: int, start: int, stop: int) -> Iterator[Rows]:
    return training_rows(size, batch, seed, start, stop, lambda step: AS_THEY_ARE)


def evaluation(size: int, batch: int) -> Iterator[Rows]:
    return evaluation_rows(size, batch, AS_THEY_ARE)


def load(
    source: Source, rows: Iterator[Rows], devices: int = 8, threads: int = 2, prefetch: int = 4
) -> list[dict[str, np.ndarray]]:
    with Loader(source, rows, split(data_mesh(devices)), Speed(threads, 0, prefetch)) as loader:
        return [{name: np.asarray(array) for name, array in batch.items()} for batch in loader]


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


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 64, 65, 70])
def test_fault_24_evaluation_visits_every_record_once_whatever_the_batch(size: int) -> None:
    for batch in (1, 8, 64):
        records = np.concatenate([rows.records for rows in evaluation(size, batch)])
        assert len(records) % batch == 0
        np.testing.assert_array_equal(records[records >= 0], np.arange(size))


def test_padding_is_black_and_weightless(digits: Source) -> None:
    few = dataclasses.replace(digits, records=[digits.records[i] for i in range(5)])
    (batch,) = load(few, evaluation(5, 8))
    assert batch["weight"].tolist() == [1] * 5 + [0] * 3
    assert batch["image"][:5].any()
    assert not batch["image"][5:].any()


def test_a_dataset_on_the_device_is_the_same_one(digits: Source) -> None:
    dataset = resident(digits, AS_THEY_ARE, replicated(data_mesh(2)), 2)
    batch = next(iter(load(digits, training(1297, 32, 0, 0, 1))))
    ids = sample_ids(batch["position"], 1297, 0)
    np.testing.assert_array_equal(np.asarray(dataset["image"])[ids], batch["image"])
    np.testing.assert_array_equal(np.asarray(dataset["label"])[ids], batch["label"])
    with pytest.raises(InputError, match="set data.resident=False"):
        resident(digits, CentreCrop(2000, 2000), replicated(data_mesh(1)), 1)


class Damaged:
    """Records of which one can't be read, or is no image."""

    def __init__(self, records: Any, bad: object) -> None:
        self.records, self.bad = records, bad

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            if isinstance(self.bad, Exception):
                raise self.bad
            return self.records[index] | {"image": self.bad}
        return self.records[index]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"text", "this is no JPEG"),
        (OSError("torn"), "can't be read .*torn"),
        (b"", "the file is empty"),
    ],
)
def test_what_can_not_be_read_is_named(digits: Source, bad: object, reason: str) -> None:
    damaged = dataclasses.replace(digits, records=Damaged(digits.records, bad))
    with pytest.raises(InputError, match=rf"digits/train record 5.*{reason}"):
        load(damaged, evaluation(16, 8))
    with pytest.raises(InputError, match="record 5"):
        resident(damaged, AS_THEY_ARE, replicated(data_mesh(1)), 2)


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


def test_an_image_that_can_not_be_decoded_is_replaced_in_training_and_left_out_in_evaluation(
    digits: Source,
) -> None:
    damaged = dataclasses.replace(digits, records=Damaged(digits.records, b"text"))
    said: list[str] = []

    def given(rows: Iterator[Rows]) -> list[dict[str, np.ndarray]]:
        with Loader(damaged, rows, split(data_mesh(1)), Speed(2), "skip", said.append) as loader:
            batches = [
                {name: np.asarray(array) for name, array in batch.items()} for batch in loader
            ]
        assert list(loader.skipped) == [5]
        return batches

    (first, _) = given(evaluation(16, 8))
    assert first["weight"].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert not first["image"][5].any()
    everything = given(training(1297, 1297, 0, 0, 2))
    for batch in everything:
        assert (batch["weight"] == 1).all()
        ids = sample_ids(batch["position"], 1297, 0)
        stand_in, label = digits.read(6)
        np.testing.assert_array_equal(
            batch["image"][ids == 5][0], centre_crop(stand_in, 8, 8, "bilinear")
        )
        assert batch["label"][ids == 5] == label
    assert len(said) == 2, "once a loader, however often it comes"
    assert "digits/train record 5 (" in said[0]


def test_a_dataset_of_nothing_but_bad_images_is_refused(digits: Source) -> None:
    class Bad(Damaged):
        def __getitem__(self, index: int) -> Any:
            return self.records[index] | {"image": b"text"}

    damaged = dataclasses.replace(digits, records=Bad(digits.records, None))
    with pytest.raises(InputError, match="100 images after record .* can't be decoded"):
        with Loader(
            damaged,
            training(1297, 8, 0, 0, 2),
            split(data_mesh(1)),
            Speed(2),
            "skip",
            lambda line: None,
        ) as loader:
            list(loader)


def test_repeated_samples_share_their_batch_and_their_neighbours_differ(digits: Source) -> None:
    seen = []
    for rows in training_rows(1297, 24, 0, 0, 200, lambda step: AS_THEY_ARE, repeats=3):
        records = rows.records.reshape(3, 8)
        np.testing.assert_array_equal(records[0], records[1])
        np.testing.assert_array_equal(records[0], records[2])
        assert (rows.records[::2] != rows.records[1::2]).all()
        assert len(np.unique(rows.positions)) == 24, "each is augmented by a position of its own"
        seen += records[0].tolist()
    assert sorted(seen[:1297]) == list(range(1297))
    plain = next(training_rows(1297, 8, 0, 0, 1, lambda step: AS_THEY_ARE))
    np.testing.assert_array_equal(
        next(training_rows(1297, 24, 0, 0, 1, lambda step: AS_THEY_ARE, 3)).records[:8],
        plain.records,
    )


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
            # One was taken, two are ready, one waits to be put there, and the others are being decoded.
            assert Counted.read / 8 <= 4 + expected
            assert Counted.read / 8 >= 3 + expected - 1


@pytest.mark.slow
def test_worker_processes_change_nothing_and_end(digits: Source) -> None:
    import multiprocessing

    expected = load(digits, training(1297, 16, 0, 0, 5))
    with Loader(digits, training(1297, 16, 0, 0, 5), split(data_mesh(2)), Speed(1, 2)) as loader:
        batches, names = [], set()
        for batch in loader:
            names |= {block.name for block in loader.blocks}
            batches.append({name: np.asarray(array) for name, array in batch.items()})
    for ours, batch in zip(batches, expected, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(ours[name], array)
    assert names
    assert not any(pathlib.Path("/dev/shm", name.lstrip("/")).exists() for name in names)
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_fault_17_a_worker_that_is_killed_is_an_error_and_not_a_wait(digits: Source) -> None:
    import multiprocessing
    import os
    import signal

    with Loader(
        digits, training(1297, 16, 0, 0, 100_000), split(data_mesh(1)), Speed(1, 2)
    ) as loader:
        batches = iter(loader)
        next(batches)
        begun, names = time.monotonic(), [block.name for block in loader.blocks]
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a loading process .* died"):
            for _ in batches:
                pass
        assert time.monotonic() - begun < 20
    assert names
    assert not any(pathlib.Path("/dev/shm", name.lstrip("/")).exists() for name in names)


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
def test_fault_18_a_worker_that_is_stopped_is_named(digits: Source) -> None:
    import multiprocessing
    import os
    import signal

    with Loader(
        digits,
        training(1297, 16, 0, 0, 100_000),
        split(data_mesh(1)),
        Speed(1, 1, worker_seconds=5),
    ) as loader:
        batches = iter(loader)
        next(batches)
        (worker,) = multiprocessing.active_children()
        begun = time.monotonic()
        os.kill(worker.pid or 0, signal.SIGSTOP)
        with pytest.raises(
            RuntimeError,
            match=f"finished no batch for 5 seconds .*: process {worker.pid} is stopped",
        ):
            for _ in batches:
                pass
        assert time.monotonic() - begun < 20


def test_fault_19_a_full_dev_shm_is_named(digits: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = training(1297, 16, 0, 0, 10)

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        Loader(digits, rows, split(data_mesh(1)), Speed(1, 1)) as loader,
        pytest.raises(InputError, match=r"/dev/shm has no room .*data\.workers=0"),
    ):
        next(iter(loader))
    assert not loader.blocks


@pytest.mark.slow
def test_the_input_is_the_same_whatever_feeds_it() -> None:
    """Threads, loading processes, hosts and resumes; see `tools/input_digest.py`."""
    output = subprocess.run(
        [sys.executable, "-m", "tools.input_digest", "--json"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    figures = json.loads(output.splitlines()[-1])
    assert figures["rows"] == 240
    assert figures["differing"] == 0
