"""Options and values in another spelling: tests of the options, tried in turn, for a suggestion."""

import re
from collections.abc import Callable, Iterable, Iterator

from flaxres.errors import InputError, nearest

# Options of torchvision's and timm's training scripts, where another name is meant here.
ELSEWHERE = {
    "lr": "--optim.learning-rate",
    "wd": "--optim.weight-decay",
    "opt": "--optim.name",
    "optimizer": "--optim.name",
    "sched": "--optim.schedule",
    "lr-scheduler": "--optim.schedule",
    "lr-warmup-epochs": "--optim.warmup-epochs",
    "decay-milestones": "--optim.milestones",
    "smoothing": "--optim.label-smoothing",
    "class-weight": "--optim.class-balance",
    "class-weights": "--optim.class-balance",
    "clip-grad": "--optim.clip-norm",
    "clip-grad-norm": "--optim.clip-norm",
    "model": "--model.name",
    "arch": "--model.name",
    "pretrained": "--model.weights",
    "initial-checkpoint": "--model.weights",
    "amp": "--model.dtype",
    "sync-bn": "--model.bn-group",
    "drop": "--model.dropout",
    "drop-path": "--model.stochastic-depth",
    "grad-checkpointing": "--model.remat",
    "dataset": "--data.name",
    "data-path": "--data.source",
    "img-size": "--data.image-size",
    "train-crop-size": "--data.image-size",
    "val-crop-size": "--data.eval-size",
    "val-resize-size": "--data.eval-resize",
    "ra-reps": "--data.repeats",
    "aa": "--augment.auto",
    "auto-augment": "--augment.auto",
    "reprob": "--augment.erase",
    "random-erase": "--augment.erase",
    "mixup-alpha": "--augment.mixup",
    "cutmix-alpha": "--augment.cutmix",
    "b": "--train.batch-size",
    "grad-accum-steps": "--train.accumulate",
    "model-ema": "--train.ema-decay",
    "model-ema-decay": "--train.ema-decay",
    "early-stopping": "--train.patience",
    "max-time": "--train.stop-after-minutes",
    "num-gpus": "--train.devices",
    "print-freq": "--train.log-every-steps",
    "resume": "--workdir",
    "output": "--workdir",
    "output-dir": "--workdir",
}
TRUTH = {
    **dict.fromkeys(("true", "yes", "on", "1"), "True"),
    **dict.fromkeys(("false", "no", "off", "0"), "False"),
    **dict.fromkeys(("none", "null"), "None"),
}


def unknown_option(name: str, options: Iterable[str]) -> InputError:
    """Returns the error for an option that does not exist, with at most three near ones.

    Args:
      name: the unknown option.
      options: the existing ones.

    Examples:
      >>> print(unknown_option("--lr", ["--optim.learning-rate", "--workdir"]))
      unknown option '--lr': did you mean --optim.learning-rate? --help lists all options
    """
    near = near_options(name, options)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(f"unknown option {name!r}: {hint}--help lists all options")


def near_options(name: str, options: Iterable[str]) -> list[str]:
    """Returns at most three options for an unknown name, the nearest first.

    These are the ones that the name stands for in other trainers; else those that the name is the
    last part of, or the first; else those that are spelt like it.

    Examples:
      >>> near_options("--ema", ["--train.ema-decay", "--train.ema-every", "--train.seed"])
      ['--train.ema-decay', '--train.ema-every']
    """
    options = list(options)
    word = name.lstrip("-").lower().replace("_", "-")
    last = word.rpartition(".")[2]
    if elsewhere := ELSEWHERE.get(word) or ELSEWHERE.get(last):
        return [elsewhere]
    short = {option: option.lstrip("-").rpartition(".")[2] for option in options}
    tests: tuple[Callable[[str], bool], ...] = (
        lambda option: short[option] == last,
        lambda option: short[option].endswith(f"-{last}"),
        lambda option: short[option].startswith(f"{last}-"),
    )
    for test in tests:
        if last and (fitting := [option for option in options if test(option)]):
            return fitting[:3]
    if near := nearest(f"--{word}", options):
        return near
    alike = set(nearest(last, short.values()))
    return [option for option in options if short[option] in alike][:3]


def respelt(text: str, parses: Callable[[str], bool]) -> str | None:
    """Returns a value in a spelling that parses, None where no spelling is known.

    Args:
      text: the value, its words joined by blanks.
      parses: returns whether a value parses.

    Examples:
      >>> respelt("0,1", lambda text: text == "0.1")
      '0.1'
    """
    return next((other for other in _spellings(text) if other != text and parses(other)), None)


def _spellings(text: str) -> Iterator[str]:
    """Yields other spellings of truth values, None, numbers and lists."""
    if word := TRUTH.get(text.lower()):
        yield word
    yield text.replace(",", ".")
    yield " ".join(re.sub(r"[()\[\],;]|(?<=\d)x(?=\d)", " ", text).split())
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return
    if number.is_integer() and abs(number) < 1e15:
        yield str(int(number))
