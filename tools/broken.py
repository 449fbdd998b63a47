"""Configs that break one rule each, given to the command line as options or in a config file."""

import argparse
import contextlib
import dataclasses
import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxres.cli import main
from flaxres.cli._options import flag
from flaxres.config.kinds import fits, options
from flaxres.config.settings import SETTINGS
from flaxres.data.datasets import open_or_prepare
from tools.drawn import TRIES, Values, of_kind, pick

PROCESSES = 10
"""Configs of a run that are given to a process of their own, too."""
WRONG = (
    *(-1, -0.5, 1.5, 2.5, 7, 2**31, 10**30, float("nan"), float("inf"), True, None),
    *("abc", "", "0,1", "1e", (), (1,), (0.5, 0.1), (-1, -1), (0.9, 0.9, 0.9, 0.9), ("a", "b")),
    *((3, 2), (0, 0), ((-1.0, 8),), ((0.0, 0),)),
)
POLICIES = (
    "ta",
    "ta-wide",
    "rand-",
    "rand-x3",
    "rand-m11",
    "rand-m5-m6",
    "rand-n0",
    "TA_WIDE",
)
# Settings that break a rule together, or with the data and the devices. Each row is one mistake.
CONTRADICTIONS: tuple[Values, ...] = (
    {"model.bn_group": 3},
    {"data.repeats": 3},
    {"train.accumulate": 3},
    {"train.accumulate": 2},
    {"train.accumulate": 2, "model.bn_group": 16},
    {"model.shortcut": "none", "model.stochastic_depth": 0.1},
    {"model.weights": "w.safetensors", "model.stem_init": "whitening"},
    {"model.weights": "/nothing/w.safetensors"},
    {"model.stem": "small", "model.name": "densenet121"},
    {"model.depths": (1, 1)},
    {"model.widths": (8, 8, 8, 8)},
    {"model.dtype": "float64"},
    {"model.param_dtype": "float64"},
    {"data.resident": True, "data.crop": "random_resized"},
    {"data.resident": False, "train.steps_per_dispatch": 2},
    {"data.eval_resize": 7},
    {"data.eval_shift": 8},
    {"data.eval_shift": -1},
    {"data.name": "digit"},
    {"data.name": "folder"},
    {"data.name": "folder", "data.source": "/nothing"},
    {"data.name": "manifest"},
    {"data.name": "idx", "data.source": "/nothing"},
    {"data.train_split": "trian"},
    {"data.eval_split": "test[:0]"},
    {"data.eval_split": "test[5%"},
    {"augment.flip": False, "augment.flip_alternates": True},
    {"augment.flip": True, "augment.flip_alternates": True, "data.repeats": 2},
    {"augment.flip": True, "augment.flip_alternates": True, "data.balance": 0.5},
    {"augment.mixup": 0.2, "data.repeats": 16},
    {"augment.cutmix": 1.0, "train.batch_size": 15, "train.devices": 1},
    {"optim.distill_model": "resnet20"},
    {"optim.distill_weights": "w.safetensors"},
    {"optim.distill_model": "resnet20", "optim.distill_weights": "/nothing/w.safetensors"},
    {"optim.nesterov": True, "optim.name": "lamb"},
    {"optim.nesterov": True, "optim.name": "adamw"},
    {"optim.nesterov": True, "optim.momentum": 0.0},
    {"optim.schedule": "step"},
    {"train.batch_size": 20},
    {"train.eval_batch_size": 100},
    {"train.devices": 10_000},
    {"train.steps": 2**31 - 1},
)
BASE: Values = {
    "model.name": "resnet20",
    "data.image_size": 8,
    "data.eval_size": 8,
    "data.eval_resize": 8,
    "data.crop": "centre",
    "train.batch_size": 16,
    "train.eval_batch_size": 16,
    "train.devices": 8,
    "train.steps": 1,
    "train.tensorboard": False,
}


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A command line that must be refused.

    Attributes:
      what: the mistake in words.
      words: the options, without `--config` and `--workdir`.
      source: the text of the config file.
      named: a word that the message must have.
    """

    what: str
    words: tuple[str, ...]
    source: str
    named: str = ""


def config_file(values: Values) -> str:
    """Returns the text of a config file that sets `values` and leaves the rest at its default."""
    sections: dict[str, list[str]] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, []).append(f"{field}={value!r}")
    built = (
        f"{section}={section.capitalize()}Config({', '.join(fields)})"
        for section, fields in sections.items()
    )
    first = "from flaxres import *\nnan, inf = float('nan'), float('inf')\n"
    return f"{first}config = Config({', '.join(built)})\n"


def option(name: str, value: Any) -> tuple[str, ...]:
    """Returns the words that give a setting a value, as `--name=value` where it is one word."""
    if isinstance(value, tuple):
        flat = np.ravel(np.asarray(value, object)).tolist()
        return (flag(name), *map(str, flat))
    return (f"{flag(name)}={value}",)


def mistake(what: str, values: Values, by_option: bool, named: str = "") -> Mistake:
    """Returns a mistake that consists of values, given as options or in the config file."""
    if by_option:
        words = [word for name, value in values.items() for word in option(name, value)]
        return Mistake(what, tuple(words), config_file(BASE), named)
    return Mistake(what, (), config_file(BASE | values), named)


def out_of_range(rng: np.random.Generator, by_option: bool) -> Mistake:
    """Draws a value of the right type that breaks the rule of its setting."""
    ruled = [name for name, setting in SETTINGS.items() if setting.facts.rule is not None]
    for _ in range(TRIES):
        name = pick(rng, ruled)
        kind, rule = SETTINGS[name].kind, SETTINGS[name].facts.rule
        value = pick(rng, WRONG) if rng.random() < 0.8 else of_kind(rng, kind)
        if fits(value, kind) and not (by_option and value == ()) and not rule.holds(value):
            return mistake(f"{name}={value!r}", {name: value}, by_option, field(name))
    raise AssertionError("no value breaks a rule")


def of_another_type(rng: np.random.Generator, by_option: bool) -> Mistake:
    """Draws a value of another type than its setting's."""
    while True:
        name, value = pick(rng, list(SETTINGS)), pick(rng, WRONG)
        kind = SETTINGS[name].kind
        # On the command line any text is text, a single number is a list of one, and the type of
        # True is not told from that of its word.
        texts = kind in (str, str | None) or value in ("", ()) or isinstance(value, bool)
        texts = texts or (not isinstance(value, str) and "tuple" in f"{kind} {type(value)}")
        if not fits(value, kind) and not (by_option and texts):
            return mistake(f"{name}={value!r}", {name: value}, by_option, field(name))


