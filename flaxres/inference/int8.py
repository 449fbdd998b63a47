"""Inference in 8 bits on CPUs: activations without a sign, kernels with one, whole sums.

An activation is a whole number from 0 to 255 times a step for each array, and a kernel one from
-127 to 127 times a step for each output channel (Jacob et al. 2018, "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", section 2). The largest
activations of a few images give the steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.errors import InputError
from flaxres.inference.fuse import TOGETHER, Chain, FusedNetwork, chains
from flaxres.inference.graph import Graph, Keys, Operation, Origin, Step, Value
from flaxres.inference.quantise import by_output_channel
from flaxres.models.network import Network
from flaxres.ops import native
from flaxres.ops.fused import fused_convolution, packed, padded

LARGEST = 255


def is_available() -> bool:
    """Returns whether `Int8Network` works here, after `flaxres.use_native_convolutions`."""
    return native.computes("uint8", "inference")


@dataclasses.dataclass(frozen=True, eq=False)
class Quantised(Chain):
    """A chain that convolves images in 8 bits.

    Attributes:
      images: the images.
      step: of the images.
      rounded: the result in 8 bits, and its step; None where it is float32.
      added: the shortcut, and its step if it is in 8 bits, else 1; None without one.
    """

    images: Value | None = None
    step: float = 1.0
    rounded: tuple[Value, float] | None = None
    added: tuple[Value, float] | None = None

    @property
    def operands(self) -> tuple[Value, ...]:
        assert self.images is not None
        return (self.images,) if self.added is None else (self.images, self.added[0])

    @property
    def results(self) -> tuple[Value, ...]:
        return (self.result if self.rounded is None else self.rounded[0],)

    def __call__(
        self,
        kernel: jax.Array,
        factor: jax.Array,
        summand: jax.Array,
        images: jax.Array,
        shortcut: jax.Array | None = None,
    ) -> list[jax.Array]:
        settings = self.settings | {"dtype": self.results[0].dtype}
        if self.added is not None:
            settings["shortcut_factor"] = self.added[1] / self.result_step
        return [fused_convolution(images, kernel, factor, summand, shortcut, **settings)]

    @property
    def result_step(self) -> float:
        return 1.0 if self.rounded is None else self.rounded[1]

    def keys(self, keys: Keys) -> tuple[int, ...]:
        return tuple(keys("8 bits", self.step, self.result_step, key) for key in super().keys(keys))

    def weights(self, known: Mapping[int, Any]) -> tuple[np.ndarray, ...]:
        whole, steps = by_output_channel(np.asarray(known[self.kernel.key], np.float64))
        factor, summand = self.factors(known)
        rows = factor * steps * self.step / self.result_step, summand / self.result_step
        return (packed(whole), *map(padded, rows))


@dataclasses.dataclass(frozen=True, eq=False)
class Rounded:
    """An operation that rounds an array to 8 bits, or with `back` makes an array of these."""

    operands: tuple[Value]
    results: tuple[Value]
    step: float
    back: bool

    def __call__(self, array: jax.Array) -> list[jax.Array]:
        if self.back:
            return [array.astype(self.results[0].dtype) * self.step]
        return [jnp.clip(jnp.round(array / self.step), 0, LARGEST).astype(jnp.uint8)]


def in_eight_bits(
    items: Sequence[Step | Chain], results: Sequence[Value], steps: Mapping[int, float]
) -> Iterator[Operation]:
    """Yields the operations of a network with its chains in 8 bits.

    Args:
      items: the operations.
      results: of the network.
      steps: of the images of chains, by the key of the kernel. Other chains stay as they are.
    """
    wanted = {
        item.operands[0]: steps[item.kernel.key]
        for item in items
        if isinstance(item, Chain) and item.kernel.key in steps
    }
    twins: dict[Value, Value] = {}  # in 8 bits
    exact: set[Value] = set()  # those with a twin that exist in their own dtype, too

    def twin(of: Value) -> Value:
        return Value(of.shape, jnp.dtype(jnp.uint8), Origin.IMAGES)

    def in_floats(values: Sequence[Value]) -> Iterator[Rounded]:
        for value in values:
            if value in twins and value not in exact:
                exact.add(value)
                yield Rounded((twins[value],), (value,), wanted[value], back=True)

    for item in items:
        if not isinstance(item, Chain) or item.kernel.key not in steps:
            yield from in_floats(item.operands)
            yield item
            continue
        images, *rest = item.operands
        if images not in twins:
            twins[images] = twin(images)
            exact.add(images)
            yield Rounded((images,), (twins[images],), wanted[images], back=False)
        added = None
        if rest:
            shortcut = rest[0]
            added = (twins[shortcut], wanted[shortcut]) if shortcut in twins else (shortcut, 1.0)
        rounded = None
        if item.relu and item.result in wanted:
            twins[item.result] = twin(item.result)
            rounded = twins[item.result], wanted[item.result]
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(Chain)}
        yield Quantised(
            **fields, images=twins[images], step=wanted[images], rounded=rounded, added=added
        )
    yield from in_floats(results)


class Int8Network(FusedNetwork):
    """A network with its variables, for inference in 8 bits on CPUs with native code.

    Convolutions whose images are at least 0 are computed in 8 bits, which are those behind a ReLU;
    all else is float32.

    Args:
      model: the network, in float32.
      variables: its variables.
      images: preprocessed images `(N, H, W, C)` like those of training; a few hundred are enough.

    Call: images `(N, H, W, C)` -> approximately what `model.apply` returns for them.

    Raises:
      InputError: the network is not in float32, there are no images, or native code doesn't compute
        in 8 bits on this machine.

    Examples:
      >>> import flaxres
      >>> compiler = flaxres.use_native_convolutions()
      >>> model = flaxres.ResNet20()
      >>> images = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)
      >>> variables = model.init(jax.random.key(0), images)
      >>> if is_available():
      ...     logits = Int8Network(model, variables, images)(images)
    """

    def __init__(self, model: Network, variables: Any, images: np.ndarray) -> None:
        super().__init__(model, variables)
        if jnp.dtype(model.dtype) != jnp.float32:
            raise InputError(f"8 bits take the place of float32, and the network is {model.dtype}")
        if not is_available():
            raise InputError(
                "8 bits need a processor with AVX512_VNNI and flaxres.use_native_convolutions(): "
                "compute in float32 or bfloat16 here"
            )
        if not len(images):
            raise InputError("8 bits need images that tell the largest activations: give some")
        self._steps = self._measured(images)
        self._arrays.clear()  # kernels in float32, most of which are not needed any more

    def _within_a_program(self, images: Any) -> Any:
        raise InputError("8 bits are not traced: call the network outside of jax.jit")

    def _measured(self, images: np.ndarray) -> dict[int, float]:
        """Returns the steps of the images of each chain, by the key of its kernel."""
        programs: dict[Any, Callable[[Any], dict[int, tuple[Any, Any]]]] = {}
        lowest: dict[int, float] = {}
        highest: dict[int, float] = {}
        for first in range(0, len(images), TOGETHER):
            part = images[first : first + TOGETHER]
            if part.shape not in programs:
                programs[part.shape] = self._extremes(part)
            for key, (low, high) in programs[part.shape](part).items():
                lowest[key] = min(float(low), lowest.get(key, np.inf))
                highest[key] = max(float(high), highest.get(key, 0.0))
        return {
            key: high / LARGEST for key, high in highest.items() if lowest[key] >= 0 and high > 0
        }

    def _extremes(self, images: Any) -> Callable[[Any], dict[int, tuple[Any, Any]]]:
        """Returns a program of the lowest and highest number that each chain convolves."""
        graph, _ = self._graph(images)
        items = list(chains(graph))
        read = {item.kernel.key: item.operands[0] for item in items if isinstance(item, Chain)}

        def extremes(values: Callable[[Value], Any]) -> dict[int, tuple[Any, Any]]:
            arrays = {key: values(value) for key, value in read.items()}
            return {key: (array.min(), array.max()) for key, array in arrays.items()}

        return self._jitted(graph, items, extremes)

    def _items(self, graph: Graph) -> list[Operation]:
        return list(in_eight_bits(list(chains(graph)), graph.results, self._steps))
