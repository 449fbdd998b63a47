"""`push_to_hub` and `flaxres push`, to a stand-in for the hub."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from huggingface_hub import constants

import flaxres
from flaxres import Config, DataConfig, ModelConfig, TrainConfig
from flaxres.cli import main
from flaxres.data import digests
from flaxres.data.preprocess import Preprocess
from flaxres.inference import runs
from flaxres.inference.about import about_run
from tests.weights.hub_server import COMMIT, TOKEN, Hub, serving

# httpx2, which huggingface_hub 2.4 uploads with, deprecates how it is called.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CLASSES = ("cat", "dog")
LOAD = """
import json, flaxres
model, variables, p = flaxres.load_pretrained("ann/tiny")
kernel = float(variables["params"]["fc"]["kernel"].sum())
print(json.dumps([p.sha256, p.classes, p.revision, kernel]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving({}) as hub:
        yield hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any]:
    """Returns a folder of `save_pretrained`, with its variables."""
    model = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4, num_classes=2)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))
    folder = tmp_path_factory.mktemp("hub") / "folder"
    preprocess = Preprocess(8, 8)
    flaxres.save_pretrained(folder, model, variables, preprocess, CLASSES)
    (folder / "notes.txt").write_text("private")
    return folder, variables


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns the workdir of a run of three steps."""
    folder = tmp_path_factory.mktemp("run")
    config = Config(
        ModelConfig(name="resnet9", depths=(1,), widths=(8,), stem_width=4),
        DataConfig(name="digits", image_size=8, eval_size=8, eval_resize=8),
        train=TrainConfig(steps=3, batch_size=16, eval_batch_size=256, devices=1, seed=4),
    )
    flaxres.fit(config, str(folder / "run"))
    return folder / "run"


class Pusher:
    """Runs `flaxres push` in this process, whose hub is the stand-in."""

    def __init__(
        self,
        hub: Hub,
        patch: pytest.MonkeyPatch,
        output: pytest.CaptureFixture[str],
        home: pathlib.Path,
    ) -> None:
        self.hub, self.patch, self.output, self.home = hub, patch, output, home
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        # The stand-in has no storage for Xet: large files go as in git LFS.
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setenv("HF_TOKEN", TOKEN)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Returns the exit code and what was printed."""
        self.output.readouterr()
        code = main(["push", *words])
        printed = self.output.readouterr()
        return code, printed.out, printed.err


@pytest.fixture
def push(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
) -> Pusher:
    return Pusher(hub, monkeypatch, capsys, tmp_path)


def test_a_pushed_folder_is_loaded_by_its_name(
    push: Pusher, saved: tuple[pathlib.Path, Any]
) -> None:
    (folder, variables), hub = saved, push.hub
    code, out, err = push(str(folder), "ann/tiny", "--private", "--message", "first")
    assert (code, out) == (0, f"pushed: {hub.endpoint}/ann/tiny/commit/{COMMIT}\n"), err
    assert (hub.private, hub.messages, hub.revisions) == ({"ann/tiny"}, ["first"], ["main"])
    names = ("README.md", "config.json", "model.safetensors")
    assert hub.files["ann/tiny"] == {name: (folder / name).read_bytes() for name in names}
    # In a process of its own: the hub's library reads its address when it is imported.
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(push.home)}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=300
    )
    digest, *facts = json.loads(loaded.stdout)
    assert digest == digests.file_digest(folder / "model.safetensors"), loaded.stderr
    assert facts == [list(CLASSES), COMMIT, float(variables["params"]["fc"]["kernel"].sum())]
    # The token is in no file that flaxres or the hub's library writes.
    files = [path for path in push.home.rglob("*") if path.is_file()]
    assert files
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("source", "words", "token", "message"),
    [
        ("folder", ("others/tiny",), TOKEN, "the hub refuses 'others/tiny' (403: You don't have"),
        ("folder", ("ann/tiny",), "wrong", "(401: Invalid username or password.)"),
        ("folder", ("ann/tiny",), "", "needs a token of the hub: run hf auth login"),
        ("folder", ("tiny",), TOKEN, "repository 'tiny': the rule is owner/name"),
        ("folder", ("ann/a..b",), TOKEN, "repository 'ann/a..b' is no name on the hub"),
        ("none", ("ann/tiny",), TOKEN, "none' does not exist: give the workdir of a run"),
        ("folder", ("ann/tiny", "--license", "mit"), TOKEN, "--license and --dry-run are for the"),
    ],
)
def test_what_can_not_be_pushed_is_refused_in_one_line(
    push: Pusher,
    saved: tuple[pathlib.Path, Any],
    source: str,
    words: tuple[str, ...],
    token: str,
    message: str,
) -> None:
    push.patch.setenv("HF_TOKEN", token)
    code, _, err = push(str(saved[0] if source == "folder" else push.home / source), *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not any(push.hub.files.values())


def test_a_hub_that_is_not_there_is_refused_in_one_line(
    push: Pusher, saved: tuple[pathlib.Path, Any]
) -> None:
    push.patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = push(str(saved[0]), "ann/tiny")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "the hub can't be reached" in err


def test_an_upload_that_fails_is_refused_in_one_line(
    push: Pusher, saved: tuple[pathlib.Path, Any]
) -> None:
    push.hub.full = True
    code, _, err = push(str(saved[0]), "ann/tiny")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "the upload to 'ann/tiny' failed" in err
    assert not any(push.hub.files.values())


def test_the_card_of_a_run_has_its_figures(push: Pusher, workdir: pathlib.Path) -> None:
    summary = json.loads((workdir / "summary.json").read_text())
    code, _, err = push(str(workdir), "ann/run", "--license", "cc-by-4.0")
    assert code == 0, err
    card = push.hub.files["ann/run"]["README.md"].decode()
    assert "license: cc-by-4.0\n" in card
    assert about_run(workdir) in card
    assert f"| top-1 | {100 * summary['top1']:.2f}% of 500 examples |" in card
    assert "| training | 3 steps of 16 images, seed 4, " in card
    provenance = workdir / "checkpoints" / "3" / "provenance" / "metadata"
    origin = json.loads(provenance.read_text())
    assert f"| trained on | `digits`, SHA-256 `{origin['data']}` |" in card
    settings = json.loads(card.partition("```json\n")[2].partition("\n```")[0])
    assert (settings["train.seed"], settings["model.depths"]) == (4, [1])
    assert not {"data.source", "data.data_dir", "optim.name"} & settings.keys()
    assert str(workdir.parent) not in card


def test_a_dry_run_writes_the_folder_alone(push: Pusher, workdir: pathlib.Path) -> None:
    out = push.home / "out"
    code, printed, _ = push(str(workdir), "ann/run", "--dry-run", str(out))
    assert (code, printed) == (0, f"wrote {out}; nothing was uploaded\n")
    assert (out / "model.safetensors").exists()
    assert not push.hub.files


def test_a_missing_token_is_told_before_a_run_is_read(push: Pusher, workdir: pathlib.Path) -> None:
    push.patch.setenv("HF_TOKEN", "")
    push.patch.setattr(runs, "load_run", lambda _: pytest.fail("the run was read"))
    code, _, err = push(str(workdir), "ann/run")
    assert code == 2
    assert "needs a token of the hub" in err


def test_the_summary_must_be_that_of_the_checkpoint(workdir: pathlib.Path) -> None:
    path = workdir / "summary.json"
    content = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(content) | {"step": 2}))
        with pytest.raises(flaxres.InputError, match="it is of step 2.*train the run to its end"):
            about_run(workdir)
    finally:
        path.write_text(content)
