"""`flaxres plan`: a run on accelerators that are not attached."""

import os
import typing
from collections.abc import Sequence
from typing import Any

from flaxres.cli._options import parse_run
from flaxres.cli._process import silence
from flaxres.cli._words import JSON, Option, show, value_of
from flaxres.errors import InputError

if typing.TYPE_CHECKING:
    from flaxres.diagnostics.topology import Device

DESCRIPTION = (
    "Compile a config's step for accelerators that are not attached: whether it fits, its traffic, "
    "and how long the run takes."
)
OPTIONS = (
    Option("--topology", "NAME", "The accelerators: v5e:16x16, h200:8 or 8xH100 (required)."),
    Option("--price", "DOLLARS", "Of a device and hour: show what the run costs."),
    Option("--decode", "IMAGES", "A second and core, by bench rates: show the cores needed."),
    JSON,
)


def plan(arguments: Sequence[str]) -> None:
    """Shows what is known of a run before it starts."""
    import jax

    from flaxres.diagnostics.topology import DEVICES, DTYPE, ENVIRONMENT, named, platform_of

    topology, rest = value_of(arguments, "--topology")
    price, rest = _number("--price", rest)
    decode, rest = _number("--decode", rest)
    as_json = "--json" in rest
    rest = [word for word in rest if word != "--json"]
    config, _ = parse_run(rest, None, "flaxres plan", DESCRIPTION, OPTIONS)
    if topology is None:
        raise InputError(
            "flaxres plan needs --topology, e.g. v5e:2x4, v5p:4x4x4, v6e:8x8, h200:8 or 8xH100"
        )
    place = named(topology)
    for variable, text in ENVIRONMENT[platform_of(place)].items():
        before = os.environ.get(variable, "") if variable == "XLA_FLAGS" else ""
        os.environ[variable] = f"{before} {text}".strip()
    jax.config.update("jax_platforms", "cpu")
    silence()
    from flaxres.diagnostics import plan as plans

    (figures, collectives, kernels), rates = plans.plan(config, place, price, decode)
    kind = place.partition(":")[0]
    device, dtype = DEVICES[kind], config.model.dtype or DTYPE
    facts: dict[str, Any] = figures | rates | {"collectives_by_kind": collectives}
    show(
        as_json,
        facts,
        [
            f"{place}: {device.gigabytes} GB, {device.bandwidth / 1e12:.2f} TB/s and "
            f"{device.peak_of(dtype) / 1e12:.0f} TFLOP/s ({dtype}) each"
            + (f"; each is a core, of {device.cores} a chip" if device.cores > 1 else ""),
            *(f"{name}: {value:,.2f}" for name, value in figures.items()),
            f"collectives by kind: {_counts(collectives)}",
            *(f"{size:10.1f} MB/image in {count:4d} x {name}" for name, size, count in kernels),
            "it fits"
            if figures["fits"]
            else "it does not fit: lower train.batch_size, or set train.accumulate or model.remat",
            *_slow(dtype, device),
            *_sentences(rates, plans.MEASURED_SHARE),
        ],
    )


def _number(option: str, words: Sequence[str]) -> tuple[float | None, list[str]]:
    """Takes an option with a positive number out of the words."""
    text, rest = value_of(words, option)
    if text is None:
        return None, rest
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise InputError(f"{option}={text!r}: the rule is a number above 0")
    return value, rest


def _slow(dtype: str, device: "Device") -> list[str]:
    """Returns a sentence if the device multiplies another 16-bit dtype faster."""
    if dtype == "float32" or device.peak_of(dtype) == device.peak:
        return []
    return [f"{dtype} is computed in float32 there: set model.dtype={device.half}"]


def _counts(collectives: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in collectives.items()) or "none"


def _sentences(rates: dict[str, float], share: float) -> list[str]:
    """Returns the rates of a plan as sentences."""
    traffic, arithmetic = rates["traffic_bound"], rates["arithmetic_bound"]
    reason = "traffic of the memory" if traffic < arithmetic else "arithmetic"
    an_hour = rates["epochs"] / rates["hours"]
    lines = [
        f"at most {min(traffic, arithmetic):,.0f} images/s, by the {reason}",
        f"expected {rates['expected']:,.0f} images/s, the {share} of it that ResNet-50 reached on "
        "an H200",
        f"{rates['epochs']:,.0f} epochs take {rates['hours']:,.2f} hours, {an_hour:,.1f} an hour; "
        "evaluation and checkpoints come on top",
    ]
    if "dollars" in rates:
        lines.append(f"the run costs ${rates['dollars']:,.2f}")
    if "cores" in rates:
        lines.append(f"the hosts need {rates['cores']:,.0f} cores that decode")
    return lines
