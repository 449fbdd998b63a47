"""The ImageNet config on real photographs: two dtypes and sizes, on 1 and on 8 devices."""

import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """250 photographs of 250 classes, the same ones for training and validation."""
    archive = ROOT.parent / "shared" / "data" / "imagenet_sample.tar"
    if not archive.exists():
        pytest.skip("the shared data folder is not beside this checkout")
    root = tmp_path_factory.mktemp("photographs")
    with tarfile.open(archive) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                name, data = pathlib.PurePosixPath(member.name).name, file.read()
                for split in ("train", "val"):
                    folder = root / split / name.split("_")[0]
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "devices", "size"), [("float32", 8, 224), ("bfloat16", 1, 128)])
def test_the_imagenet_config_trains_and_counts_all_250(
    dtype: str, devices: int, size: int, source: pathlib.Path, data_dir: str, tmp_path: pathlib.Path
) -> None:
    options = {
        "--workdir": tmp_path,
        "--data.name": "folder",
        "--data.source": source,
        "--data.data-dir": data_dir,
        "--data.eval-split": "val",
        "--data.image-size": size,
        "--data.eval-size": size,
        "--model.dtype": dtype,
        "--model.depths": "1 1 1 1",  # compiles in less time
        "--model.bn-group": 16,
        "--optim.learning-rate": 0.00625,
        "--train.batch-size": 16,
        "--train.eval-batch-size": 64,
        "--train.steps": 3,
        "--train.log-every-steps": 1,
        "--train.tensorboard": False,
    }
    words = [
        sys.executable,
        "train.py",
        "--config",
        "configs/imagenet/resnet50.py",
        *(word for pair in options.items() for text in pair for word in str(text).split()),
    ]
    count = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"on {devices} x cpu" in done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["examples"] == 250
    losses = [
        json.loads(line).get("train/loss")
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(5.0 < loss < 6.5 for loss in losses if loss is not None)  # log(250) is 5.5
    assert sum(loss is not None for loss in losses) == 3
