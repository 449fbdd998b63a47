"""Plain and residual CIFAR networks that experiments train and examine.

`flaxres.fit` trains each network once.
"""

import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from flaxres.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from flaxres.data.augment import normalise
from flaxres.data.loader import Loader
from flaxres.data.rows import Rows
from flaxres.data.source import Source
from flaxres.lab.report import Say, Settings
from flaxres.models.blocks import PreActivationBlock, ResidualBlock
from flaxres.models.network import Network
from flaxres.training.loop import fit
from flaxres.training.mesh import data_mesh, split
from flaxres.training.metrics import read_metrics
from flaxres.training.resume import restore_run
from flaxres.training.run import Run, evaluation_transform

KINDS = ("plain", "residual")
DEEP = 56
AT_ONCE = 250
Variables = dict[str, Any]


def recipe(settings: Settings, kind: str, depth: int) -> Config:
    """Returns the config of a CIFAR network; plain and residual ones share a short recipe.

    Args:
      settings: of the experiment.
      kind: 'plain' (without shortcuts) or 'residual'.
      depth: number of layers.
    """
    small = settings.data == "digits"
    side = 8 if small else 32
    data = DataConfig(
        name=settings.data,
        source=settings.source,
        data_dir=settings.data_dir,
        image_size=side,
        eval_size=side,
        eval_resize=side,
        crop="centre",
        resident=True,
    )
    train = TrainConfig(
        batch_size=64 if small else 128,
        eval_batch_size=AT_ONCE * 2,
        epochs=max(round((12 if small else 10) * settings.scale), 2),
        log_every_steps=1 if small else 10,
        checkpoint_every_epochs=1e6,
        seed=settings.seed,
        devices=1,
        tensorboard=False,
        progress=False,
    )
    return Config(
        ModelConfig(name=f"resnet{depth}", shortcut="none" if kind == "plain" else None),
        data,
        AugmentConfig(shift=1 if small else 4, flip=not small),
        OptimConfig(learning_rate=0.1, warmup_epochs=1, schedule="cosine"),
        train,
    )


class Trained:
    """A trained network.

    Attributes:
      folder: workdir of its run.
      run: its run.
      state: its last state.
      log: its metrics, one dictionary a line of the log.
    """

    def __init__(self, settings: Settings, kind: str, depth: int, say: Say) -> None:
        """Trains the network, resumes its training, or restores it from `settings.out`.

        Args:
          settings: of the experiment.
          kind: 'plain' or 'residual'.
          depth: number of layers.
          say: receives a line when the network has been trained.
        """
        config = recipe(settings, kind, depth)
        name = f"{settings.data}-{kind}{depth}-{config.train.epochs:g}epochs-seed{settings.seed}"
        self.folder = settings.out / "networks" / name
        if not (self.folder / "summary.json").exists():
            with contextlib.redirect_stderr(io.StringIO()):
                fit(config, self.folder)
            summary = json.loads((self.folder / "summary.json").read_text())
            top1, seconds = 100 * summary["top1"], summary["seconds"]
            say(f"  trained {kind} {depth} layers: top-1 {top1:.1f}% in {seconds:.0f} s")
        with contextlib.redirect_stderr(io.StringIO()):
            self.run, self.state = restore_run(config, self.folder)
        self.log = read_metrics(self.folder)

    @property
    def model(self) -> Network:
        """The network."""
        return self.run.model

    @property
    def variables(self) -> Variables:
        """Its trained variables."""
        return self.state.eval_variables

    def curve(self, name: str) -> Float[np.ndarray, "epochs 2"]:
        """Returns the mean of a metric by epoch, as (epoch, mean).

        Args:
          name: of the metric in the log, `train/top1` say.
        """
        # A step belongs to the epoch that its middle is in, so that an evaluation belongs to the
        # epoch before it.
        half = 0.5 / self.run.steps_per_epoch
        rows = [row for row in self.log if row.get(name) is not None]
        points = [(np.ceil(row["epoch"] - half), row[name]) for row in rows]
        epochs = sorted({at for at, _ in points})
        means = [np.mean([value for at, value in points if at == epoch]) for epoch in epochs]
        return np.array(list(zip(epochs, means, strict=True)))

    def error(self, source: Source) -> float:
        """Returns the error on a whole split, as in an evaluation, in [0, 1]."""
        images, labels = examples(self.run, source, len(source))
        apply = jax.jit(self.model.apply)
        parts = np.array_split(images, -(-len(images) // (4 * AT_ONCE)))
        logits = np.concatenate([np.asarray(apply(self.variables, part)) for part in parts])
        return float((logits.argmax(-1) != labels).mean())


def examples(
    run: Run, source: Source, count: int, seed: int = 0
) -> tuple[Float[np.ndarray, "n s s 3"], Int[np.ndarray, " n"]]:
    """Draws different examples as an evaluation prepares them.

    Args:
      run: its config gives the size, crop and normalisation.
      source: split to draw from.
      count: number of examples; all if the split has fewer.
      seed: of the draw.

    Returns:
      Normalised images in float32, and labels.
    """
    data = run.config.data
    transform = evaluation_transform(data)
    chosen = np.random.default_rng(seed).permutation(len(source))[:count].astype(np.int64)
    rows = [
        Rows(np.arange(len(part), dtype=np.uint32), part, transform, True)
        for part in np.array_split(chosen, -(-len(chosen) // AT_ONCE))
    ]
    with Loader(source, rows, split(data_mesh(1)), run.speed(count)) as loader:
        batches = [(np.asarray(batch["image"]), np.asarray(batch["label"])) for batch in loader]
    images = jnp.asarray(np.concatenate([image for image, _ in batches]))
    labels = np.concatenate([label for _, label in batches])
    return np.asarray(normalise(images, data.mean, data.std, jnp.float32)), labels


def watched(
    apply: Callable[[], Any], block: Callable[[nn.Module, jax.Array, jax.Array], jax.Array]
) -> Any:
    """Calls `apply()` with the output of each block replaced.

    Args:
      apply: applies a network.
      block: `(module, input, output) -> output`, called in the order of the blocks.
    """

    def watch(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        output = call(*arguments, **options)
        is_block = isinstance(context.module, ResidualBlock | PreActivationBlock)
        if is_block and context.method_name == "__call__":
            return block(context.module, arguments[0], output)
        return output

    with nn.intercept_methods(watch):
        return apply()


def removable(
    model: Network, images: Float[np.ndarray, "n s s c"], variables: Variables
) -> list[bool]:
    """Returns for each block whether it keeps the shape of its input and so can be removed."""
    shapes: list[bool] = []

    def note(_: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        shapes.append(x.shape == y.shape)
        return y

    jax.eval_shape(lambda images: watched(lambda: model.apply(variables, images), note), images[:1])
    return shapes


def bypassed(
    model: Network,
) -> Callable[
    [Variables, Float[Array, "n s s c"], Bool[Array, " blocks"]], Float[Array, "n classes"]
]:
    """Returns `(variables, images, kept) -> logits`, to be jitted.

    Blocks that are not `kept` are bypassed, unless they change the shape.
    """

    def logits(variables: Variables, images: jax.Array, kept: jax.Array) -> jax.Array:
        place = iter(range(len(kept)))

        def choose(_: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
            index = next(place)
            return jnp.where(kept[index], y, x) if x.shape == y.shape else y

        output: jax.Array = watched(lambda: model.apply(variables, images), choose)
        return output

    return logits
