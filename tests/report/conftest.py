"""A run on the digits with its predictions; two runs with hostile names, and the page on them."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres import Config, DataConfig, ModelConfig, TrainConfig
from flaxres.cli import main
from flaxres.data.source import Source
from flaxres.report.full import evaluate_fully
from flaxres.training.run import evaluation_transform, open_data
from tests.training.test_loop import digits

# Each would set `owned` if it were taken as HTML, or break out of an attribute or a script.
HOSTILE = (
    "<img src=x onerror=window.owned=1>",
    "<script>window.owned=1",
    "\"'><svg onload=window.owned=1>",
    "{{ 7*7 }} & $x^2$",
)


@dataclasses.dataclass(frozen=True)
class Pages:
    """The workdirs of two runs, and the page about both."""

    workdirs: tuple[pathlib.Path, pathlib.Path]
    page: pathlib.Path


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Trains both runs for two steps, evaluates them fully, and writes the page."""
    root, rng = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for number, name in enumerate(HOSTILE):
            folder = root / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count + number):
                pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"<b onclick=owned>{i}.png")
    sizes = {"image_size": 8, "eval_size": 8, "eval_resize": 8}
    data = DataConfig("folder", str(root / "photos"), copy=False, eval_split="val", **sizes)
    model = ModelConfig("resnet9", depths=(1,), widths=(4,), stem_width=4)
    workdirs = []
    # The runs differ in a setting that is not compiled into the step.
    for name, every in (("fine", 1), ("<i>coarse", 2)):
        train = TrainConfig(
            batch_size=8,
            eval_batch_size=8,
            steps=2,
            log_every_steps=every,
            devices=1,
            tensorboard=False,
            progress=False,
        )
        config = Config(model, data, train=train)
        flaxres.fit(config, root / name)
        evaluate_fully(config, root / name)
        workdirs.append(root / name)
    page = root / "page.html"
    assert main(["report", *map(str, workdirs), "--out", str(page)]) == 0
    return Pages((workdirs[0], workdirs[1]), page)


@dataclasses.dataclass(frozen=True)
class Made:
    """A run on the digits, its evaluation split, and its predictions, one image at a time."""

    config: Config
    workdir: pathlib.Path
    source: Source
    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, data_dir: str) -> Made:
    """Trains for 30 steps, and predicts by the network of `load_run`."""
    workdir = tmp_path_factory.mktemp("full") / "run"
    # 500 images in batches of 64: the last batch is padded.
    short = {"tensorboard": False, "eval_batch_size": 64, "eval_every_epochs": 9.0, "steps": 30}
    config = digits(data_dir, **short)
    # Statistics of few steps are of use only if they follow the batches closely.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, bn_momentum=0.5))
    flaxres.fit(config, workdir)
    evaluate_fully(config, workdir)
    (source,) = open_data(config.data, ["test"])
    crop = evaluation_transform(config.data)
    read = [source.read(i) for i in range(len(source))]
    images = np.stack([crop(data, np.zeros(0)) for data, _ in read])
    model, variables, preprocess, _ = flaxres.load_run(workdir)
    normal = (images / np.float32(255) - np.float32(preprocess.mean)) / np.float32(preprocess.std)
    logits = np.asarray(jax.jit(model.apply)(variables, normal), np.float64)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    labels = np.array([label for _, label in read])
    return Made(config, workdir, source, images, labels, exp / exp.sum(1, keepdims=True))
