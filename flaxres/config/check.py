"""Checks of a config: each setting by its own declaration, then combinations of settings."""

import dataclasses
from typing import Any

import jax

from flaxres.config.kinds import described, fits, options
from flaxres.config.schema import Config, DataConfig, ModelConfig, OptimConfig
from flaxres.config.settings import SETTINGS, flat
from flaxres.errors import InputError, unknown


def check(config: Config) -> None:
    """Checks that `config` can be trained; computes nothing.

    Raises:
      InputError: names the setting, its value, the rule and the fix.

    Examples:
      >>> import flaxres
      >>> check(flaxres.Config(optim=flaxres.OptimConfig(momentum=1.0)))
      Traceback (most recent call last):
      flaxres.errors.InputError: optim.momentum=1.0: the rule is in [0, 1)
    """
    check_types(config)
    for name, value in flat(config).items():
        _check_rule(name, value)
    batch = config.train.batch_size
    _check_batch(config.model, config.data, batch, config.train.accumulate)
    _check_model(config.model)
    _check_data(config.data, config.train.steps_per_dispatch)
    _check_augment(config, batch)
    _check_optim(config.optim, config.data.multi_label)
    _check_multi_label(config)


def check_types(config: Config) -> None:
    """Checks that each section and each setting is of its declared type.

    Raises:
      InputError: names the setting, its value and the type.
    """
    for field in dataclasses.fields(config):
        given, section = getattr(config, field.name), field.default_factory
        if isinstance(section, type) and not isinstance(given, section):
            raise InputError(
                f"{field.name}={given!r}: the rule is a {section.__name__}, as in "
                f"Config({field.name}={section.__name__}(...))"
            )
    for name, value in flat(config).items():
        kind = SETTINGS[name].kind
        if fits(value, kind):
            continue
        if choices := options(kind):
            raise unknown(name, value, map(str, choices))
        given = type(value).__name__
        raise InputError(f"{name}={value!r} is of type {given}: the rule is {described(kind)}")


def _check_rule(name: str, value: Any) -> None:
    facts = SETTINGS[name].facts
    if facts.rule and not facts.rule.holds(value):
        raise InputError(f"{name}={value!r}: the rule is {facts.rule.text}")
    if value is None:
        return
    if facts.choices is not None and value not in facts.choices:
        raise unknown(name, value, facts.choices)
    if facts.parse is not None:
        facts.parse(value)


def _check_batch(model: ModelConfig, data: DataConfig, batch: int, accumulate: int) -> None:
    group = model.bn_group
    if group and batch % group:
        raise InputError(
            f"model.bn_group={group} must divide train.batch_size={batch}: "
            "choose a divisor, or None for the whole batch"
        )
    for name, value in (("data.repeats", data.repeats), ("train.accumulate", accumulate)):
        if batch % value:
            raise InputError(
                f"{name}={value} must divide train.batch_size={batch}: choose a divisor"
            )
    part = batch // accumulate
    if accumulate > 1 and (not group or part % group):
        raise InputError(
            f"train.accumulate={accumulate} needs a model.bn_group (={group}) that divides the "
            f"{part} images of a part, so that the statistics are those of the whole batch: "
            "set one"
        )


def _check_model(model: ModelConfig) -> None:
    if model.shortcut == "none" and model.stochastic_depth:
        raise InputError(
            "model.stochastic_depth with model.shortcut='none': a block without a shortcut "
            "can't be dropped; leave one of them out"
        )
    if model.weights and model.stem_init != "random":
        raise InputError(
            f"model.stem_init={model.stem_init!r} with model.weights: the weights have a stem "
            "already; leave one of them out"
        )


def _check_data(data: DataConfig, steps_per_dispatch: int | None) -> None:
    if data.resident and data.crop == "random_resized":
        raise InputError(
            "data.resident=True with data.crop='random_resized': the crop is made while "
            "decoding; set data.crop='centre'"
        )
    if (steps_per_dispatch or 1) > 1 and not data.resident:
        raise InputError(
            "train.steps_per_dispatch > 1 needs data on the device: set data.resident=True, "
            "or leave it out"
        )
    if data.eval_resize < data.eval_size:
        raise InputError(
            f"data.eval_resize={data.eval_resize} is less than "
            f"data.eval_size={data.eval_size}: the crop must fit inside"
        )
    if not 0 <= data.eval_shift < data.eval_size:
        raise InputError(
            f"data.eval_shift={data.eval_shift}: the rule is "
            f"0 <= eval_shift < data.eval_size (={data.eval_size})"
        )


