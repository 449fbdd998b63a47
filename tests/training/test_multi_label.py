"""Images with any number of labels: data, loss, evaluation, and what is made of the network."""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flaxres
from benchmarks.peers import torch_and_torchmetrics
from flaxres import Config, OptimConfig
from flaxres.cli import main
from flaxres.config.check import check
from flaxres.data.datasets import open_or_prepare
from flaxres.data.labels import class_counts
from flaxres.data.loader import Speed
from flaxres.data.order import sample_ids
from flaxres.data.resident import resident
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.inference.predict import from_tag, from_weights, from_workdir
from flaxres.report.full import evaluate_fully
from flaxres.report.outputs import LabelledOutputs, collect
from flaxres.serving.model import load
from flaxres.training.augmentation import inputs
from flaxres.training.checkpoints import Checkpoints
from flaxres.training.loop import restored
from flaxres.training.losses import example_losses, label_weights
from flaxres.training.mesh import data_mesh, replicated
from flaxres.training.run import evaluation_transform, feed, prepare_run
from tests.training.mosaics import mosaic_config, write_mosaics


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_mosaics(tmp_path_factory.mktemp("mosaics"), {"train": 64, "test": 90})


@pytest.fixture(scope="module")
def trained(root: pathlib.Path) -> tuple[Config, pathlib.Path]:
    config = mosaic_config(root, steps=12)
    flaxres.fit(config, root / "run")
    return config, root / "run"


def labels_in(root: pathlib.Path, split: str) -> np.ndarray:
    """Returns the labels of a list as ones and zeros; the classes are the digits."""
    rows = [json.loads(line) for line in (root / f"{split}.jsonl").read_text().splitlines()]
    matrix = np.zeros((len(rows), 10), np.uint8)
    for i, row in enumerate(rows):
        matrix[i, [int(label) for label in row["labels"]]] = 1
    return matrix


def targets_of(source: Source) -> np.ndarray:
    assert source.labels is not None
    return source.targets(source.labels.astype(np.int32))


def opened(name: str, folder: pathlib.Path, **options: Any) -> list[Source]:
    return open_or_prepare(name, (), str(folder), multi_label=True, **options)


def test_a_list_of_json_gives_the_labels_of_each_line(root: pathlib.Path) -> None:
    test, train = opened("manifest", root)
    for source, split in ((train, "train"), (test, "test")):
        np.testing.assert_array_equal(targets_of(source), labels_in(root, split))
        np.testing.assert_array_equal(class_counts(source), labels_in(root, split).sum(0))
    assert train.classes == tuple("0123456789")
    assert 0 in labels_in(root, "train").sum(1)


def test_a_csv_separates_labels_by_bars(tmp_path: pathlib.Path, root: pathlib.Path) -> None:
    (tmp_path / "images").symlink_to(root / "train")
    lines = ["path,labels", "images/0.png,dog | cat", "images/1.png,", "images/2.png,dog"]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (source,) = opened("manifest", tmp_path)
    assert source.classes == ("cat", "dog")
    assert targets_of(source).tolist() == [[1, 1], [0, 0], [0, 1]]
    (tmp_path / "train.csv").write_text("path,labels\nimages/0.png,2|0\nimages/1.png,1")
    assert targets_of(opened("manifest", tmp_path)[0]).tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("kind", ["List", "Sequence", "old"])