def misspelt_choice(rng: np.random.Generator, by_option: bool) -> Mistake:
    """Misspells one of the names that a setting allows."""
    listed = {
        name: [str(choice) for choice in options(setting.kind) or setting.facts.choices]
        for name, setting in SETTINGS.items()
        if options(setting.kind) or setting.facts.choices is not None
    }
    name = pick(rng, list(listed))
    choices = [choice for choice in listed[name] if choice != "None"]
    value = misspelt(rng, pick(rng, choices), choices)
    return mistake(f"{name}={value!r}", {name: value}, by_option, field(name))


def misspelt_name(rng: np.random.Generator, by_option: bool) -> Mistake:
    """Misspells the name of a setting."""
    name = pick(rng, list(SETTINGS))
    wrong = misspelt(rng, name, list(SETTINGS))
    if by_option:
        return Mistake(wrong, (f"{flag(wrong)}=1",), config_file(BASE), "option")
    section, _, word = name.partition(".")
    word = misspelt(rng, word, [field(each) for each in SETTINGS])
    return mistake(f"{section}.{word}", {f"{section}.{word}": 1}, False, word)


def misspelt(rng: np.random.Generator, word: str, taken: Sequence[str]) -> str:
    """Drops, doubles or swaps letters of a word, or changes their case."""
    while True:
        at = int(rng.integers(1, max(len(word), 2)))
        wrong = pick(
            rng,
            (
                word[:at] + word[at + 1 :],
                word[:at] + word[at - 1 :],
                word[: at - 1] + word[at : at + 1] + word[at - 1] + word[at + 1 :],
                word.upper(),
                word.replace("_", ""),
            ),
        )
        if wrong and wrong not in taken:
            return wrong


def contradiction(rng: np.random.Generator, by_option: bool) -> Mistake:
    """Draws settings that contradict each other or the data."""
    values = pick(rng, CONTRADICTIONS)
    return mistake(str(values), values, by_option)


def policy(rng: np.random.Generator, by_option: bool) -> Mistake:
    """Draws a policy of augmentation that does not parse."""
    text = pick(rng, POLICIES)
    return mistake(f"augment.auto={text!r}", {"augment.auto": text}, by_option, "augment.auto")