def _check_augment(config: Config, batch: int) -> None:
    augment, repeats = config.augment, config.data.repeats
    if augment.flip_alternates and not augment.flip:
        raise InputError(
            "augment.flip_alternates=True with augment.flip=False: it says which images are "
            "mirrored; set augment.flip=True"
        )
    if augment.flip_alternates and repeats > 1:
        raise InputError(
            f"augment.flip_alternates=True with data.repeats={repeats}: an epoch sees only a "
            "part of the images; set data.repeats=1"
        )
    if augment.flip_alternates and config.data.balance:
        raise InputError(
            f"augment.flip_alternates=True with data.balance={config.data.balance:g}: an epoch "
            "sees some images more than once; leave one of them out"
        )
    if not (augment.mixup or augment.cutmix):
        return
    if repeats == batch > 1:
        raise InputError(
            f"data.repeats={batch} fills the batch with one image, which mixup would mix with "
            "itself: lower it"
        )
    if batch % 2:
        raise InputError(
            f"augment.mixup and augment.cutmix mix pairs: train.batch_size={batch} must be even"
        )


def _check_optim(optim: OptimConfig, multi_label: bool) -> None:
    if (optim.distill_model is None) != (optim.distill_weights is None):
        raise InputError("optim.distill_model and optim.distill_weights go together: give both")
    if optim.nesterov and optim.name in ("lamb", "adamw"):
        raise InputError(
            f"optim.nesterov=True with optim.name={optim.name!r}: only SGD, LARS and Muon have "
            "it; leave it out"
        )
    if optim.nesterov and not optim.momentum:
        raise InputError(
            "optim.nesterov=True with optim.momentum=0: Nesterov's step needs momentum, e.g. 0.9"
        )
    if optim.class_balance and optim.loss != "cross_entropy" and not multi_label:
        raise InputError(
            f"optim.class_balance={optim.class_balance:g} with optim.loss={optim.loss!r}: it "
            "weighs the cross entropy, or the labels of data.multi_label=True; leave one out"
        )
    if optim.schedule == "step" and not (optim.milestones or optim.milestone_steps):
        raise InputError(
            "optim.schedule='step' with optim.milestones=(): give the epochs of the steps, "
            "e.g. 30 60 80"
        )


def _check_multi_label(config: Config) -> None:
    data, optim, monitor = config.data, config.optim, config.train.monitor
    if not data.multi_label:
        if monitor == "mean_average_precision":
            raise InputError(
                f"train.monitor={monitor!r} needs data.multi_label=True: choose top1 or loss"
            )
        return
    if optim.loss == "cross_entropy":
        raise InputError(
            "data.multi_label=True with optim.loss='cross_entropy': the classes of an image do not "
            "exclude each other; set optim.loss='binary' or 'binary_sum'"
        )
    for name, value in (
        ("data.balance", data.balance),
        ("optim.label_smoothing", optim.label_smoothing),
        ("optim.distill_model", optim.distill_model),
    ):
        if value:
            raise InputError(
                f"{name}={value!r} with data.multi_label=True: it is defined for one label an "
                "image; leave it out"
            )


def check_devices(config: Config, available: int) -> int:
    """Checks that the devices divide the batches.

    Args:
      config: a config that passes `check`.
      available: the number of devices that JAX has.

    Returns:
      The number of devices that the run uses.

    Raises:
      InputError: the devices are not there or don't divide a batch; names the nearest sizes.
    """
    wanted, processes = config.train.devices, jax.process_count()
    count = wanted or available
    if wanted and processes > 1:
        raise InputError(
            f"train.devices={wanted} with {processes} processes: these use all devices; "
            "leave it out"
        )
    if count > available:
        raise InputError(f"train.devices={count}: there are {available}; leave it out to use all")
    for name in ("batch_size", "eval_batch_size"):
        if (batch := getattr(config.train, name)) % count:
            near = max(batch // count, 1) * count
            raise InputError(
                f"train.{name}={batch} is not divisible by the {count} devices: "
                f"try {near} or {near + count}, or set train.devices"
            )
    return count
