"""Writes an exported program as ONNX: as it is, and with its convolutions in 8 bits.

jax2onnx converts the program, and onnxruntime's own tools put the pairs of `QuantizeLinear` and
`DequantizeLinear` into it ("QDQ"), which ONNX Runtime, TensorRT and OpenVINO compute in 8 bits.
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


def require_converter() -> None:
    """Raises InputError if a package that the conversion needs is not installed."""
    try:
        importlib.import_module("jax2onnx")
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
    try:
        # It warns of each of its converters that this version of JAX does not suit.
        with jax_operations_only(), errors_only("jax2onnx"):
            jax2onnx.to_onnx(function, [images], return_mode="file", output_path=str(path))
    except OSError:
        raise
    except Exception as error:  # its many converters raise many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"jax2onnx can't convert this network ({reason}): export without --onnx, or with "
            "another version of jax2onnx"
        ) from error


def write_in_8_bits(source: pathlib.Path, images: Sequence[np.ndarray], path: pathlib.Path) -> None:
    """Writes an ONNX file again, with its convolutions and what lies between them in 8 bits.

    Kernels are rounded by output channel, activations by array, from the smallest to the largest
    value that the images give (Jacob et al. 2018, section 2).

    Args:
      source: the file.
      images: inputs of the program without their first dimension, a few hundred like those to
        predict.
      path: the new file.
    """
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    (name,) = (given.name for given in session(source).get_inputs())
    # It warns, by the root logger, that what the first line does has not been done.
    with errors_only(None), tempfile.TemporaryDirectory() as folder:
        folded = pathlib.Path(folder) / "folded.onnx"
        shapes.quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded),
            str(path),
            Batches(name, images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


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


def session(path: pathlib.Path) -> Any:
    """Returns onnxruntime's session of a file, on the CPU."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def outputs(path: pathlib.Path, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the result of a file for each batch of inputs."""
    running = session(path)
    (name,) = (given.name for given in running.get_inputs())
    for batch in batches:
        yield running.run(None, {name: batch})[0]
