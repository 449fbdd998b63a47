"""The first and the last line of a run, and the files that it ends with."""

import dataclasses
from typing import Any

import jax

from flaxres.training import curves, hosts, metrics
from flaxres.training.display import Display
from flaxres.training.evaluation import Report
from flaxres.training.provenance import Progress
from flaxres.training.run import Run
from flaxres.training.staging import shown
from flaxres.training.state import State
from flaxres.training.uploads import Workdir


def headline(run: Run, first: int) -> str:
    """Returns the line that a run starts with."""
    model, device = run.config.model, jax.devices()[0]
    resumed = f", resuming at {first:,}" if first else ""
    return (
        f"{model.name}, {len(run.train.classes)} classes, {model.compute_dtype}, on "
        f"{run.mesh.size} x {device.device_kind}; {run.train.name}: {len(run.train):,} images, "
        f"{run.evaluation.name}: {len(run.evaluation):,}; "
        f"{run.steps:,} steps of {run.config.train.batch_size}{resumed}"
    )


def advice(run: Run, state: State) -> list[str]:
    """Returns lines on settings of a new run that cost time or accuracy."""
    return [*large_batch(run, state), *shared_statistics(run, state)]


def large_batch(run: Run, state: State) -> list[str]:
    """Returns a line for a new run whose batches have more images than the training split."""
    batch, images = run.config.train.batch_size, len(run.train)
    if batch <= images or int(state.step):
        return []
    return [
        f"a batch of {batch:,} holds each of the {images:,} training images more than once: lower "
        "train.batch_size, and optim.learning_rate with it"
    ]


def shared_statistics(run: Run, state: State) -> list[str]:
    """Returns a line for a new run whose batch norms sum their statistics over devices.

    That takes time, and a resumed run can't change it.
    """
    train, group = run.config.train, run.config.model.bn_group
    images, devices = train.batch_size // train.accumulate, run.mesh.size
    within_a_device = group is not None and images % (devices * group) == 0
    possible = devices > 1 and images >= 2 * devices and not int(state.step)
    if not possible or within_a_device or not state.batch_stats:
        return []
    whole = "the whole batch" if group is None else f"{group} images"
    return [
        f"every batch norm sums the statistics of {whole} over devices; a model.bn_group that "
        f"divides the {images // devices} images of a device is faster, and trains with smaller "
        "groups"
    ]


def finish(run: Run, place: Workdir, report: Report, progress: Progress, display: Display) -> None:
    """Writes curves.png and, last, summary.json, whose presence says that the run is complete."""
    if hosts.leader():
        accuracy = f"{report} of {report.examples:,} evaluation examples"
        title = f"{run.config.model.name} on {run.train.name}: {accuracy}"
        curves.draw_curves(place.folder, title)
        metrics.write_summary(place.folder, _summary(run, report, progress))
    place.wait()
    hosts.wait_for_all("run is finished")
    display.say(
        f"finished: {report} of {report.examples:,} examples; everything is in "
        f"{shown(place.folder)}"
    )


def _summary(run: Run, report: Report, progress: Progress) -> dict[str, Any]:
    """Returns the content of summary.json, with counts of lost images and steps if any are."""
    seconds, stalled = progress.seconds
    lost = {"images_skipped": len(progress.skipped), "steps_left_out": progress.left_out}
    return {
        **{key: value for key, value in dataclasses.asdict(report).items() if value is not None},
        "seconds": seconds,
        "images_per_second": report.step * run.config.train.batch_size / seconds,
        "input_stall_percent": 100 * stalled / seconds,
        **{name: count for name, count in lost.items() if count},
    }
