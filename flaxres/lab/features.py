"""What a network sees: feature maps of a photograph by stage, and how well each stage's features tell the classes apart (linear probes)."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from flaxres import figures
from flaxres.data.augment import normalise
from flaxres.data.preprocess import Preprocess
from flaxres.inference.predict import from_weights
from flaxres.lab.networks import DEEP, KINDS, Trained, examples, recipe
from flaxres.lab.report import STYLES, Claim, Experiment, Say, Settings
from flaxres.models.network import Network

MAPS, SIDE, RIDGE = 8, 160, 1e-2


@dataclasses.dataclass(frozen=True)
class Result:
    """`image`: the photograph (S, S, 3) uint8. `maps`: stage -> (8, h, w), its maps that vary most. `probes`: kind -> stage -> top-1 in [0, 1] of a
    linear classifier on that stage's pooled features; `name`: the network whose maps they are.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray]
    probes: dict[str, dict[str, float]]
    name: str


def run(settings: Settings, say: Say) -> Result:
    # What can be refused comes before what takes minutes.
    own = (
        from_weights(settings.weights, str(settings.model), None, None)
        if settings.weights
        else None
    )
    data = recipe(settings, "residual", DEEP).data
    preprocess = (
        own.preprocess if own else Preprocess(SIDE, SIDE, data.interpolation, data.mean, data.std)
    )
    image = photograph(settings.image, preprocess)
    networks = {kind: Trained(settings, kind, DEEP, say) for kind in KINDS}
    probes = {kind: probe(network, settings.seed) for kind, network in networks.items()}
    for kind, found in probes.items():
        say(
            f"  {kind}, linear probes: "
            + ", ".join(f"{stage} {100 * value:.1f}%" for stage, value in found.items())
        )
    model, variables = (
        (own.model, own.variables)
        if own
        else (networks["residual"].model, networks["residual"].variables)
    )
    name = (
        f"{settings.model}, {pathlib.Path(settings.weights).name}"
        if settings.weights
        else f"residual, {DEEP} layers, trained on {settings.data}"
    )
    images = normalise(jnp.asarray(image[None]), preprocess.mean, preprocess.std, jnp.float32)
    return Result(image, feature_maps(model, variables, images), probes, name)


def photograph(path: str | None, preprocess: Preprocess) -> np.ndarray:
    """The picture at `path`, by default the portrait of Grace Hopper that matplotlib brings, cropped as for evaluation."""
    if path is None:
        import matplotlib.cbook

        path = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    side = max(preprocess.size, SIDE)  # networks of small images take larger ones too
    return np.asarray(
        dataclasses.replace(preprocess, size=side, resize=max(side, preprocess.resize)).crop(path)
    )


def feature_maps(model: Network, variables: Any, images: jax.Array) -> dict[str, np.ndarray]:
    """Of each stage, the maps that vary most over the picture."""
    maps: Any = jax.jit(lambda variables, images: model.apply(variables, images, features=True))(
        variables, images
    )
    chosen = {}
    for name in stages(maps):
        array = np.asarray(maps[name][0], np.float32)
        spread = array.std((0, 1)) / (abs(array).mean((0, 1)) + 1e-6)
        alive = np.where(array.std((0, 1)) > 1e-6, spread, -1)
        chosen[name] = array[..., np.argsort(-alive)[:MAPS]].transpose(2, 0, 1)
    return chosen


def stages(maps: Any) -> list[str]:
    """Their names in the order of the network; a jitted function gives dictionaries in that of the alphabet."""
    return ["stem", *sorted(name for name in maps if name.startswith("stage"))]


def probe(network: Trained, seed: int) -> dict[str, float]:
    """Accuracy on the test split of ridge regression to one-hot targets, from each stage's mean activations, fitted on the training split."""
    run = network.run
    (train, labels), (test, expected) = (
        examples(run, run.train, 2000, seed),
        examples(run, run.evaluation, 1000, seed),
    )
    apply = jax.jit(lambda images: network.model.apply(network.variables, images, features=True))

    def pooled(images: np.ndarray) -> dict[str, np.ndarray]:
        parts: list[Any] = [apply(part) for part in np.array_split(images, -(-len(images) // 250))]
        return {
            name: np.concatenate(
                [
                    np.asarray(part[name])
                    .reshape(len(part[name]), -1, part[name].shape[-1])
                    .mean(1)
                    for part in parts
                ]
            )
            for name in parts[0]
        }

    seen, unseen, found = pooled(train), pooled(test), {}
    targets = np.eye(len(run.train.classes))[labels]
    for name in stages(seen):
        features = seen[name]
        mean, deviation = features.mean(0), features.std(0) + 1e-6
        x = np.concatenate([(features - mean) / deviation, np.ones((len(features), 1))], 1)
        weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ targets)
        new = np.concatenate(
            [(unseen[name] - mean) / deviation, np.ones((len(unseen[name]), 1))], 1
        )
        found[name] = float(((new @ weights).argmax(1) == expected).mean())
    return found


def draw(result: Result) -> Any:
    plt = figures.pyplot()
    stages = list(result.maps)
    figure = plt.figure(figsize=(2 + 1.5 * MAPS, 1.6 * len(stages) + 3), layout="constrained")
    grid = figure.add_gridspec(len(stages) + 2, MAPS + 1)
    picture = figure.add_subplot(grid[: len(stages), 0])
    picture.imshow(Image.fromarray(result.image))
    picture.set_title("photograph", fontsize=9)
    picture.axis("off")
    for row, stage in enumerate(stages):
        for column, array in enumerate(result.maps[stage]):
            axes = figure.add_subplot(grid[row, 1 + column])
            axes.imshow(array, cmap="viridis")
            axes.set(xticks=[], yticks=[])
            if not column:
                axes.set_ylabel(f"{stage}\n{array.shape[0]} x {array.shape[1]}", fontsize=8)
    bars = figure.add_subplot(grid[len(stages) :, 1:])
    for offset, (kind, found) in zip((-0.2, 0.2), result.probes.items(), strict=True):
        places = np.arange(len(found)) + offset
        hatch = {"plain": "//", "residual": ""}[kind]
        drawn = bars.bar(
            places,
            [100 * value for value in found.values()],
            0.38,
            label=kind,
            color=STYLES[kind]["color"],
            hatch=hatch,
            edgecolor="white",
        )
        bars.bar_label(drawn, fmt="%.0f", fontsize=8)
    bars.set_xticks(range(len(found)), list(found))
    bars.set(
        ylabel="top-1 of a linear probe, %",
        ylim=(0, 118),
        title=f"what can be read off each stage by a linear classifier ({DEEP} layers)",
    )
    bars.legend(loc="upper left", ncols=2)
    figure.suptitle(f"Feature maps by stage: {result.name}")
    return figure


def rows(result: Result) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "stage": stage, "top1": value}
        for kind, found in result.probes.items()
        for stage, value in found.items()
    ]


def claims(result: Result) -> list[Claim]:
    last = {kind: 100 * found[list(found)[-1]] for kind, found in result.probes.items()}
    return [
        Claim(
            f"What the last stage holds tells the classes apart better with skip connections ({DEEP} layers)",
            "top-1 of a linear probe on the last stage, %",
            last["plain"],
            last["residual"],
            last["residual"] > last["plain"],
        )
    ]


EXPERIMENT = Experiment(
    "feature maps of a photograph, and linear probes by stage", run, draw, rows, claims
)
