"""Training steps side by side on this machine.

    python -m benchmarks.train_step [--json] [--pairs 5] [--dtype bfloat16]

Images/s of our network over those of the peers, with SGD with momentum, on a batch that stays in
memory. In bfloat16 parameters stay float32, PyTorch's network is under its autocast, and ours is
compared to ours in float32 too. ResNet-50 (224 pixels, batch 16) is compared to the textbook Flax
network, dm-haiku's (in float32) and torchvision's, ResNet-20 (32 pixels, batch 128) to the textbook
and PyTorch. A ratio above 1 means that ours is faster. Each network has its own process. The two of
a pair take turns, a step each, and the ratio is the median of the pairs.

Our step has what `train.py` gives it: options of XLA, settings of malloc with dispatches that run
the step, and convolutions that this machine's C++ compiler compiles. Flax networks run as compiled
programs on arrays of the device (since 30 November 2026).

  ..._vs_float32                       ours in --dtype against ours in float32
  ..._vs_textbook                      against a peer with these settings of malloc and dispatches
  ..._vs_textbook_as_it_comes          against a peer without them, as its users run it
  ..._module_vs_textbook_as_it_comes   our module without any of the three, as in a user's own loop
  ..._images_per_second                median of all turns of a network

Needs the extra `parity`, and dm-haiku.
"""

import contextlib
import functools
import importlib
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
from flax import nnx

import flaxres
from benchmarks import command
from benchmarks.peers import torch_and_timm, torch_resnet20
from benchmarks.textbook import TEXTBOOK, plain_step
from flaxres import heap
from flaxres.cli._process import dispatch_inline, keep_memory
from flaxres.training.xla import compiler_options

Advance = Callable[[], Any]
# Pairs that are not counted: the first compiles, and some steps take longer until both processes
# have allocated their memory.
WARM = 4


def flax_steps(
    model: Any, images: np.ndarray, labels: np.ndarray, options: dict[str, Any] | None = None
) -> Advance:
    """Returns a function that runs one step of a Linen module; `options` are XLA's."""
    tx = optax.sgd(0.01, 0.9)
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), jnp.asarray(images)
    )
    step = jax.jit(plain_step(model, tx), donate_argnums=(0, 1), compiler_options=options)
    carry = [variables, tx.init(variables["params"])]
    batch = jax.block_until_ready(jax.device_put((images, labels)))
    compiled, room = step.lower(*carry, *batch).compile(), heap.Room()
    room.widen_for(compiled)

    def advance() -> None:
        with room:
            *carry[:], loss = compiled(*carry, *batch)
        jax.block_until_ready(loss)

    return advance


