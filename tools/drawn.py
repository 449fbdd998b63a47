"""Random configs, drawn from the declarations of the settings.

A setting is drawn by its type, rule and choices, so that a new one takes part without a change
here. `HELD` and `NARROWED` name the exceptions with their reasons.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from flaxres.config.files import from_sections
from flaxres.config.schema import Config
from flaxres.config.settings import SETTINGS, flat
from flaxres.models.registry import MODELS, create_model

Values = dict[str, Any]

CHANGED = 0.3
"""Probability that a setting is drawn; otherwise it keeps its value in `tiny`."""
TRIES = 1000
NUMBERS: dict[Any, tuple[Any, ...]] = {
    int: (0, 1, 2, 3, 4, 5, 8, 16, 2**31 - 1),
    float: (0.0, 1e-3, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0, 1.5, 2.0, 5.0),
}

# Settings that are never drawn. Those that a resumed run may change are not drawn either, since
# they do not change the result.
HELD = {
    "model.dtype": "only float64 is exact enough to compare",
    "model.param_dtype": "only float64 is exact enough to compare",
    "model.depths": "see `shape`",
    "model.widths": "see `shape`",
    "model.weights": "see `with_files`",
    "data.name": "digits need no download",
    "optim.distill_weights": "see `with_files`",
}
# Values in place of those of the declaration: they keep networks, images and batches tiny, and are
# the only ones for text, which no rule describes. XLA's convolutions in float64 are slow: at 32
# pixels, or with the 512 channels of resnet9, a single config took minutes.
NARROWED: dict[str, Sequence[Any]] = {
    "model.bn_group": (None, 1, 2, 4, 8),
    "model.stem_width": (None, 8, 16),
    "model.head_bias": (-2.3, 0.5),
    "data.train_split": ("train[:90%]", "train[100:]"),
    "data.eval_split": ("test[:10%]", "train[:100]"),
    "data.image_size": (9, 12, 16),
    "data.eval_size": (7, 8, 12),
    "data.eval_resize": (8, 12),
    "data.eval_shift": (0, 1, 2),
    "data.progressive_sizes": (((0.0, 12),), ((0.04, 12),), ((0.0, 16), (0.04, 8))),
    "data.repeats": (1, 2, 4),
    "augment.auto": (
        *("ta_wide", "ta_wide", "rand-m7-mstd0.5-inc1", "rand-m9-n2-p0.9"),
        *("rand-m10-n1-mstd101-inc1", "rand-m5-n3"),
    ),
    "augment.shift": (1, 2, 3),
    "augment.cutout": (1, 2, 4),
    "optim.distill_model": ("resnet20", "resnet10t"),
    "train.batch_size": (8, 24, 32, 48),
    "train.accumulate": (2, 2, 4),
    "train.epochs": (0.01, 1.0, 5.0),
    "train.steps": (1, 2, 3, 100),
    "train.steps_per_dispatch": (None, 2, 3),
    "train.eval_batch_size": (16, 32),
    "train.loss_limit": (0.5, 2.4, 100.0),
}
# Most settings are drawn with small networks; any other has its depths and widths cut.
SMALL = (
    *("resnet20", "resnet9", "resnetv2_164", "resnet18", "resnet14t", "densenet121"),
    *("test_nfnet", "regnetz_005"),
)


def tiny(data_dir: str) -> Values:
    """Returns the settings by full name before any of them is drawn.

    Args:
      data_dir: the folder of prepared datasets.
    """
    chosen = {
        "model.dtype": "float64",
        "model.param_dtype": "float64",
        "data.name": "digits",
        "data.data_dir": data_dir,
        "data.image_size": 8,
        "data.eval_size": 8,
        "data.eval_resize": 8,
        "data.crop": "centre",
        "data.eval_split": "test[:64]",
        "train.batch_size": 16,
        "train.eval_batch_size": 64,
    }
    return flat(Config()) | chosen


def of_values(values: Mapping[str, Any]) -> Config:
    """Returns the config of settings by full name; others keep their defaults."""
    sections: dict[str, Values] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    return from_sections(sections)


def changes(config: Config, base: Config | None = None) -> Values:
    """Returns the settings by full name in which a config differs from the default one."""
    before = flat(base or Config())
    return {name: value for name, value in flat(config).items() if value != before[name]}


def drawn_names() -> list[str]:
    """Returns the full names of the settings that are drawn by `draw`."""
    return [
        name
        for name, setting in SETTINGS.items()
        if name in NARROWED or (name not in HELD and not setting.facts.resume)
    ]


def draw(rng: np.random.Generator, data_dir: str) -> Config:
    """Draws a config, which may still break a rule between settings.

    Args:
      rng: the generator.
      data_dir: the folder of prepared datasets, and of the files of weights that the config names.
    """
    values = tiny(data_dir)
    for name in drawn_names():
        if rng.random() < CHANGED:
            values[name] = value(rng, name)
    values |= shape(rng, values["model.name"], values["model.scan_blocks"])
    return of_values(values | with_files(rng, values, data_dir))


def with_files(rng: np.random.Generator, values: Values, data_dir: str) -> Values:
    """Returns the paths of the files of weights; some networks start from one."""
    teacher = values["optim.distill_model"]
    return {
        "model.weights": f"{data_dir}/start.safetensors" if rng.random() < 0.1 else None,
        "optim.distill_weights": teacher and f"{data_dir}/{teacher}.safetensors",
    }


def value(rng: np.random.Generator, name: str) -> Any:
    """Draws a value of a setting that its type, rule and choices allow."""
    if name in NARROWED:
        return pick(rng, NARROWED[name])
    if name == "model.name":
        return pick(rng, SMALL if rng.random() < 0.6 else sorted(MODELS))
    kind, facts = SETTINGS[name].kind, SETTINGS[name].facts
    if facts.choices is not None:
        return pick(rng, sorted(facts.choices))
    for _ in range(TRIES):
        drawn = of_kind(rng, kind)
        if facts.rule is None or facts.rule.holds(drawn):
            return drawn
    raise ValueError(f"no value of {name} follows its rule: add some to NARROWED in tools.drawn")


def of_kind(rng: np.random.Generator, kind: Any) -> Any:
    """Draws a value of a type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return None
    if kind is bool:
        return bool(rng.integers(2))
    if kind in NUMBERS:
        return pick(rng, NUMBERS[kind])
    if origin is Literal:
        return pick(rng, arguments)
    if origin in (typing.Union, types.UnionType):
        return of_kind(rng, pick(rng, arguments))
    if origin is tuple and arguments[1:] == (...,):
        return tuple(of_kind(rng, arguments[0]) for _ in range(rng.integers(3)))
    if origin is tuple:
        return tuple(of_kind(rng, argument) for argument in arguments)
    raise ValueError(f"no values of type {kind} are known: name some in NARROWED in tools.drawn")


def shape(rng: np.random.Generator, name: str, scanned: bool) -> Values:
    """Draws depths and widths for a model, so that it stays small.

    Args:
      rng: the generator.
      name: the model.
      scanned: lengthen a stage, since a scan needs three blocks.
    """
    network: Any = create_model(name)
    blocks = [1] * pick(rng, (1, 1, 2))
    if rng.random() < (0.8 if scanned else 0.2):
        blocks[rng.integers(len(blocks))] = 3 if scanned else 2
    if not hasattr(network, "widths"):
        return {"model.depths": tuple(blocks), "model.widths": None}
    # Bottlenecks of ResNetV2 are a quarter as wide, in whole groups where they have group norms.
    first = pick(rng, (16, 32)) * (8 if hasattr(network, "standardise") else 1)
    widths = first * 2 ** np.sort(rng.integers(2, size=len(blocks)))
    return {"model.depths": tuple(blocks), "model.widths": tuple(map(int, widths))}


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """Draws one of the choices."""
    return choices[rng.integers(len(choices))]
