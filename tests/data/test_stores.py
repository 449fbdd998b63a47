"""The same photographs give the same batches, whatever form they are read from."""

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from benchmarks.forms import write_parquet, write_tar, write_tfrecord
from flaxres.data.choices import FROM_ADDRESSES
from flaxres.data.datasets import open_or_prepare
from flaxres.data.source import Source
from flaxres.errors import InputError
from tests.data.stores import BATCH, loaded, on_hosts, rows_in, write_folder

# Read by fsspec, as an object store is.
ADDRESSES = [f"{name} at an address" for name in FROM_ADDRESSES]
STORES = ["folder", "parquet", "webdataset", "tfrecord", "manifest", *ADDRESSES]


@dataclasses.dataclass(frozen=True)
class Photographs:
    """The prepared photographs, and the arguments that open each of their other forms."""

    prepared: Source
    rows: dict[int, str]
    forms: dict[str, dict[str, Any]]

    def source(self, form: str, split: str = "train") -> Source:
        return open_or_prepare(**self.forms[form] | {"splits": [split]})[0]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    place = tmp_path_factory.mktemp("stores")
    root, common = write_folder(place / "folder"), {"data_dir": str(place / "prepared")}
    (prepared,) = open_or_prepare("folder", ["train"], str(root), **common)
    rows = rows_in(root, prepared)
    for number, part in enumerate((slice(0, 5), slice(5, 5), slice(5, 14))):
        path = place / "parquet" / "data" / f"train-{number:05d}-of-00003.parquet"
        write_parquet(path, rows[part])
    tars = place / "webdataset"
    for number, part in enumerate((slice(0, 9), slice(9, 14))):
        members = [
            (f"{key}.{suffix}", content)
            for name, data, label in rows[part]
            for key, _, extension in [name.rpartition(".")]
            for suffix, content in ((extension, data), ("cls", str(label).encode()))
        ]
        write_tar(tars / f"train-{number:06d}.tar", members)
    (tars / "classes.txt").write_text("cat\ndog\n")
    for number, part in enumerate((slice(0, 6), slice(6, 14))):
        write_tfrecord(
            place / "tfrecord" / f"photographs-train.tfrecord-{number:05d}-of-00002",
            [
                {"image": data, "label": label, "file_name": name.encode()}
                for name, data, label in rows[part]
            ],
        )
    (place / "tfrecord" / "label.labels.txt").write_text("cat\ndog\n")
    lists = shutil.copytree(root, place / "manifest")
    lines = [f'"{name}",{prepared.classes[label]}' for name, _, label in rows]
    (lists / "train.csv").write_text("\n".join(["path,label", *lines]))
    forms = {
        "manifest": {"name": "manifest", "source": str(lists)},
        "tfrecord": {"name": "tfrecord", "source": str(place / "tfrecord")},
        "webdataset": {"name": "webdataset", "source": str(tars)},
        "folder": {"name": "folder", "source": str(root), "copy": False},
        "parquet": {"name": "parquet", "source": str(place / "parquet"), "cache_mib": 1},
    }
    forms |= {
        f"{name} at an address": forms[name] | {"source": f"file://{forms[name]['source']}"}
        for name in FROM_ADDRESSES
    }
    forms = {name: form | common | {"splits": ["train"]} for name, form in forms.items()}
    return Photographs(prepared, loaded(prepared), forms)


@pytest.mark.parametrize("form", STORES)
def test_records_labels_and_names_are_those_of_the_prepared_dataset(
    photographs: Photographs, form: str
) -> None:
    source, prepared = photographs.source(form), photographs.prepared
    assert len(source) == len(prepared) == 14
    assert source.classes == prepared.classes
    for i in range(len(source)):
        data, label = source.read(i)
        expected, expected_label = prepared.read(i)
        assert label == expected_label == source.labels[i]
        assert source.file_name(i) == prepared.file_name(i)
        if expected.startswith(b"\xff\xd8"):  # the preparation writes some others again as PNG
            assert data == expected


@pytest.mark.parametrize("form", STORES)
@pytest.mark.parametrize("workers", [0, 2])
def test_crops_of_two_epochs_are_those_of_the_prepared_dataset(
    photographs: Photographs, form: str, workers: int
) -> None:
    assert loaded(photographs.source(form), workers=workers) == photographs.rows


@pytest.mark.parametrize("form", STORES)
def test_a_resume_at_any_batch_goes_on_with_the_same_crops(
    photographs: Photographs, form: str
) -> None:
    for step in range(2 * 14 // BATCH):
        expected = {at: row for at, row in photographs.rows.items() if at >= step * BATCH}
        assert loaded(photographs.source(form), step) == expected


def test_two_hosts_load_together_what_one_loads(photographs: Photographs) -> None:
    for rows in on_hosts([photographs.forms[form] for form in STORES]):
        assert rows == photographs.rows


@pytest.mark.parametrize("form", STORES)
def test_slices_are_those_of_tfds(photographs: Photographs, form: str) -> None:
    whole = photographs.source(form)
    parts = [photographs.source(form, f"train[{part}]") for part in (":60%", "60%:", "3:5")]
    assert [len(part) for part in parts] == [8, 6, 2]
    assert parts[0].read(7) == whole.read(7)
    assert parts[1].read(0) == whole.read(8)
    np.testing.assert_array_equal(parts[2].labels, whole.labels[3:5])
    assert parts[2].digest == whole.digest
    with pytest.raises(InputError, match=r"'train\[5:5\]' of .* is empty"):
        photographs.source(form, "train[5:5]")
    with pytest.raises(InputError, match=r"split 'train\[5:' of "):
        photographs.source(form, "train[5:")
    with pytest.raises(InputError, match="unknown split of .* 'trian': did you mean train"):
        photographs.source(form, "trian")


@pytest.mark.parametrize("form", ADDRESSES)
def test_a_store_that_goes_away_is_no_damaged_image(
    photographs: Photographs, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photographs.source(form)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the network is gone")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", refuse)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    with pytest.raises(InputError, match="network is gone.*once the store answers"):
        loaded(source)


@pytest.mark.parametrize("form", FROM_ADDRESSES)
def test_a_store_that_fails_while_files_are_indexed_is_no_damage(
    photographs: Photographs,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    dataset = photographs.forms[f"{form} at an address"] | {"data_dir": str(tmp_path)}

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionResetError("the connection was reset")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem._open", refuse)
    monkeypatch.setattr("upath.implementations.local.FilePath.read_bytes", refuse)
    with pytest.raises(InputError, match="connection was reset.*check the bucket, the network"):
        open_or_prepare(**dataset | {"splits": ["train"]})


def test_other_forms_are_not_read_from_an_address(photographs: Photographs) -> None:
    for name in ("folder", "manifest", "idx", "imagenet2012"):
        with pytest.raises(InputError, match=f"'{name}': the rule is one of parquet, webdataset"):
            open_or_prepare(name, ["train"], "s3://bucket/data")
    with pytest.raises(InputError, match="unknown to fsspec: give gs://, s3://"):
        open_or_prepare("parquet", ["train"], "nowhere://bucket/data")
    with pytest.raises(InputError, match="'memory://none/data' is not a folder"):
        open_or_prepare("parquet", ["train"], "memory://none/data")
