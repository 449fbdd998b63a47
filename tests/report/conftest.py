"""Two runs on a folder whose classes and files have hostile names, and the page about them."""

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres import Config, DataConfig, ModelConfig, TrainConfig
from flaxres.cli import main
from flaxres.report.full import evaluate_fully

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
