"""Training steps side by side on this machine: `python -m benchmarks.train_step [--json] [--pairs 5]`.

Images/s of our network over those of the peers, float32, SGD with momentum, a batch that stays where it is: ResNet-50 (224 px, batch 16) against the
textbook Flax network, dm-haiku's and torchvision's; ResNet-20 (32 px, batch 128) against the textbook and PyTorch. A ratio above 1 means that ours is
faster. Each network has a process of its own, and the two of a pair take turns, a step each; the ratio is the median of the pairs.

Ours has what `train.py` gives its step: options of XLA, settings of malloc, and convolutions that this machine's C++ compiler makes. The ratios
`..._vs_textbook` and the like are against peers with these settings of malloc; `..._vs_textbook_as_it_comes` against peers without, which is how
their users run them, and `..._module_vs_textbook_as_it_comes` is of our module without any of the three, as in a loop of somebody's own. Images/s are
medians of all turns of a network.
Needs the extra `parity`, and dm-haiku.
"""

import argparse
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flaxres
from benchmarks.peers import torch_and_timm, torch_resnet20
from benchmarks.textbook import TEXTBOOK, plain_step
from flaxres.cli._process import keep_memory
from flaxres.training.xla import compiler_options

Advance = Callable[[], Any]
# Pairs that are not counted: the first compiles, and until both have found their memory some steps take longer.
WARM = 4


def flax_steps(
    model: Any, images: np.ndarray, labels: np.ndarray, options: dict[str, Any] | None = None
) -> Advance:
    """A function that does one step of a Linen module and waits for it; `options` are XLA's."""
    tx = optax.sgd(0.01, 0.9)
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), jnp.asarray(images)
    )
    step = jax.jit(plain_step(model, tx), donate_argnums=(0, 1), compiler_options=options)
    carry = [variables, tx.init(variables["params"])]

    def advance() -> None:
        *carry[:], loss = step(*carry, images, labels)
        jax.block_until_ready(loss)

    return advance


def haiku_steps(name: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """The same of dm-haiku's ResNet50."""
    haiku = importlib.import_module("haiku")

    def forward(images: jax.Array) -> jax.Array:
        logits: jax.Array = haiku.nets.ResNet50(1000)(images, is_training=True)
        return logits

    network, tx = haiku.transform_with_state(forward), optax.sgd(0.01, 0.9)
    params, statistics_ = jax.jit(network.init)(jax.random.key(0), images)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(
        params: Any, statistics_: Any, opt_state: Any, images: jax.Array, labels: jax.Array
    ) -> Any:
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
    model = (
        torch_resnet20(torch, 10)
        if name == "resnet20"
        else getattr(importlib.import_module("torchvision.models"), name)()
    )
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(
        memory_format=torch.channels_last
    )
    targets = torch.from_numpy(labels.astype(np.int64))

    def advance() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return advance


def ours(name: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    flaxres.use_native_convolutions()
    return flax_steps(flaxres.create_model(name), images, labels, compiler_options())


def module(name: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    return flax_steps(flaxres.create_model(name), images, labels)


def textbook(name: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    return flax_steps(TEXTBOOK[name](), images, labels)


PROGRAMS = {
    "ours": ours,
    "module": module,
    "textbook": textbook,
    "haiku": haiku_steps,
    "torch": torch_steps,
}


def serve(
    connection: Connection, program: str, name: str, size: int, batch: int, memory: bool
) -> None:
    """In a process of its own: the seconds of a step, each time that it is asked for one."""
    if memory:
        keep_memory()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    advance = PROGRAMS[program](name, images, rng.integers(0, 10, batch).astype(np.int32))
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            connection.recv()
            start = time.perf_counter()
            advance()
            connection.send(time.perf_counter() - start)


@contextlib.contextmanager
def started(*arguments: Any) -> Iterator[Advance]:
    """A function that has a process of `serve(connection, *arguments)` do a step, and gives its seconds."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()  # else its end is not noticed here

    def step() -> float:
        try:
            here.send(None)
            taken: float = here.recv()
        except (EOFError, OSError):
            process.join()
            ended = process.exitcode or 0
            why = (
                f"was ended by signal {-ended}: is there memory for two networks?"
                if ended < 0
                else f"ended with {ended}: its message is above"
            )
            raise SystemExit(f"the process of {' '.join(arguments[:2])} {why}") from None
        return taken

    try:
        yield step
    finally:
        here.close()
        process.join()


def compare(name: str, size: int, batch: int, pairs: int, peers: Sequence[str]) -> dict[str, float]:
    """Ratios of images/s, ours over each peer's, and images/s of all."""
    ratios: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}

    def take_turns(a: str, b: str, memory: bool) -> None:
        ending = "" if memory else "_as_it_comes"
        label = {"ours": name, "module": f"{name}_module"}[a]
        with (
            started(a, name, size, batch, a == "ours") as first,
            started(b, name, size, batch, memory) as second,
        ):
            for pair in range(WARM + pairs):
                seconds = first(), second()
                if pair >= WARM:
                    ratios.setdefault(f"{label}_vs_{b}{ending}", []).append(seconds[1] / seconds[0])
                    rates.setdefault(label, []).append(batch / seconds[0])
                    rates.setdefault(f"{name}_{b}{ending}", []).append(batch / seconds[1])

    for peer in peers:
        take_turns("ours", peer, True)
        take_turns("ours", peer, False)
    take_turns("module", "textbook", False)
    middle = {key: statistics.median(values) for key, values in ratios.items()}
    return middle | {
        f"{key}_images_per_second": statistics.median(values) for key, values in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--pairs",
        type=int,
        default=5,
        help="of ResNet-50; of ResNet-20, whose steps are short, five times as many (5)",
    )
    parser.add_argument("--only", choices=("resnet50", "resnet20"), help="measure one of the two")
    chosen = parser.parse_args()
    if inherited := [name for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ]:
        raise SystemExit(f"{' and '.join(inherited)} would be every network's: unset them")
    figures: dict[str, float] = {}
    if chosen.only != "resnet20":
        figures |= compare("resnet50", 224, 16, chosen.pairs, ("textbook", "haiku", "torch"))
    if chosen.only != "resnet50":
        figures |= compare("resnet20", 32, 128, 5 * chosen.pairs, ("textbook", "torch"))
    print(
        json.dumps(figures)
        if chosen.json
        else "\n".join(f"{key}: {value:.3f}" for key, value in figures.items())
    )


if __name__ == "__main__":
    main()