def test_parquet_has_lists_of_class_labels(
    tmp_path: pathlib.Path, root: pathlib.Path, kind: str
) -> None:
    inner = {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}
    listed = [inner] if kind == "old" else {"feature": inner, "_type": kind}
    features = {"image": {"_type": "Image"}, "labels": listed, "tags": {"_type": "Value"}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {"image": image, "labels": pa.list_(pa.int64()), "tags": pa.string()},
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    data = [(root / "train" / f"{i}.png").read_bytes() for i in range(3)]
    columns = {
        "image": [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(data)],
        "labels": [[2, 0], [], [1]],
        "tags": ["", "", ""],
    }
    pq.write_table(pa.table(columns, schema), tmp_path / "train-00000-of-00001.parquet")
    (source,) = opened("parquet", tmp_path)
    assert source.classes == ("cat", "dog", "owl")
    assert targets_of(source).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert [source.read(i)[0] for i in range(3)] == data
    with pytest.raises(InputError, match=r"List\(ClassLabel\): set data.multi_label=True"):
        open_or_prepare("parquet", (), str(tmp_path))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("path,label\nimages/0.png,cat", "has label, and data.multi_label=True reads labels"),
        ("path\nimages/0.png", "the rule is path .* and labels"),
        ("path,labels\nimages/0.png,3\nimages/1.png,-1", r"line 3 .* has the label -1: .* 0 to 3"),
        ("path,labels\nimages/0.png,cat|2", "names alone, or whole numbers alone"),
        ("path,labels\nimages/0.png,\nimages/1.png,", "no image in .* has a label"),
    ],
)
def test_lists_without_several_labels_are_refused(
    tmp_path: pathlib.Path, root: pathlib.Path, lines: str, message: str
) -> None:
    (tmp_path / "images").symlink_to(root / "train")
    (tmp_path / "train.csv").write_text(lines)
    with pytest.raises(InputError, match=message):
        opened("manifest", tmp_path)


def test_a_list_of_several_labels_is_refused_without_the_setting(root: pathlib.Path) -> None:
    with pytest.raises(InputError, match="has labels, and data.multi_label=False reads label"):
        open_or_prepare("manifest", (), str(root))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim.loss": "cross_entropy"}, "data.multi_label=True with optim.loss='cross_entropy'"),
        ({"optim.label_smoothing": 0.1}, "optim.label_smoothing=0.1 with data.multi_label=True"),
        ({"data.balance": 0.5}, "data.balance=0.5 with data.multi_label=True"),
        (
            {"data.multi_label": False, "train.monitor": "mean_average_precision"},
            "train.monitor='mean_average_precision' needs data.multi_label=True",
        ),
    ],
)
def test_settings_for_one_label_are_refused(
    root: pathlib.Path, changed: dict[str, Any], message: str
) -> None:
    config = mosaic_config(root)
    for name, value in changed.items():
        section, _, field = name.partition(".")
        new = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: new})
    with pytest.raises(InputError, match=message):
        check(config)


def test_datasets_with_one_label_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="data.multi_label=True with data.name='folder'"):
        opened("folder", tmp_path, copy=False)


