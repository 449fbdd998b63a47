"""Mistakes on the command line end in one line that names them and the fix, and exit code 2."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

import jax
import pytest
from jax.experimental import topologies

import flaxres
from flaxres.cli import main
from flaxres.cli._options import flag
from flaxres.cli._process import refusing
from flaxres.cli._spelling import ELSEWHERE
from flaxres.cli._train import train
from flaxres.config.settings import SETTINGS

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = str(ROOT / "configs" / "digits.py")


def refusal(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `train.py` prints when it refuses."""
    assert refusing(lambda: train(words)) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("flaxres: ")
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--optim.learning-rat 0.1",
            "unknown option '--optim.learning-rat': did you mean --optim.learning-rate?",
        ),
        ("--optim.learning-rate abc", "--optim.learning-rate='abc': the rule is a finite float"),
        (
            "--optim.learning-rate --augment.flip True",
            "--optim.learning-rate='': the rule is a finite float",
        ),
        (
            "--optim.schedule=cosin",
            "unknown value of --optim.schedule 'cosin': did you mean cosine?",
        ),
        (
            "--data.progressive-sizes 3",
            "--data.progressive-sizes='3': the rule is any number of: 2 values, a finite float, "
            "int",
        ),
        ("--augment.flip maybe", "--augment.flip='maybe': the rule is True or False"),
        ("--model.name resnet5O", "unknown model.name 'resnet5O': did you mean"),
        ("--model.bn-group 3", "model.bn_group=3 must divide train.batch_size=128"),
        (
            "--train.batch-size 100",
            "train.batch_size=100 is not divisible by the 8 devices: try 96 or 104",
        ),
        ("--config configs/digit.py", "unknown config file 'configs/digit.py'"),
        ("digits", "'digits' is no option"),
        (
            "--lr 0.1",
            "unknown option '--lr': did you mean --optim.learning-rate? --help lists all options",
        ),
        ("--train.batch 8", "did you mean --train.batch-size? --help"),
        ("--train.learning-rate 1", "did you mean --optim.learning-rate? --help"),
        (
            "--train.ema True",
            "did you mean --train.ema-decay or --train.ema-every or --train.ema-start-epochs?",
        ),
        ("--nothing-like-it 1", "unknown option '--nothing-like-it': --help lists all options"),
        ("--optim.name SGD", "unknown value of --optim.name 'SGD': did you mean sgd?"),
        ("--model.name ResNet20", "unknown model.name 'ResNet20': did you mean resnet20?"),
        ("--model.dtype Float32", "did you mean float32?"),
        ("--model.dtype none", "did you mean --model.dtype=None?"),
        ("--augment.flip true", "the rule is True or False; did you mean --augment.flip=True?"),
        (
            "--optim.learning-rate 0,1",
            "the rule is a finite float; did you mean --optim.learning-rate=0.1?",
        ),
        ("--train.batch-size 1e3", "did you mean --train.batch-size=1000?"),
        ("--augment.erase-area (0.1,0.3)", "did you mean --augment.erase-area 0.1 0.3?"),
        ("--data.name folder", "needs data.source"),
        ("--data.name folder --data.source /nothing", "'/nothing' is not a folder"),
        ("--data.name nosuch", "unknown dataset 'nosuch'"),
        ("--workdir /proc/flaxres", "workdir '/proc/flaxres' can't be written"),
    ],
)
def test_mistakes_are_one_line(
    words: str,
    message: str,
    data_dir: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
) -> None:
    where = [] if "--workdir" in words else ["--workdir", str(tmp_path / "run")]
    assert message in refusal(capfd, *words.split(), *where, "--data.data-dir", data_dir)
    assert not (tmp_path / "run").exists()


def test_folders_that_break_the_rules_are_one_line(
    data_dir: str,
    photographs: Callable[..., pathlib.Path],
    capfd: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
) -> None:
    root = photographs()
    (tmp_path / "empty").mkdir()
    words = [
        "--workdir",
        str(tmp_path / "run"),
        "--data.data-dir",
        data_dir,
        "--data.name",
        "folder",
        "--data.eval-split",
        "val",
    ]
    assert "holds no <split>/<class>/*.jpg" in refusal(
        capfd, *words, "--data.source", str(tmp_path / "empty")
    )
    for path in (root / "val" / "red").iterdir():
        path.unlink()
    assert "class 'red' has no images in split 'val'" in refusal(
        capfd, *words, "--data.source", str(root)
    )


