"""Images with any number of labels: up to four of the bundled digits in a square."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from flaxres import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from flaxres.data.datasets import open_or_prepare


def write_mosaics(root: pathlib.Path, counts: dict[str, int], seed: int = 0) -> pathlib.Path:
    """Writes images of four cells with a digit or nothing, and a list of the digits of each.

    Args:
      root: the folder.
      counts: the number of images of each split. Only the first takes the digits for training.
      seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    sources = open_or_prepare("digits", ["train", "test"], data_dir=str(root / "digits"))
    for (split, count), source in zip(counts.items(), sources, strict=False):
        (root / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            canvas, labels = Image.new("RGB", (16, 16)), set()
            for cell in range(4):
                if rng.random() < 0.6:
                    continue
                data, label = source.read(int(rng.integers(len(source))))
                canvas.paste(decoded(data), (8 * (cell % 2), 8 * (cell // 2)))
                labels.add(source.classes[label])
            path = f"{split}/{number}.png"
            canvas.save(root / path)
            lines.append(json.dumps({"path": path, "labels": sorted(labels)}))
        (root / f"{split}.jsonl").write_text("\n".join(lines))
    return root


def decoded(data: bytes) -> Image.Image:
    """Returns an encoded digit in 8x8 pixels."""
    return Image.open(io.BytesIO(data)).convert("RGB").resize((8, 8))


def mosaic_config(root: pathlib.Path, steps: int = 2) -> Config:
    """Returns a small run on mosaics."""
    sizes = {"image_size": 16, "eval_size": 16, "eval_resize": 16}
    return Config(
        ModelConfig("resnet9", depths=(1, 1), widths=(16, 32), stem_width=8),
        DataConfig("manifest", str(root), multi_label=True, crop="centre", **sizes),
        AugmentConfig(flip=False),
        OptimConfig(loss="binary_sum", learning_rate=0.02),
        TrainConfig(
            batch_size=16, eval_batch_size=32, steps=steps, tensorboard=False, progress=False
        ),
    )