def nnx_steps(name: str, dtype: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """Returns the same for our NNX module, in `nnx.jit` with an `nnx.Optimizer`."""
    import flaxres.nnx

    model = flaxres.nnx.create_model(name, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.01, 0.9), wrt=nnx.Param)

    def loss_of(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model(images).astype(jnp.float32)
        loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss

    def step(model: Any, optimizer: Any, images: jax.Array, labels: jax.Array) -> Any:
        loss, gradients = nnx.value_and_grad(loss_of)(model, images, labels)
        optimizer.update(model, gradients)
        return loss

    compiled: Any = nnx.jit(step, donate_argnums=(0, 1))

    def advance() -> None:
        jax.block_until_ready(compiled(model, optimizer, images, labels))

    return advance


def haiku_steps(name: str, dtype: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """Returns the same for dm-haiku's ResNet50, in float32 alone."""
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


def torch_steps(name: str, dtype: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """Returns the same for PyTorch.

    The network is torchvision's, or for CIFAR the textbook's, in channels_last, which is the faster
    layout here.
    """
    torch, _ = torch_and_timm()
    if name == "resnet20":
        model = torch_resnet20(torch, 10)
    else:
        model = getattr(importlib.import_module("torchvision.models"), name)()
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    batch = batch.to(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels.astype(np.int64))
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, dtype == "bfloat16")

    def advance() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = torch.nn.functional.cross_entropy(model(batch), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return advance


def ours(name: str, dtype: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """Returns our step as `train.py` compiles it."""
    flaxres.use_native_convolutions()
    model = flaxres.create_model(name, dtype=jnp.dtype(dtype))
    return flax_steps(model, images, labels, compiler_options())


def module(name: str, dtype: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """Returns a plain step of our module."""
    return flax_steps(flaxres.create_model(name, dtype=jnp.dtype(dtype)), images, labels)


def textbook(name: str, dtype: str, images: np.ndarray, labels: np.ndarray) -> Advance:
    """Returns a plain step of the textbook network."""
    return flax_steps(TEXTBOOK[name](dtype=jnp.dtype(dtype)), images, labels)


PROGRAMS = {
    "ours": ours,
    "module": module,
    "nnx": nnx_steps,
    "textbook": textbook,
    "haiku": haiku_steps,
    "torch": torch_steps,
}


def serve(
    connection: Connection,
    program: str,
    name: str,
    size: int,
    batch: int,
    memory: bool,
    dtype: str = "float32",
) -> None:
    """Runs a step for each message, in a process of its own, and sends its seconds."""
    if memory:
        keep_memory()
        dispatch_inline()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    advance = PROGRAMS[program](name, dtype, images, rng.integers(0, 10, batch).astype(np.int32))
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            connection.recv()
            start = time.perf_counter()
            advance()
            connection.send(time.perf_counter() - start)


@contextlib.contextmanager
def started(*arguments: Any) -> Iterator[Advance]:
    """Starts a process of `serve`; yields a function that runs one step and returns its seconds."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()  # else the end of the process would not be noticed here

    def step() -> float:
        try:
            here.send(None)
            taken: float = here.recv()
        except (EOFError, OSError):
            process.join()
            ended = process.exitcode or 0
            why = f"ended with {ended}: its message is above"
            if ended < 0:
                why = f"was ended by signal {-ended}: is there memory for two networks?"
            raise SystemExit(f"the process of {' '.join(arguments[:2])} {why}") from None
        return taken

    try:
        yield step
    finally:
        here.close()
        process.join()


def compare(
    name: str, size: int, batch: int, pairs: int, peers: Sequence[str], dtype: str
) -> dict[str, float]:
    """Returns ratios of images/s, ours over each peer's, and images/s of all."""
    ratios: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}

    def take_turns(a: str, b: str, memory: bool, second_dtype: str = dtype) -> None:
        ending = "" if memory else "_as_it_comes"
        peer = second_dtype if a == b else b
        label = {"ours": name, "module": f"{name}_module"}[a]
        with (
            started(a, name, size, batch, a == "ours", dtype) as first,
            started(b, name, size, batch, memory, second_dtype) as second,
        ):
            for pair in range(WARM + pairs):
                seconds = first(), second()
                if pair >= WARM:
                    ratios.setdefault(f"{label}_vs_{peer}{ending}", []).append(
                        seconds[1] / seconds[0]
                    )
                    rates.setdefault(label, []).append(batch / seconds[0])
                    rates.setdefault(f"{name}_{peer}{ending}", []).append(batch / seconds[1])

    for peer in peers:
        take_turns("ours", peer, True)
        take_turns("ours", peer, False)
    take_turns("module", "textbook", False)
    if dtype != "float32":
        take_turns("ours", "ours", True, "float32")
    middle = {key: statistics.median(values) for key, values in ratios.items()}
    return middle | {
        f"{key}_images_per_second": statistics.median(values) for key, values in rates.items()
    }


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--pairs",
        type=int,
        default=5,
        help="of ResNet-50; five times as many of ResNet-20, which has short steps (5)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", choices=("resnet50", "resnet20"), help="measure one of the two")
    chosen = parser.parse_args()
    if inherited := [name for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ]:
        raise SystemExit(f"{' and '.join(inherited)} would apply to every network: unset them")
    figures: dict[str, float] = {}
    haiku = ("haiku",) if chosen.dtype == "float32" else ()
    if chosen.only != "resnet20":
        peers = ("textbook", *haiku, "torch")
        figures |= compare("resnet50", 224, 16, chosen.pairs, peers, chosen.dtype)
    if chosen.only != "resnet50":
        peers = ("textbook", "torch")
        figures |= compare("resnet20", 32, 128, 5 * chosen.pairs, peers, chosen.dtype)
    command.show(figures, chosen.json)


if __name__ == "__main__":
    main()