def test_train_py_prints_its_versions() -> None:
    words = [sys.executable, str(ROOT / "train.py"), "--version"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"flaxres {flaxres.__version__} (jax {jax.__version__})\n"


def test_no_option_is_suggested_that_does_not_exist() -> None:
    names = {flag(name) for name in SETTINGS} | {"--workdir"}
    assert set(ELSEWHERE.values()) <= names
    assert not {f"--{word}" for word in ELSEWHERE} & names


def test_config_files_that_are_none_are_one_line(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for text, message in (
        ("x = 1", "binds no `config = flaxres.Config(...)`"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("(", "SyntaxError"),
        (
            "import flaxres\nconfig = flaxres.OptimConfig(lerning_rate=1)",
            "OptimConfig has no setting 'lerning_rate': did you mean learning_rate?",
        ),
        ("import flaxres\nconfig = flaxres.Config(modle=1)", "did you mean model?"),
    ):
        (tmp_path / "config.py").write_text(text)
        assert message in refusal(capfd, "--config", str(tmp_path / "config.py"))


def test_a_config_of_another_kind_and_an_early_interrupt(
    capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    assert "is neither a .py nor a .json file" in refusal(
        capfd, "--config", str(ROOT / "README.md")
    )
    program = """
import signal
import flaxres
from flaxres.cli._options import flag
from flaxres.cli._process import refusing
from flaxres.cli._spelling import ELSEWHERE
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have background jobs ignore
refusing(lambda: signal.raise_signal(signal.SIGINT))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.startswith("flaxres: interrupted before training began")


def test_help_shows_every_option_with_the_configs_defaults(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(["--help"], "train.py")
    assert stopped.value.code == 0
    text = capfd.readouterr().out
    for words in (
        "--config FILE",
        "--workdir DIR",
        "--optim.learning-rate FLOAT",
        "(default: resnet20)",
        "Peak learning rate",
    ):
        assert words in text


def test_the_flaxres_command(
    data_dir: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> str:
        assert main(words) == 0, capfd.readouterr().err
        return capfd.readouterr().out

    # Parameters and GMACs as in torchvision's table of weights, and in table 6 of the paper.
    assert json.loads(run("models", "resnet5?", "--json")) == {
        "resnet50": {"parameters": 25_557_032, "gmacs": 4.089, "pixels": 224},
        "resnet56": {"parameters": 853_018, "gmacs": 0.125, "pixels": 32},
    }
    run("data", "prepare", "digits", "--data-dir", data_dir)
    assert (
        json.loads(run("data", "info", "digits", "--data-dir", data_dir, "--json"))["splits"][
            "train"
        ]["examples"]
        == 1297
    )
    workdir = str(tmp_path / "run")
    run(
        "train",
        "--config",
        DIGITS,
        "--workdir",
        workdir,
        "--data.data-dir",
        data_dir,
        "--train.steps",
        "3",
        "--train.tensorboard",
        "False",
        *("--train.devices", "1", "--model.depths", *"111"),
    )
    report = json.loads(run("evaluate", "--workdir", workdir))
    assert report == {
        key: json.loads((tmp_path / "run" / "summary.json").read_text())[key] for key in report
    }
    assert (
        json.loads(run("evaluate", "--workdir", workdir, "--data.eval-split", "train"))["examples"]
        == 1297
    )
    run("train", "--workdir", workdir)  # goes on with the config that is there
    assert "flaxres COMMAND" in run("--help")
    versions = f"flaxres {flaxres.__version__} (jax {jax.__version__})"
    assert run("--version").strip() == run("train", "--version").strip() == versions
    assert "imagenet/resnet50\n" in run("configs", "imagenet/*")
    assert "python train.py --config configs/cifar10/resnet20.py" in run(
        "configs", "cifar10/resnet20"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("configs cifar10/resnet2O", "unknown recipe 'cifar10/resnet2O': did you mean"),
        ("trian", "unknown command 'trian': did you mean train?"),
        ("data prepar digits", "invalid choice: 'prepar'"),
        ("data info digit", "unknown dataset 'digit': did you mean digits?"),
        ("models resnet5O", "unknown model 'resnet5O'"),
        ("evaluate", "no config: give --workdir of a run, or --config NAME"),
        ("bench schedule", "no config: give --workdir of a run, or --config NAME"),
        ("evaluate --wrkdir runs/a", "unknown option '--wrkdir': did you mean --workdir?"),
        ("evaluate --ful", "unknown option '--ful': did you mean --full?"),
        ("plan --topolgy h200:8", "unknown option '--topolgy': did you mean --topology?"),
        ("sweep --sedes 3", "unknown option '--sedes': did you mean --seeds?"),
        ("bench rates --stps 3", "unknown option '--stps': did you mean --steps?"),
        ("train --coordinater a:1", "did you mean --coordinator?"),
        ("train --config nowhere/x.py", "config file 'nowhere/x.py' does not exist: give the path"),
        ("data info folder --sourc a", "unknown option '--sourc': did you mean --source?"),
        ("predict a.jpg --tp 3", "unknown option '--tp': did you mean --top?"),
        ("push runs/none a/b", "folder 'runs/none' does not exist: give the workdir of a run"),
        ("models --jsn", "unknown option '--jsn': did you mean --json?"),
        ("evaluate --workdir /nothing", "'/nothing/config.json' does not exist"),
    ],
)
def test_mistakes_of_the_flaxres_command_are_one_line(
    words: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    out, err = capfd.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", "--coordinator HOST:PORT|--processes N|--process I"),
        ("evaluate", "--weights FILE|--full|--out DIR|--images DIR|--real FILE|--json"),
        ("plan", "--topology NAME|--price DOLLARS|--decode IMAGES|--json"),
        ("sweep", "--seeds N|--json"),
        ("bench lr", "--from RATE|--to RATE|--steps N|--out FILE.png"),
        ("bench rates", "--steps N"),
        ("bench schedule", "--out FILE.png"),
        ("bench dtypes", "--json"),
    ],
)
def test_help_lists_every_option_in_a_row_of_its_own(
    command: str, options: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    out = capfd.readouterr().out
    rows = {" ".join(line.strip("│ ").split()) for line in out.splitlines()}
    assert set(options.split("|")) <= rows
    assert ">>>" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "schedul"], "did you mean schedule"),
        (["plan", "--config", "configs/digits.py"], "needs --topology"),
        (["plan", "--topology", "v5f:2x4", "--config", "configs/digits.py"], "v5e:2x4"),
        (["plan", "--topology", "v5e:8", "--config", "configs/digits.py"], "16x16"),
        (["plan", "--topology", "8xH300", "--config", "configs/digits.py"], "h200:8"),
        (["plan", "--topology", "8xH100", "--price", "free"], "--price='free': the rule is"),
        (["train", "--config", "configs/digits.py", "--coordinator", "host:1"], "go together"),
        (
            [
                "train",
                "--config",
                "configs/digits.py",
                "--coordinator",
                "h:1",
                "--processes",
                "two",
                "--process",
                "0",
            ],
            "--processes='two'",
        ),
    ],
)
def test_bench_and_hosts_refuse_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("version", "message"),
    [("0.0.42.1", "pip install 'libtpu>=0.0.52'"), ("0.0.52", "no compiler for 'v6e:2x2'")],
)
def test_a_compiler_that_crashes_is_refused(
    version: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(**_: str) -> None:
        raise RuntimeError("libtpu is not here")

    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"libtpu": version}[name])
    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    assert (
        main(
            [
                "plan",
                "--topology",
                "v6e:2x2",
                "--config",
                "configs/digits.py",
                "--train.batch-size",
                "64",
            ]
        )
        == 2
    )
    assert message in capsys.readouterr().err
