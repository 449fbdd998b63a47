"""Training steps side by side on this machine: `python -m benchmarks.train_step [--json] [--pairs 5]`.

Images/s of our network over those of the peers, float32, SGD with momentum, a batch that stays where it is: ResNet-50 (224 px, batch 16) against the
textbook Flax network, dm-haiku's and torchvision's; ResNet-20 (32 px, batch 128) against the textbook and PyTorch. A ratio above 1 means
that ours is faster. Ours is compiled with the options of XLA that `train.py` gives its step; all run with the settings of malloc that it makes on
CPU, take turns in one process, and the ratio is the median of the pairs. Needs the extra `parity`, and dm-haiku.
"""

import argparse
import functools
import importlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flaxres
from benchmarks.peers import torch_and_timm, torch_resnet20
from benchmarks.textbook import TEXTBOOK, plain_step
from flaxres.cli import keep_memory
from flaxres.training.mesh import data_mesh
from flaxres.training.steps import compiler_options

Advance = Callable[[], Any]
Peer = Callable[[np.ndarray, np.ndarray], Advance]
# Pairs that are not counted: the first compiles, and until both have found their memory some steps take longer.
WARM = 3


def flax_steps(model: Any, images: np.ndarray, labels: np.ndarray, options: dict[str, Any] | None = None) -> Advance:
    """A function that does one step of a Linen module and waits for it; `options` are XLA's."""
    tx = optax.sgd(0.01, 0.9)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), jnp.asarray(images))
    step = jax.jit(plain_step(model, tx), donate_argnums=(0, 1), compiler_options=options)
    carry = [variables, tx.init(variables["params"])]

    def advance() -> None:
        *carry[:], loss = step(*carry, images, labels)
        jax.block_until_ready(loss)

    return advance


def haiku_steps(images: np.ndarray, labels: np.ndarray) -> Advance:
    """The same of dm-haiku's ResNet50."""
    haiku = importlib.import_module("haiku")

    def forward(images: jax.Array) -> jax.Array:
        logits: jax.Array = haiku.nets.ResNet50(1000)(images, is_training=True)
        return logits

    network, tx = haiku.transform_with_state(forward), optax.sgd(0.01, 0.9)
    params, statistics_ = jax.jit(network.init)(jax.random.key(0), images)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, statistics_: Any, opt_state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            logits, new = network.apply(params, statistics_, None, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), new, opt_state, value

    carry = [params, statistics_, tx.init(params)]

    def advance() -> None:
        *carry[:], loss = step(*carry, images, labels)
        jax.block_until_ready(loss)

    return advance


def torch_steps(name: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """The same of PyTorch: torchvision's network, or for CIFAR the textbook's, in channels_last, which is the faster layout here."""
    torch, _ = torch_and_timm()
    model = torch_resnet20(torch, 10) if name == "resnet20" else getattr(importlib.import_module("torchvision.models"), name)()
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels.astype(np.int64))

    def advance() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return advance


def seconds(advance: Advance, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        advance()
    return (time.perf_counter() - start) / steps


def compare(name: str, size: int, batch: int, pairs: int, steps: int, peers: dict[str, Peer]) -> dict[str, float]:
    """Ratios of images/s, ours over each peer's, and images/s of all."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    labels = rng.integers(0, 10, batch).astype(np.int32)
    ours = flax_steps(flaxres.create_model(name), images, labels, compiler_options(data_mesh(1)))
    ratios: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {name: []}
    for peer, make in peers.items():
        theirs = make(images, labels)
        for advance in (ours, theirs) * WARM:
            seconds(advance, steps)
        for _ in range(pairs):
            a, b = seconds(ours, steps), seconds(theirs, steps)
            ratios.setdefault(f"{name}_vs_{peer}", []).append(b / a)
            rates[name].append(batch / a)
            rates.setdefault(f"{name}_{peer}", []).append(batch / b)
    middle = {key: statistics.median(values) for key, values in ratios.items()}
    return middle | {f"{key}_images_per_second": statistics.median(values) for key, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=("resnet50", "resnet20"), help="measure one of the two")
    chosen = parser.parse_args()
    keep_memory()
    figures: dict[str, float] = {}
    if chosen.only != "resnet20":
        peers: dict[str, Peer] = {
            "textbook": functools.partial(flax_steps, TEXTBOOK["resnet50"]()),
            "haiku": haiku_steps,
            "torch": functools.partial(torch_steps, "resnet50"),
        }
        figures |= compare("resnet50", 224, 16, chosen.pairs, 2, peers)
    if chosen.only != "resnet50":
        small: dict[str, Peer] = {
            "textbook": functools.partial(flax_steps, TEXTBOOK["resnet20"]()),
            "torch": functools.partial(torch_steps, "resnet20"),
        }
        figures |= compare("resnet20", 32, 128, chosen.pairs, 5, small)
    print(json.dumps(figures) if chosen.json else "\n".join(f"{name}: {value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
