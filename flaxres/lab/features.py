"""Feature maps of a photograph by stage, and linear probes of each stage's features."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from flaxres import figures
from flaxres.data.augment import normalise
from flaxres.data.preprocess import Preprocess
from flaxres.inference.predict import from_weights
from flaxres.lab.claims import Claim
from flaxres.lab.drawing import STYLES, over_seeds
from flaxres.lab.networks import DEEP, KINDS, Trained, examples, recipe
from flaxres.lab.report import Experiment, Say, Settings, seed_by_seed
from flaxres.models.network import Network

MAPS, SIDE, RIDGE = 8, 160, 1e-2


@dataclasses.dataclass(frozen=True)
class Result:
    """Feature maps of one network, and accuracies of linear probes.

    Attributes:
      image: the photograph.
      maps: stage -> the 8 maps that vary most over it.
      probes: kind -> stage -> top-1 in [0, 1] of a linear classifier on the stage's mean
        activations.
      name: the network that the maps belong to.
    """

    image: UInt8[np.ndarray, "s s 3"]
    maps: dict[str, Float[np.ndarray, "8 h w"]]
    probes: dict[str, dict[str, float]]
    name: str


@seed_by_seed
def run(settings: Settings, say: Say) -> Result:
    """Computes the maps, and trains the networks (if necessary) and their probes.

    Args:
      settings: all are used.
      say: receives lines of progress.

    Raises:
      InputError: the photograph or the weights can't be read.
    """
    # Everything that can be refused comes before the training, which takes minutes.
    given = None
    if settings.weights:
        given = from_weights(settings.weights, settings.model)
    data = recipe(settings, "residual", DEEP).data
    preprocess = Preprocess(SIDE, SIDE, data.interpolation, data.mean, data.std)
    preprocess = given.preprocess if given else preprocess
    image = photograph(settings.image, preprocess)
    networks = {kind: Trained(settings, kind, DEEP, say) for kind in KINDS}
    probes = {kind: probe(network, settings.seed) for kind, network in networks.items()}
    for kind, accuracies in probes.items():
        values = (f"{stage} {100 * value:.1f}%" for stage, value in accuracies.items())
        say(f"  {kind}, linear probes: {', '.join(values)}")
    images = normalise(jnp.asarray(image[None]), preprocess.mean, preprocess.std, jnp.float32)
    if settings.weights:
        name = f"{settings.model}, {pathlib.Path(settings.weights).name}"
    else:
        name = f"residual, {DEEP} layers, trained on {settings.data}"
    network = given or networks["residual"]
    return Result(image, feature_maps(network.model, network.variables, images), probes, name)


def photograph(path: str | None, preprocess: Preprocess) -> UInt8[np.ndarray, "s s 3"]:
    """Reads a photograph and crops it as in an evaluation.

    Args:
      path: of the image; by default the portrait of Grace Hopper that matplotlib ships.
      preprocess: gives the sizes of the resizing and the crop, at least 160 pixels.

    Raises:
      InputError: the image can't be read.
    """
    if path is None:
        import matplotlib.cbook

        path = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    side = max(preprocess.size, SIDE)  # networks for small images take larger ones too
    enlarged = dataclasses.replace(preprocess, size=side, resize=max(side, preprocess.resize))
    return np.asarray(enlarged.crop(path))


def feature_maps(
    model: Network, variables: Any, images: Float[Array, "1 s s 3"]
) -> dict[str, Float[np.ndarray, "maps h w"]]:
    """Returns the maps of each stage that vary most over the image, relative to their mean.

    Args:
      model: the network.
      variables: its variables.
      images: one normalised image.
    """
    apply = jax.jit(lambda variables, images: model.apply(variables, images, features=True))
    maps: Any = apply(variables, images)
    chosen = {}
    for name in _stages(maps):
        array = np.asarray(maps[name][0], np.float32)
        spread = array.std((0, 1)) / (abs(array).mean((0, 1)) + 1e-6)
        alive = np.where(array.std((0, 1)) > 1e-6, spread, -1)
        chosen[name] = array[..., np.argsort(-alive)[:MAPS]].transpose(2, 0, 1)
    return chosen


def _stages(maps: Iterable[str]) -> list[str]:
    """Returns the names of the stages in the order of the network.

    Dictionaries from a jitted function are in alphabetical order.
    """
    return ["stem", *sorted(name for name in maps if name.startswith("stage"))]


def probe(network: Trained, seed: int) -> dict[str, float]:
    """Returns the test accuracy of a linear probe of each stage.

    The probe is a ridge regression from the stage's mean activations to one-hot targets, fitted on
    the training split.

    Args:
      network: a trained network.
      seed: of the choice of examples.
    """
    run = network.run
    train, labels = examples(run, run.train, 2000, seed)
    test, expected = examples(run, run.evaluation, 1000, seed)
    train_features, test_features = _pooled(network, train), _pooled(network, test)
    targets = np.eye(len(run.train.classes))[labels]
    return {
        name: _ridge_accuracy(train_features[name], targets, test_features[name], expected)
        for name in _stages(train_features)
    }


def _pooled(
    network: Trained, images: Float[np.ndarray, "n s s 3"]
) -> dict[str, Float[np.ndarray, "n c"]]:
    """Returns the mean activations of each stage."""
    model, variables = network.model, network.variables
    apply = jax.jit(lambda variables, images: model.apply(variables, images, features=True))
    some = np.array_split(images, -(-len(images) // 250))
    parts: list[Any] = [apply(variables, part) for part in some]

    def mean(maps: Any) -> np.ndarray:
        pixels: np.ndarray = np.asarray(maps).reshape(len(maps), -1, maps.shape[-1])
        return np.asarray(pixels.mean(1))

    return {name: np.concatenate([mean(part[name]) for part in parts]) for name in parts[0]}


def _ridge_accuracy(
    train: Float[np.ndarray, "n c"],
    targets: Float[np.ndarray, "n classes"],
    test: Float[np.ndarray, "m c"],
    expected: Int[np.ndarray, " m"],
) -> float:
    mean, deviation = train.mean(0), train.std(0) + 1e-6

    def inputs(features: np.ndarray) -> np.ndarray:
        return np.concatenate([(features - mean) / deviation, np.ones((len(features), 1))], 1)

    x = inputs(train)
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ targets)
    return float(((inputs(test) @ weights).argmax(1) == expected).mean())


def draw(results: Sequence[Result]) -> Any:
    """Draws the photograph, its maps with the first seed, and the probes; returns a figure."""
    result = results[0]
    plt = figures.pyplot()
    stages = list(result.maps)
    figure = plt.figure(figsize=(2 + 1.5 * MAPS, 1.6 * len(stages) + 3), layout="constrained")
    grid = figure.add_gridspec(len(stages) + 2, MAPS + 1)
    image = figure.add_subplot(grid[: len(stages), 0])
    image.imshow(Image.fromarray(result.image))
    image.set_title("photograph", fontsize=9)
    image.axis("off")
    for row, stage in enumerate(stages):
        for column, array in enumerate(result.maps[stage]):
            axes = figure.add_subplot(grid[row, 1 + column])
            axes.imshow(array, cmap="viridis")
            axes.set(xticks=[], yticks=[])
            if not column:
                axes.set_ylabel(f"{stage}\n{array.shape[0]} x {array.shape[1]}", fontsize=8)
    _draw_probes(figure.add_subplot(grid[len(stages) :, 1:]), results)
    figure.suptitle(f"Feature maps by stage: {result.name}")
    return figure


def _draw_probes(bars: Any, results: Sequence[Result]) -> None:
    probes = results[0].probes
    stages = list(next(iter(probes.values())))
    for offset, kind in zip((-0.2, 0.2), probes, strict=True):
        places = np.arange(len(stages)) + offset
        values = 100 * np.array([list(result.probes[kind].values()) for result in results])
        hatch, color = {"plain": "//", "residual": ""}[kind], STYLES[kind]["color"]
        style = {"color": color, "hatch": hatch, "edgecolor": "white"}
        median = np.median(values, 0)
        drawn = bars.bar(places, median, 0.38, label=kind, **style)
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        bars.bar_label(drawn, fmt="%.0f", fontsize=8, label_type="center", bbox=plate)
        if len(results) > 1:
            reach = [median - values.min(0), values.max(0) - median]
            bars.errorbar(places + 0.14, median, reach, fmt="none", ecolor="black", capsize=3)
    bars.set_xticks(range(len(stages)), stages)
    bars.set(
        ylabel="top-1 of a linear probe, %",
        ylim=(0, 118),
        title=f"what can be read off each stage by a linear classifier ({DEEP} layers)"
        + over_seeds(results),
    )
    bars.legend(loc="upper left", ncols=2)


def rows(result: Result) -> list[dict[str, Any]]:
    """Returns one row for each network and stage."""
    return [
        {"kind": kind, "stage": stage, "top1": value}
        for kind, accuracies in result.probes.items()
        for stage, value in accuracies.items()
    ]


def claims(result: Result) -> list[Claim]:
    """Tests whether the last stage of the residual network separates the classes better."""
    last = {kind: 100 * list(accuracies.values())[-1] for kind, accuracies in result.probes.items()}
    return [
        Claim(
            "What the last stage holds tells the classes apart better with skip connections "
            f"({DEEP} layers)",
            "top-1 of a linear probe on the last stage, %",
            last["plain"],
            last["residual"],
            last["residual"] > last["plain"],
        )
    ]


EXPERIMENT = Experiment(
    "feature maps of a photograph, and linear probes by stage", run, draw, rows, claims
)
