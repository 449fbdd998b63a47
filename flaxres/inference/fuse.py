"""Programs for inference on CPUs, in which a convolution is one operation with all that follows it.

A batch norm of fixed statistics is a factor and a summand of each channel (Ioffe & Szegedy 2015,
section 3.1, algorithm 2). Native code applies them, the addition of a shortcut and a ReLU to the
sums of a convolution before it stores them, so that no other operation reads or writes them.
Kernels are put in the order in which they are read once, not in each call.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxres.inference.graph import (
    Graph,
    Keys,
    Operation,
    Origin,
    Step,
    Value,
    graph_of,
    known_arrays,
)
from flaxres.models.network import Network
from flaxres.models.stage import unroll
from flaxres.ops import native
from flaxres.ops.convolution import convolution_p, native_pays
from flaxres.ops.fused import fused_convolution, packed, padded
from flaxres.training.xla import compiler_options

# Images that pass through the network together. The activations of more would not stay in the
# processor's caches, and with fewer the kernels are read more often.
TOGETHER = 8


def network_function(model: Network, variables: Any) -> Callable[[Any], Any]:
    """Returns a network as a function of images, in the form that is fastest on this machine.

    On CPUs, after `flaxres.use_native_convolutions`, it is a `FusedNetwork`, whose results differ
    from those of `model.apply` by the order of sums. Elsewhere it is `model.apply` itself, jitted.

    Args:
      model: the network.
      variables: its variables.

    Examples:
      >>> import flaxres
      >>> model = flaxres.ResNet20()
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> network_function(model, variables)(np.ones((2, 32, 32, 3), np.float32)).shape
      (2, 10)
    """
    on_cpu = jax.default_backend() == "cpu" and isinstance(model, Network)
    if on_cpu and native.computes(model.dtype, "inference"):
        return FusedNetwork(model, variables)
    apply = jax.jit(model.apply, compiler_options=compiler_options())
    return functools.partial(apply, variables)


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """A convolution, and the operations behind it that it computes as well.

    Attributes:
      convolution: its operation.
      steps: those behind it, each of which alone reads the result of the one before.
      affine: operations with a number of each channel: a primitive's name and the numbers.
      shortcut: what is added then, or None.
      relu: whether a ReLU follows.
    """

    convolution: Step
    steps: tuple[Step, ...] = ()
    affine: tuple[tuple[str, Value], ...] = ()
    shortcut: Value | None = None
    relu: bool = False

    @property
    def operands(self) -> tuple[Value, ...]:
        """The images that it convolves, and the shortcut if there is one."""
        images = self.convolution.operands[0]
        return (images,) if self.shortcut is None else (images, self.shortcut)

    @property
    def result(self) -> Value:
        return (self.steps or (self.convolution,))[-1].results[0]

    @property
    def results(self) -> tuple[Value, ...]:
        return (self.result,)

    @property
    def kernel(self) -> Value:
        return self.convolution.operands[1]

    @property
    def dtype(self) -> Any:
        return self.convolution.results[0].dtype

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `fused_convolution`."""
        return {
            "features": self.result.shape[-1],
            "size": self.kernel.shape[0],
            "stride": self.convolution.settings["stride"],
            "relu": self.relu,
        }

    def __call__(
        self,
        kernel: jax.Array,
        factor: jax.Array,
        summand: jax.Array,
        images: jax.Array,
        shortcut: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Computes the result; `kernel`, `factor` and `summand` are those of `weights`."""
        return [fused_convolution(images, kernel, factor, summand, shortcut, **self.settings)]

    def keys(self, keys: Keys) -> tuple[int, ...]:
        """Returns the keys of `weights`."""
        affine = tuple((name, value.key) for name, value in self.affine)
        return tuple(
            keys(name, self.kernel.key, affine) for name in ("kernel", "factor", "summand")
        )

    def weights(self, known: Mapping[int, Any]) -> tuple[np.ndarray, ...]:
        """Returns the kernel, factors and summands as `fused_convolution` takes them.

        Args:
          known: the arrays of `kernel` and `affine` by key.
        """
        kernel = np.asarray(known[self.kernel.key])
        return (packed(kernel), *map(padded, self.factors(known)))

    def longer(self, step: Step) -> Chain | None:
        """Returns the chain with a step that reads its result, or None if it can't have it."""
        name = step.primitive.name
        others = [value for value in step.operands if value is not self.result]
        longer = dataclasses.replace(self, steps=(*self.steps, step))
        if name == "convert_element_type":
            return longer if step.results[0].dtype in (self.dtype, np.float32) else None
        if len(others) != 1 or len(step.operands) != 2 or self.relu:
            return None
        (other,) = others
        if name == "max" and other.array is not None and not other.array.any():
            return dataclasses.replace(longer, relu=True)
        if self.shortcut is not None or other.origin == Origin.NOTHING:
            return None
        if other.origin == Origin.VARIABLES:
            by_channel = other.shape in ((1, 1, 1, self.result.shape[-1]), (1, 1, 1, 1))
            first = step.operands[0] is self.result
            if by_channel and (name in ("add", "mul") or (name == "sub" and first)):
                return dataclasses.replace(longer, affine=(*self.affine, (name, other)))
            return None
        if name == "add" and other.shape == self.result.shape and other.dtype == self.dtype:
            return dataclasses.replace(longer, shortcut=other)
        return None

    def factors(self, arrays: Mapping[int, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the factor and the summand of each channel."""
        features = self.result.shape[-1]
        factor, summand = np.ones(features), np.zeros(features)
        for name, value in self.affine:
            numbers = np.asarray(arrays[value.key], np.float64).ravel()
            if name == "mul":
                factor, summand = factor * numbers, summand * numbers
            else:
                summand = summand + (numbers if name == "add" else -numbers)
        return factor, summand


def chains(graph: Graph) -> Iterator[Step | Chain]:
    """Yields the operations of a graph but those on its variables alone, in chains if possible."""
    steps = [step for step in graph.steps if step.origin != Origin.VARIABLES]
    readers = Counter(value for step in steps for value in step.operands)
    readers.update(graph.results)
    waiting: dict[Value, Chain] = {}

    def computed(values: Sequence[Value]) -> Iterator[Step | Chain]:
        for value in values:
            if (chain := waiting.pop(value, None)) is not None:
                # What follows a result of another dtype would read a rounded one.
                count = len(chain.steps)
                while count and chain.steps[count - 1].results[0].dtype != chain.dtype:
                    count -= 1
                yield shortened(chain, count)
                yield from chain.steps[count:]

    for step in steps:
        if step.primitive is convolution_p and fusable(step):
            yield from computed(step.operands)
            waiting[step.results[0]] = Chain(step)
            continue
        for value in step.operands:
            chain = waiting.get(value)
            if chain is None or readers[value] > 1 or (longer := chain.longer(step)) is None:
                continue
            del waiting[value]
            yield from computed(step.operands)
            waiting[step.results[0]] = longer
            break
        else:
            yield from computed(step.operands)
            yield step
    yield from computed(graph.results)


def shortened(chain: Chain, count: int) -> Chain:
    """Returns a chain with its first `count` steps."""
    short = Chain(chain.convolution)
    for step in chain.steps[:count]:
        short = short.longer(step) or short
    return short


def fusable(convolution: Step) -> bool:
    """Returns whether native code computes a convolution with what follows."""
    settings, (images, kernel) = convolution.settings, convolution.operands
    usual = settings["input_dilation"] == 1 and not settings["turned"]
    size, stride = kernel.shape[0], settings["stride"]
    extent = tuple(-(-side // stride) for side in images.shape[1:3])
    weights = images.origin == Origin.IMAGES and kernel.origin == Origin.VARIABLES
    alike = images.dtype == kernel.dtype and size % 2 and settings["extent"] == extent
    return bool(usual and weights and alike and native_pays(kernel))


class FusedNetwork:
    """A network with its variables, for inference on CPUs with native code.

    Args:
      model: the network.
      variables: its variables.

    Call: images `(N, H, W, C)` -> what `model.apply` returns for them. At most `TOGETHER` images
    pass through the network at a time. A program is compiled for each number and size of these on
    first use. All programs share the kernels, of which the network has a copy in another order.
    Within `jax.jit` and other transformations it is `model.apply`.

    Examples:
      >>> import flaxres
      >>> compiler = flaxres.use_native_convolutions()
      >>> model = flaxres.ResNet20()
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> FusedNetwork(model, variables)(np.ones((2, 32, 32, 3), np.float32)).shape
      (2, 10)
    """

    def __init__(self, model: Network, variables: Any) -> None:
        self._model, variables = unroll(model, variables)
        self._leaves, self._tree = jax.tree.flatten(variables)
        self._keys = Keys()
        self._arrays: dict[int, jax.Array] = {}
        self._programs: dict[Hashable, Callable[[Any], Any]] = {}
        self._compiling = threading.Lock()

    def __call__(self, images: Any) -> Any:
        if isinstance(images, jax.core.Tracer):
            return self._within_a_program(images)
        firsts = range(0, max(len(images), 1), TOGETHER)
        parts = [images[first : first + TOGETHER] for first in firsts]
        # One after another: two at a time would share the caches.
        results = [jax.block_until_ready(self._program(part)(part)) for part in parts]
        if len(results) == 1:
            return results[0]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *results)

    def _within_a_program(self, images: Any) -> Any:
        """Computes the results of images that are traced, as XLA does."""
        return self._model.apply(jax.tree.unflatten(self._tree, self._leaves), images)

    def _program(self, images: Any) -> Callable[[Any], Any]:
        """Returns the program for images of a shape."""
        described = (images.shape, str(images.dtype))
        with self._compiling:
            if described not in self._programs:
                self._programs[described] = self._traced(images)
            return self._programs[described]

    def _traced(self, images: Any) -> Callable[[Any], Any]:
        """Returns a program for images of a shape that is not compiled yet."""
        graph, tree = self._graph(images)
        return self._jitted(
            graph,
            self._items(graph),
            lambda values: jax.tree.unflatten(tree, list(map(values, graph.results))),
        )

    def _jitted(
        self,
        graph: Graph,
        items: Sequence[Operation],
        answer: Callable[[Callable[[Value], Any]], Any],
    ) -> Callable[[Any], Any]:
        """Returns a program that computes `items`, and of their values `answer`."""
        keys = [item.keys(self._keys) if isinstance(item, Chain) else () for item in items]

        def program(arrays: Mapping[int, Any], images: Any) -> Any:
            return answer(evaluated(graph, items, keys, arrays, images))

        arrays = self._given(graph, items)
        compiled = jax.jit(program, compiler_options=compiler_options())
        return functools.partial(compiled, arrays)

    def _graph(self, images: Any) -> tuple[Graph, Any]:
        """Returns the network's operations for images of a shape, and the tree of its results."""

        def apply(leaves: Sequence[Any], images: Any) -> Any:
            return self._model.apply(jax.tree.unflatten(self._tree, leaves), images)

        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        traced, shapes = jax.make_jaxpr(apply, return_shape=True)(self._leaves, shape)
        return graph_of(traced, len(self._leaves), self._keys), jax.tree.structure(shapes)

    def _items(self, graph: Graph) -> list[Operation]:
        """Returns what a program computes."""
        return list(chains(graph))

    def _given(self, graph: Graph, items: Sequence[Operation]) -> dict[int, jax.Array]:
        """Returns the arrays that a program takes; those of all programs are kept."""
        taken = [value for item in items for value in item.operands]
        plain = [v for v in (*taken, *graph.results) if v.origin == Origin.VARIABLES]
        of_chains = {chain: chain.keys(self._keys) for chain in items if isinstance(chain, Chain)}
        new = [c for c, keys in of_chains.items() if not self._arrays.keys() >= set(keys)]
        wanted = [v for v in plain if v.key not in self._arrays]
        inner = [v for chain in new for v in (chain.kernel, *(v for _, v in chain.affine))]
        known = known_arrays(graph, [*wanted, *inner], self._leaves)
        self._arrays |= {value.key: known[value.key] for value in wanted}
        for chain in new:
            made = map(jnp.asarray, chain.weights(known))
            self._arrays |= dict(zip(of_chains[chain], made, strict=True))
        keys = [*(v.key for v in plain), *(key for keys in of_chains.values() for key in keys)]
        return {key: self._arrays[key] for key in keys}


def evaluated(
    graph: Graph,
    items: Sequence[Operation],
    keys: Sequence[Sequence[int]],
    arrays: Mapping[int, Any],
    images: Any,
) -> Callable[[Value], Any]:
    """Computes the operations of a graph, and returns the arrays of its values.

    Args:
      graph: gives the value of the images.
      items: its operations.
      keys: of each, those of its weights.
      arrays: weights, and values that depend on the variables, by key.
      images: the images.
    """
    values = {graph.inputs[-1]: images}

    def value(of: Value) -> Any:
        if of.array is not None:
            return of.array
        return arrays[of.key] if of.origin == Origin.VARIABLES else values[of]

    for item, given in zip(items, keys, strict=True):
        results = item(*(arrays[key] for key in given), *map(value, item.operands))
        values.update(zip(item.results, results, strict=True))
    return value
