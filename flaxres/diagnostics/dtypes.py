"""Compares the accuracy and the speed of a run's network by the dtype of its inference."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.config.schema import Config
from flaxres.data.augment import normalise
from flaxres.data.loader import Loader
from flaxres.data.rows import training_rows
from flaxres.errors import InputError
from flaxres.inference.fuse import network_function
from flaxres.inference.int8 import Int8Network, is_available
from flaxres.training.evaluation import evaluation_batches
from flaxres.training.mesh import split
from flaxres.training.resume import restore_run
from flaxres.training.run import Run, evaluation_transform
from flaxres.training.staging import local

TYPICAL = 256


def compared(config: Config, workdir: str, typical: int = TYPICAL) -> dict[str, float]:
    """Evaluates a run's network in float32, bfloat16 and 8 bits.

    All evaluate the same images, every one once; the three compute each batch in turn. Images of
    the first steps of training, preprocessed as in evaluation, give the largest activations for 8
    bits.

    Args:
      config: the config of the run.
      workdir: the workdir.
      typical: number of these images.

    Returns:
      For each dtype D `D_top1` and `D_loss`, in [0, 1] and nats; `D_agreement`, the share of images
      of the same class as in float32; and `D_images_per_second`, of the network alone.

    Raises:
      InputError: the folder has no run, or its images have any number of labels.
    """
    if config.data.multi_label:
        raise InputError(
            "data.multi_label: compare the dtypes of a run whose images have one class"
        )
    train = dataclasses.replace(config.train, devices=1)
    run, state = restore_run(dataclasses.replace(config, train=train), local(workdir))
    variables = jax.device_get(state.eval_variables)
    networks: dict[str, Callable[[Any], Any]] = {
        dtype: network_function(run.model.clone(dtype=jnp.dtype(dtype)), variables)
        for dtype in ("float32", "bfloat16")
    }
    if is_available():
        model = run.model.clone(dtype=jnp.dtype("float32"))
        networks["int8"] = Int8Network(model, variables, typical_images(run, typical))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in networks}
    seconds = dict.fromkeys(networks, 0.0)
    labels: list[np.ndarray] = []
    shapes: set[tuple[int, ...]] = set()
    for images, label in normalised_images(run, evaluation_batches(run)):
        for name, network in networks.items():
            if images.shape not in shapes:
                network(images)  # compiles it
            start = time.perf_counter()
            rows[name].append(np.asarray(network(images), np.float64))
            seconds[name] += time.perf_counter() - start
        shapes.add(images.shape)
        labels.append(label)
    return _figures(rows, np.concatenate(labels), seconds)


def _figures(
    rows: dict[str, list[np.ndarray]], labels: np.ndarray, seconds: dict[str, float]
) -> dict[str, float]:
    """Returns the figures of `compared`."""
    figures: dict[str, float] = {"examples": len(labels)}
    usual = np.concatenate(rows["float32"]).argmax(1)
    for name, parts in rows.items():
        logits = np.concatenate(parts)
        shifted = logits - logits.max(1, keepdims=True)
        shares = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        best = logits.argmax(1)
        figures |= {
            f"{name}_top1": float((best == labels).mean()),
            f"{name}_loss": float(-np.take_along_axis(shares, labels[:, None], 1).mean()),
            f"{name}_agreement": float((best == usual).mean()),
            f"{name}_images_per_second": len(labels) / seconds[name],
        }
    return figures


def normalised_images(run: Run, batches: Iterable[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the normalised images (B, S, S, C) and labels (B,) of batches, without padding."""
    data = run.config.data
    for batch in batches:
        real = np.asarray(batch["weight"]) > 0
        images = normalise(jnp.asarray(batch["image"]), data.mean, data.std, jnp.float32)
        yield np.asarray(images)[real], np.asarray(batch["label"])[real]


def typical_images(run: Run, count: int) -> np.ndarray:
    """Returns the images of the first steps of training, preprocessed as in evaluation."""
    data, train = run.config.data, run.config.train
    transform = evaluation_transform(data)
    steps = -(-count // train.batch_size)
    rows = training_rows(
        len(run.train), train.batch_size, train.seed, 0, steps, lambda step: transform
    )
    speed = run.speed(count)
    with Loader(run.train, rows, split(run.mesh), speed, data.bad_images) as loader:
        found = [images for images, _ in normalised_images(run, loader)]
    return np.concatenate(found)[:count]