@pytest.mark.extra
@pytest.mark.parametrize("loss", ["binary", "binary_sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_pytorchs(loss: Any, weighted: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (16, 5)).astype(np.float32)
    targets = rng.random((16, 5)).round(1).astype(np.float32)  # mixtures too
    weights = np.array([0.5, 9.0, 1.0, 3.0, 20.0], np.float32) if weighted else None
    criterion = torch.nn.BCEWithLogitsLoss(
        reduction="none", pos_weight=None if weights is None else torch.from_numpy(weights)
    )
    theirs = criterion(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
    theirs = theirs.mean(1) if loss == "binary" else theirs.sum(1)
    ours = example_losses(OptimConfig(loss=loss), jnp.asarray(logits), targets, weights)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_batch_has_ones_for_the_labels(root: pathlib.Path) -> None:
    """Also where the dataset lies on the device, and after a restart in the middle."""
    run = prepare_run(mosaic_config(root, steps=4))
    matrix = labels_in(root, "train")
    for first in (0, 2):
        with feed(run, first, print) as (batches, _):
            for batch in batches:
                ids = sample_ids(np.asarray(batch["position"]), 64, 0)
                assert batch["label"].dtype == jnp.uint8
                np.testing.assert_array_equal(batch["label"], matrix[ids])
    whole = resident(
        run.train, evaluation_transform(run.config.data), replicated(data_mesh(1)), Speed(2)
    )
    np.testing.assert_array_equal(whole["label"], matrix)
    with feed(run, 0, print) as (batches, _):
        batch = next(iter(batches))
        _, targets = inputs(run.config, batch, 0, 64, jnp.int32(0), 10)
    np.testing.assert_array_equal(targets, np.asarray(batch["label"], np.float32))


def test_classes_weigh_by_their_labels(root: pathlib.Path) -> None:
    config = mosaic_config(root)
    optim = dataclasses.replace(config.optim, class_balance=1.0)
    run = prepare_run(dataclasses.replace(config, optim=optim))
    counts = labels_in(root, "train").sum(0)
    np.testing.assert_allclose(run.class_weights, (64 - counts) / counts)
    assert label_weights(np.array([16]), 64, 0.5).tolist() == [3**0.5]


def predictions(workdir: pathlib.Path, root: pathlib.Path) -> np.ndarray:
    """Returns the probabilities of the test images, by the network alone."""
    model, variables, preprocess, _ = flaxres.load_run(workdir)
    images = preprocess([root / "test" / f"{i}.png" for i in range(90)])
    return np.asarray(jax.nn.sigmoid(model.apply(variables, images)))


def test_the_evaluation_is_that_of_all_predictions(
    trained: tuple[Config, pathlib.Path], root: pathlib.Path
) -> None:
    config, workdir = trained
    p, labels = predictions(workdir, root), labels_in(root, "test").astype(bool)
    reports = []
    for devices in (1, 4):
        train = dataclasses.replace(config.train, devices=devices)
        reports.append(flaxres.evaluate(dataclasses.replace(config, train=train), workdir))
    for report in reports:
        assert report.examples == 90
        precisions = []
        for right, scores in zip(labels.T, p.T, strict=True):
            order = np.argsort(-scores, kind="stable")
            hits = np.cumsum(right[order])
            precisions.append((hits / np.arange(1, 91))[right[order]].mean())
        assert report.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-5)
        losses = -np.where(labels, np.log(p), np.log1p(-p))
        assert report.loss == pytest.approx(losses.mean(), rel=1e-4)
        some = labels.any(1)
        hits = labels[np.arange(90), p.argmax(1)][some]
        assert report.top1 == pytest.approx(hits.mean(), abs=1e-12)
    assert json.loads((workdir / "summary.json").read_text())["mean_average_precision"] == (
        pytest.approx(reports[0].mean_average_precision, abs=1e-5)
    )


@pytest.mark.extra
def test_the_full_evaluation_agrees_with_scikit_learn_and_torchmetrics(
    trained: tuple[Config, pathlib.Path], root: pathlib.Path
) -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics is not installed: the extra `references`")
    torch, metrics = torch_and_torchmetrics()
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    config, workdir = trained
    content = evaluate_fully(config, workdir)
    outputs = collect(*restored(config, workdir, None))
    assert isinstance(outputs, LabelledOutputs)
    labels, p = outputs.labels, outputs.probabilities
    np.testing.assert_array_equal(labels, labels_in(root, "test").astype(bool))
    np.testing.assert_allclose(p, predictions(workdir, root), atol=1e-5)
    theirs = {
        "mean_average_precision": sklearn.average_precision_score(labels, p, average="macro"),
        "micro_f1": sklearn.f1_score(labels, p > 0.5, average="micro"),
        "macro_f1": sklearn.f1_score(labels, p > 0.5, average="macro", zero_division=0),
        "exact_match": sklearn.accuracy_score(labels, p > 0.5),
        "brier": ((p.astype(np.float64) - labels) ** 2).mean(),
    }
    pair = torch.from_numpy(np.array(p)), torch.from_numpy(labels.astype(np.int64))
    assert theirs["mean_average_precision"] == pytest.approx(
        float(metrics.MultilabelAveragePrecision(10)(*pair)), abs=1e-6
    )
    flat = pair[0].flatten(), pair[1].flatten()
    for name, norm in (("ece", "l1"), ("mce", "max")):
        theirs[name] = float(metrics.BinaryCalibrationError(n_bins=15, norm=norm)(*flat))
    for name, value in theirs.items():
        assert content[name] == pytest.approx(float(value), abs=1e-6), name


def test_the_files_of_the_full_evaluation(trained: tuple[Config, pathlib.Path]) -> None:
    config, workdir = trained
    (workdir / "evaluation").mkdir(exist_ok=True)
    (workdir / "evaluation" / "confusion.csv").write_text("of an earlier evaluation")
    content = evaluate_fully(config, workdir)
    names = {path.name for path in (workdir / "evaluation").iterdir()} - {"mistakes"}
    assert names == {"evaluation.json", "per_class.csv", "mistakes.jsonl"}
    rows = (workdir / "evaluation" / "per_class.csv").read_text().splitlines()
    assert len(rows) == 11
    mistakes = [
        json.loads(line)
        for line in (workdir / "evaluation" / "mistakes.jsonl").read_text().splitlines()
    ]
    confidences = [mistake["confidence"] for mistake in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert all(value > 0.5 for value in confidences)
    assert all(one["predicted"] not in one["label"].split(", ") for one in mistakes)
    assert content["labels_per_image"] == pytest.approx(1.45, abs=0.4)
    page = workdir / "page.html"
    assert main(["report", str(workdir), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Confusion matrix" not in text
    assert "all labels right" in text


@pytest.mark.parametrize("option", ["images", "real"])
def test_evaluations_for_one_label_are_refused(
    trained: tuple[Config, pathlib.Path], tmp_path: pathlib.Path, option: str
) -> None:
    with pytest.raises(InputError, match=f"--{option} with data.multi_label=True"):
        evaluate_fully(*trained, **{option: str(tmp_path)})  # type: ignore[arg-type]


def test_what_is_made_of_the_network_gives_the_same_probabilities(
    trained: tuple[Config, pathlib.Path],
    root: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights, a hub's folder, an export and the command carry that classes are independent."""
    workdir, image = trained[1], root / "test" / "3.png"
    expected = predictions(workdir, root)[3]
    file, hub, export = (tmp_path / name for name in ("a.safetensors", "hub", "export"))
    assert main(["convert", str(workdir), str(file)]) == 0
    again = tmp_path / "b.safetensors"
    assert main(["convert", str(file), str(again)]) == 0
    for source in (from_workdir(str(workdir)), from_weights(str(file)), from_weights(str(again))):
        assert source.multi_label
        (best,) = source([image], top=10)
        np.testing.assert_allclose([dict(best)[str(i)] for i in range(10)], expected, atol=1e-5)
    model, variables, preprocess, classes = flaxres.load_run(workdir)
    named = flaxres.create_model("resnet9", depths=(1, 1), widths=(16, 32), stem_width=8)
    assert type(named) is type(model)
    flaxres.save_pretrained(hub, model, variables, preprocess, classes, multi_label=True)
    assert "any number of the classes" in (hub / "README.md").read_text()
    (best,) = from_tag(str(hub))([image], top=10)
    np.testing.assert_allclose([dict(best)[str(i)] for i in range(10)], expected, atol=1e-5)
    assert main(["export", "--workdir", str(workdir), "--out", str(export)]) == 0
    network = load(export)
    (row,) = network.program(network.crop(image.read_bytes())[None])
    np.testing.assert_allclose(row, expected, atol=1e-4)
    capsys.readouterr()


def test_checkpoints_are_kept_by_the_mean_average_precision(
    root: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float | None] = []
    save: Callable[..., Any] = Checkpoints.save

    def watched(self: Any, state: Any, step: int, content: Any, accuracy: float | None) -> None:
        seen.append(accuracy)
        save(self, state, step, content, accuracy)

    monkeypatch.setattr(Checkpoints, "save", watched)
    flaxres.fit(mosaic_config(root), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert seen[-1] == summary["mean_average_precision"] != summary["top1"]
