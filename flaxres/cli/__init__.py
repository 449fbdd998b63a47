"""The command line: `train.py` and the `flaxres` command."""

import importlib
import sys
from collections.abc import Sequence

from flaxres.cli._process import EXIT_REFUSED, refusing
from flaxres.cli._words import version_line
from flaxres.errors import unknown

# The commands, and the modules of their functions, which have the same names.
COMMANDS = {
    "train": "_train",
    "evaluate": "_evaluate",
    "bench": "_bench",
    "checkpoints": "_train",
    "configs": "_lists",
    "convert": "_predict",
    "data": "_data",
    "explain": "_explain",
    "export": "_predict",
    "lab": "_lab",
    "models": "_lists",
    "plan": "_plan",
    "predict": "_predict",
    "push": "_push",
    "report": "_report",
    "serve": "_serve",
    "sweep": "_sweep",
}

USAGE = """usage: flaxres COMMAND ...

  train        train a recipe, or resume a run            flaxres train --config cifar10/quick
  evaluate     measure a run's newest checkpoint          flaxres evaluate --workdir DIR
  configs      list the recipes                           flaxres configs 'cifar10/*'
  checkpoints  list and verify a run's checkpoints        flaxres checkpoints DIR
  bench        measure a config before it is trained      flaxres bench schedule --config FILE
  convert      weights to torchvision/timm safetensors    flaxres convert IN OUT --model resnet50
  data         prepare datasets and look at them          flaxres data prepare folder --source DIR
  explain      draw what a prediction depends on          flaxres explain PHOTO --tag TAG
  export       a program that needs only jax              flaxres export --workdir DIR --out DIR
  lab          experiments on skip connections            flaxres lab all --out DIR
  models       list the models, or the layers of one      flaxres models 'resnet*'
  plan         time and memory on other devices           flaxres plan --topology 8xH100 ...
  predict      classify images                            flaxres predict IMAGE... --workdir DIR
  push         weights to the Hugging Face hub            flaxres push DIR OWNER/NAME
  report       an HTML page about runs                    flaxres report RUN...
  serve        classify images by HTTP                    flaxres serve DIR
  sweep        train several seeds; mean and deviation    flaxres sweep --config FILE --seeds 5

flaxres COMMAND --help shows the options of a command; flaxres --version the versions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `flaxres` command.

    Args:
      arguments: the words after the program's name; None takes those of the process.

    Returns:
      The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> None:
        if not words or words[0] in ("-h", "--help"):
            print(USAGE)
        elif words[0] == "--version":
            print(version_line())
        elif words[0] in COMMANDS:
            module = importlib.import_module(f"flaxres.cli.{COMMANDS[words[0]]}")
            getattr(module, words[0])(words[1:])
        else:
            raise unknown("command", words[0], COMMANDS)

    code = refusing(run)
    return code if words else EXIT_REFUSED