def words(rng: np.random.Generator, by_option: bool) -> Mistake:
    """Draws options that are none, or that lack their value, or a config file that is none."""
    if not by_option:
        sources = ("", "config = 1", "config = {", "raise KeyError('a\\nb')", "import nothing_here")
        source = pick(rng, sources)
        return Mistake(source, (), source, "config file")
    name = flag(pick(rng, list(SETTINGS)))
    given = pick(rng, ((name,), ("digits",), ("--",), ("-x",), (name, "1", "2", "3", "4", "5")))
    if given[0] == name and "tuple" in str(SETTINGS[given_name(name)].kind):
        given = ("--config",)  # a list may have no values, or five
    return Mistake(" ".join(given), given, config_file(BASE))


def given_name(option: str) -> str:
    """Returns the full name of the setting of an option."""
    return next(name for name in SETTINGS if flag(name) == option)


def field(name: str) -> str:
    """Returns the last part of the full name of a setting."""
    return name.partition(".")[2]


MISTAKES: tuple[Callable[[np.random.Generator, bool], Mistake], ...] = (
    out_of_range,
    of_another_type,
    misspelt_choice,
    misspelt_name,
    contradiction,
    policy,
    words,
)


def draw(seed: int, number: int) -> Mistake:
    """Draws mistake number `number` of a seed; all types take turns, as options and in files."""
    rng = np.random.default_rng([seed, number])
    return MISTAKES[number // 2 % len(MISTAKES)](rng, number % 2 == 0)


def command_line(given: Mistake, folder: pathlib.Path) -> list[str]:
    """Writes the config file of a mistake; returns the words of `flaxres`."""
    file = folder / "config.py"
    file.write_text(given.source, encoding="utf-8")
    kept = ["--config", str(file), "--workdir", str(folder / "run")]
    kept += ["--data.data-dir", str(folder / "data")]
    return ["train", *kept, *given.words]


def in_process(arguments: Sequence[str]) -> tuple[Any, str, str]:
    """Runs `flaxres` in this process; returns its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    code: Any
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
        except Exception:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), err.getvalue()


def in_subprocess(arguments: Sequence[str]) -> tuple[Any, str, str]:
    """Runs `flaxres` in a process of its own; returns its exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "flaxres.cli", *arguments], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def problem(given: Mistake, result: tuple[Any, str, str]) -> str:
    """Returns what is wrong with a refusal, '' if it is one line with exit code 2."""
    code, out, err = result
    if code != 2:
        return f"exit code {code}: {(err or out)[-1500:]}"
    if out or err.count("\n") != 1 or not err.startswith("flaxres: "):
        return f"not one line: {out}{err}"
    if given.named not in err and given.named.replace("_", "-") not in err:
        return f"the message does not name {given.named}: {err}"
    return ""


def refused(
    given: Mistake,
    folder: pathlib.Path,
    run: Callable[[Sequence[str]], tuple[Any, str, str]] = in_process,
) -> tuple[str, str]:
    """Gives a mistake to the command line.

    Args:
      given: the mistake.
      folder: holds the config file, the workdir and, in `data`, the prepared digits.
      run: calls `flaxres` with words.

    Returns:
      The problem, '' where there is none, and the message.
    """
    result = run(command_line(given, folder))
    shutil.rmtree(folder / "run", ignore_errors=True)
    return problem(given, result), result[2].strip()


def invalid(chosen: argparse.Namespace) -> dict[str, Any]:
    """Gives many mistakes to the command line; returns how many were refused as they should be."""
    failures, in_own, longest = 0, 0, ""
    with tempfile.TemporaryDirectory() as text:
        folder = pathlib.Path(text)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            open_or_prepare("digits", ["test"], data_dir=str(folder / "data"))
        for number in range(chosen.first, chosen.first + chosen.count):
            given = draw(chosen.seed, number)
            runs = [in_process]
            if number % max(chosen.count // PROCESSES, 1) == 0:
                runs.append(in_subprocess)
                in_own += 1
            for run in runs:
                fault, message = refused(given, folder, run)
                longest = max(longest, message, key=len)
                if chosen.verbose:
                    print(f"{number}: {given.what}: {message}")
                if fault:
                    failures += 1
                    where = f"mistake {number} of seed {chosen.seed}, {given.what}"
                    print(f"{where}: {fault}", flush=True)
    return {
        "mistakes": chosen.count,
        "failures": failures,
        "in_own_process": in_own,
        "longest_message": len(longest),
    }
