"""Plain and residual CIFAR networks that the experiments train, once each, by `flaxres.fit`; and ways to look into a trained one."""

import contextlib
import io
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxres.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from flaxres.data import decode
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
from flaxres.training.run import Run

KINDS = ("plain", "residual")
DEEP = 56
AT_ONCE = 250
Variables = dict[str, Any]


def recipe(settings: Settings, kind: str, depth: int) -> Config:
    """A CIFAR network of `depth` layers, with or without its shortcuts. The recipe is the same for both, and short."""
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
    return Config(
        ModelConfig(name=f"resnet{depth}", shortcut="none" if kind == "plain" else None),
        data,
        AugmentConfig(shift=1 if small else 4, flip=not small),
        OptimConfig(learning_rate=0.1, warmup_epochs=1, schedule="cosine"),
        TrainConfig(
            batch_size=64 if small else 128,
            eval_batch_size=AT_ONCE * 2,
            epochs=max(round((12 if small else 10) * settings.scale), 2),
            log_every_steps=1 if small else 10,
            checkpoint_every_epochs=1e6,
            seed=settings.seed,
            devices=1,
            tensorboard=False,
            progress=False,
        ),
    )


class Trained:
    """A trained network with its run, and its log by epoch."""

    def __init__(self, settings: Settings, kind: str, depth: int, say: Say) -> None:
        """Trains it, or finds it in `settings.out`; one that was interrupted goes on."""
        config = recipe(settings, kind, depth)
        self.folder = (
            settings.out
            / "networks"
            / f"{settings.data}-{kind}{depth}-{config.train.epochs:g}epochs-seed{settings.seed}"
        )
        if not (self.folder / "summary.json").exists():
            with contextlib.redirect_stderr(io.StringIO()):
                fit(config, self.folder)
            summary = json.loads((self.folder / "summary.json").read_text())
            say(
                f"  trained {kind} {depth} layers: top-1 {100 * summary['top1']:.1f}% in {summary['seconds']:.0f} s"
            )
        with contextlib.redirect_stderr(io.StringIO()):
            self.run, self.state = restore_run(config, self.folder)
        self.log = read_metrics(self.folder)

    @property
    def model(self) -> Network:
        return self.run.model

    @property
    def variables(self) -> Variables:
        return self.state.eval_variables

    def curve(self, name: str) -> np.ndarray:
        """(epochs, 2): the number of the epoch, and the mean of what the log has of a metric in it."""
        half = (
            0.5 / self.run.steps_per_epoch
        )  # a step is of the epoch that its middle is in, so that an evaluation is of the one before it
        points = [
            (np.ceil(row["epoch"] - half), row[name])
            for row in self.log
            if row.get(name) is not None
        ]
        return np.array(
            [
                (epoch, np.mean([value for at, value in points if at == epoch]))
                for epoch in sorted({at for at, _ in points})
            ]
        )

    def error(self, source: Source) -> float:
        """On a whole split, as evaluation sees it, in [0, 1]."""
        images, labels = examples(self.run, source, len(source))
        answer = jax.jit(lambda part: self.model.apply(self.variables, part))
        parts: list[Any] = [
            answer(part) for part in np.array_split(images, -(-len(images) // (4 * AT_ONCE)))
        ]
        return float((np.concatenate(parts).argmax(-1) != labels).mean())


def examples(run: Run, source: Source, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` different examples (or all) as evaluation sees them: normalised images (N, S, S, 3) float32, labels (N,)."""
    data = run.config.data
    transform = decode.CentreCrop(data.eval_size, data.eval_resize, data.interpolation)
    chosen = np.random.default_rng(seed).permutation(len(source))[:count].astype(np.int64)
    rows = [
        Rows(np.arange(len(part), dtype=np.uint32), part, transform, True)
        for part in np.array_split(chosen, -(-len(chosen) // AT_ONCE))
    ]
    with Loader(source, rows, split(data_mesh(1)), run.speed) as loader:
        batches = [(np.asarray(batch["image"]), np.asarray(batch["label"])) for batch in loader]
    images = np.concatenate([image for image, _ in batches])
    return np.asarray(
        normalise(jnp.asarray(images), data.mean, data.std, jnp.float32)
    ), np.concatenate([label for _, label in batches])


def watched(
    apply: Callable[[], Any], block: Callable[[nn.Module, jax.Array, jax.Array], jax.Array]
) -> Any:
    """`apply()` with each block's output replaced by `block(module, input, output)`, in the order of the blocks."""

    def watch(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        output = call(*arguments, **options)
        if (
            isinstance(context.module, ResidualBlock | PreActivationBlock)
            and context.method_name == "__call__"
        ):
            return block(context.module, arguments[0], output)
        return output

    with nn.intercept_methods(watch):
        return apply()


def removable(model: Network, images: np.ndarray, variables: Variables) -> list[bool]:
    """For each block whether it keeps the shape of its input, so that it can be taken out."""
    shapes: list[bool] = []

    def note(_: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
        shapes.append(x.shape == y.shape)
        return y

    jax.eval_shape(lambda images: watched(lambda: model.apply(variables, images), note), images[:1])
    return shapes


def bypassed(model: Network) -> Callable[[Variables, jax.Array, jax.Array], jax.Array]:
    """`(variables, images, kept (blocks,)) -> logits`, with the blocks that are not kept left out where they keep the shape. To be jitted."""

    def logits(variables: Variables, images: jax.Array, kept: jax.Array) -> jax.Array:
        place = iter(range(len(kept)))

        def choose(_: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
            index = next(place)
            return jnp.where(kept[index], y, x) if x.shape == y.shape else y

        return watched(lambda: model.apply(variables, images), choose)

    return logits
