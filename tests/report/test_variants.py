"""Test sets with a part of the classes, and reassessed labels: small folders of the same form."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from flaxres.cli import main
from flaxres.data.variants import open_variant
from flaxres.errors import InputError
from flaxres.report.full import evaluate_fully
from tests.report.conftest import Made

CHOSEN = (3, 8, 9)


def name(record: int) -> str:
    return f"ILSVRC2012_val_{record + 1:08}.png"


@pytest.fixture(scope="module")
def folder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The images of three classes of the digits, in the form of ImageNet-R."""
    root = tmp_path_factory.mktemp("variants") / "digits-r"
    for i in np.flatnonzero(np.isin(made.labels, CHOSEN)):
        path = root / str(made.labels[i]) / name(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.images[i]).save(path)
    (root / "README.txt").write_text("no class")
    return root


def make(root: pathlib.Path, *names: str) -> str:
    for one in names:
        (root / one).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / one / "1.png")
    return str(root)


@pytest.mark.slow
def test_the_network_chooses_among_the_classes_of_the_folder(
    made: Made, folder: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--workdir", str(made.workdir), "--full", "--images", str(folder)]
    assert main(words) == 0
    out = made.workdir / "evaluation-digits-r"
    content, printed = json.loads((out / "evaluation.json").read_text()), capfd.readouterr().out
    assert printed.endswith(f"wrote {out}\n")
    assert f"top-1 {100 * content['top']['1']:.2f}%" in printed
    assert f"ECE {content['ece']:.4f}" in printed
    label, other, count = content["confused"][0]
    assert f"{label} as {other} ({count})" in printed
    inside = np.isin(made.labels, CHOSEN)
    p = made.probabilities[inside][:, CHOSEN]
    p /= p.sum(1, keepdims=True)
    labels = np.searchsorted(CHOSEN, made.labels[inside])
    right = p.argmax(1) == labels
    assert (content["examples"], content["classes"]) == (inside.sum(), 3)
    assert content["top"]["1"] == pytest.approx(right.mean(), abs=1e-12)
    # Of all ten classes, others are likelier for some of the images.
    assert right.mean() > (made.probabilities[inside].argmax(1) == made.labels[inside]).mean()
    loss = -np.log(p[np.arange(len(p)), labels]).mean()
    assert content["loss"] == pytest.approx(loss, rel=1e-4)
    rows = [json.loads(line) for line in (out / "mistakes.jsonl").read_text().splitlines()]
    assert len(rows) == (~right).sum()
    for row in rows:
        assert row["file"].startswith(f"{row['label']}/")
        assert int(row["predicted"]) in CHOSEN
    assert (made.workdir / "evaluation" / "evaluation.json").exists()


def test_reassessed_labels_are_sets(
    made: Made, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    inside = np.isin(made.labels, CHOSEN)
    predicted = np.array(CHOSEN)[made.probabilities[:, CHOSEN].argmax(1)]
    possible = [[] if i % 3 == 0 else [int(label), 9] for i, label in enumerate(made.labels)]
    (tmp_path / "real.json").write_text(json.dumps(possible))
    content = evaluate_fully(
        made.config,
        made.workdir,
        out=tmp_path / "out",
        images=str(folder),
        real=str(tmp_path / "real.json"),
    )
    counted = [i for i in np.flatnonzero(inside) if i % 3]
    right = [predicted[i] in (made.labels[i], 9) for i in counted]
    assert content["real"] == {"accuracy": np.mean(right), "examples": len(counted)}
    assert 0.1 < np.mean(right) < 1


def test_folders_go_by_name_or_by_number(tmp_path: pathlib.Path) -> None:
    classes = tuple(f"n{i:02}" for i in range(12))
    source, numbers = open_variant(make(tmp_path / "v2", "10", "9", "0"), classes)
    assert (source.classes, numbers) == (("n00", "n09", "n10"), (0, 9, 10))
    assert [source.read(i)[1] for i in range(3)] == [0, 1, 2]
    assert [source.file_name(i) for i in range(3)] == ["0/1.png", "9/1.png", "10/1.png"]
    source, numbers = open_variant(make(tmp_path / "r", "n03", "n01"), classes)
    assert (source.classes, numbers) == (("n01", "n03"), (1, 3))
    # The order is the network's, not that of the names.
    source, numbers = open_variant(make(tmp_path / "order", "a", "b"), ("b", "c", "a"))
    assert (source.classes, numbers) == (("b", "a"), (0, 2))
    digest = source.digest
    Image.new("RGB", (5, 5)).save(tmp_path / "order" / "b" / "1.png")
    assert open_variant(str(tmp_path / "order"), ("b", "c", "a"))[0].digest != digest


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "is not a folder"),
        (("",), "holds no folders"),
        (("n01", "n001"), "'n001' in .* is none of the network's 3 classes: did you mean n01"),
        (("0", "3"), "'3' in .* is none of the network's 3 classes: the first is 'n01'"),
        (("n01", "1"), "'1' in .* is none of the network's 3 classes"),
    ],
)
def test_other_folders_are_refused(
    names: tuple[str, ...], message: str, tmp_path: pathlib.Path
) -> None:
    make(tmp_path / "x", *names)
    with pytest.raises(InputError, match=message):
        open_variant(str(tmp_path / "x"), ("n01", "n02", "n03"))


def test_a_folder_without_images_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x" / "n01").mkdir(parents=True)
    (tmp_path / "x" / "n01" / "list.txt").write_text("none")
    with pytest.raises(InputError, match="n01' holds no images"):
        open_variant(str(tmp_path / "x"), ("n01",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--images /nothing", "--images needs --full"),
        ("--full --images /nothing", "'/nothing' is not a folder"),
        ("--full --real /nothing", "--real '/nothing' can't be read"),
        ("--full --real labels.json", "[10] are no labels below 10"),
        ("--full --real object.json", "--real 'object.json' can't be read"),
        ("--full --real short.json", "is not called like one of ImageNet's 1 validation images"),
        ("--full --out x --images x --weights y", "--images needs a workdir, and one process"),
    ],
)
def test_mistakes_are_one_line(
    words: str,
    message: str,
    made: Made,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, content in (("labels", [[1], [10]]), ("object", 3), ("short", [[1]])):
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    out = [] if "--out" in words or "--full" not in words else ["--out", str(tmp_path / "out")]
    assert main(["evaluate", "--workdir", str(made.workdir), *words.split(), *out]) == 2
    out, err = capfd.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
