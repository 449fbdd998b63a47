"""Writes an exported program as ONNX: as it is, and with its convolutions in 8 bits.

jax2onnx converts the program. onnxruntime's own tools put pairs of `QuantizeLinear` and
`DequantizeLinear` around its operations ("QDQ"), which ONNX Runtime then computes in 8 bits.
"""

import contextlib
import importlib
import logging
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from flaxres.errors import InputError
from flaxres.ops.kept import jax_operations_only

# jax2onnx pins an older Orbax than training needs; the conversion needs these packages of it.
GET_ONNX = "pip install onnx onnxruntime onnx-ir equinox && pip install --no-deps jax2onnx"
# Images that onnxruntime runs at once to find the largest activations.
TOGETHER = 32


def require_converter(in_8_bits: bool) -> None:
    """Raises InputError if a package that the conversion needs is not installed."""
    try:
        importlib.import_module("jax2onnx")
        if in_8_bits:
            importlib.import_module("onnxruntime.quantization")
    except ModuleNotFoundError as error:
        raise InputError(
            f"--onnx needs {error.name}, best in an environment that only exports: {GET_ONNX}"
        ) from error


@contextlib.contextmanager
def errors_only(name: str | None) -> Iterator[None]:
    """Silences the warnings of a logger; None is the root."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_onnx(
    function: Callable[[jax.Array], jax.Array], images: jax.ShapeDtypeStruct, path: pathlib.Path
) -> None:
    """Writes a function of images as ONNX.

    It is traced with JAX's own operations; those that suit one compiler mean nothing there.

    Args:
      function: the function.
      images: its argument; the first dimension may have a name in place of a size.
      path: the file.

    Raises:
      InputError: jax2onnx can't convert it.
    """
    jax2onnx: Any = importlib.import_module("jax2onnx")
    # It warns of each of its converters that this version of JAX does not suit.
    with (
        converting(
            "jax2onnx can't convert this network",
            "without --onnx, or with another version of jax2onnx",
        ),
        jax_operations_only(),
        errors_only("jax2onnx"),
    ):
        jax2onnx.to_onnx(function, [images], return_mode="file", output_path=str(path))


def write_in_8_bits(source: pathlib.Path, images: Sequence[np.ndarray], path: pathlib.Path) -> None:
    """Writes an ONNX file again, in 8 bits from its first to its last convolution.

    Kernels are rounded by output channel, activations by array, from the smallest to the largest
    value that the images give (Jacob et al. 2018, section 2).

    Args:
      source: the file.
      images: inputs of the program without their first dimension, a few hundred like those to
        predict.
      path: the new file.

    Raises:
      InputError: onnxruntime's tools can't convert it.
    """
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    # quantize_static warns, by the root logger, that a model should be preprocessed.
    with (
        converting(
            "onnxruntime can't put this network in 8 bits",
            "with --onnx alone, or with another version of onnxruntime",
        ),
        errors_only(None),
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        folded = pathlib.Path(folder) / "folded.onnx"
        shapes.quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        graph = onnx.load(folded).graph
        quantization.quantize_static(
            str(folded),
            str(path),
            Batches(graph.input[0].name, images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=beside_convolutions(graph.node),
        )


@contextlib.contextmanager
def converting(failure: str, fix: str) -> Iterator[None]:
    """Turns the errors of a converter, which are of many types, into an InputError.

    Args:
      failure: what could not be done.
      fix: the way to export instead.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{failure} ({reason}): export {fix}") from error


def beside_convolutions(nodes: Sequence[Any]) -> list[str]:
    """Returns the names of the operations before the first convolution and behind the last one.

    They normalise pixels, and are the head: rounded probabilities would tie.
    """
    places = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    return [node.name for i, node in enumerate(nodes) if not places[0] <= i <= places[-1]]


class Batches:
    """Batches of images as `onnxruntime.quantization` reads them.

    Args:
      name: of the program's input.
      images: the images.
    """

    def __init__(self, name: str, images: Sequence[np.ndarray]) -> None:
        self._batches = iter(
            {name: np.stack(images[first : first + TOGETHER])}
            for first in range(0, len(images), TOGETHER)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch, None after the last one."""
        return next(self._batches, None)


def outputs(path: pathlib.Path, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the result of a file for each batch of inputs."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for batch in batches:
        yield session.run(None, {given.name: batch})[0]
