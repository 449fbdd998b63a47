"""Exports a network: a program that needs only jax, weights, a model card and a server."""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from flaxres.config.files import from_json
from flaxres.data.augment import normalise
from flaxres.errors import InputError, writing_to
from flaxres.inference.artifacts import (
    ONNX,
    README,
    SERVER,
    WEIGHTS,
    Form,
    has_server,
    model_card,
    write_server,
)
from flaxres.inference.fold import folded
from flaxres.inference.predict import Predictor
from flaxres.inference.quantise import in_8_bits, in_floats
from flaxres.models.stage import unroll
from flaxres.ops.kept import jax_operations_only
from flaxres.paths import completed
from flaxres.serving.model import CLASSES, PREPROCESS, PROGRAM
from flaxres.training.evaluation import Evaluator
from flaxres.training.losses import probabilities
from flaxres.training.run import prepare_run
from flaxres.training.staging import local
from flaxres.training.state import State
from flaxres.training.workdir import CONFIG
from flaxres.weights.transfer import save_weights

PLATFORMS = ("cpu", "cuda", "tpu")
# jax2onnx pins an older Orbax than training needs; the conversion needs these packages of it.
GET_ONNX = "pip install onnx onnxruntime onnx-ir equinox && pip install --no-deps jax2onnx"


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
      folder: the folder.
      program_bytes: size of the program.
      weights_bytes: size of the weights.
      folded: number of batch norms that are now part of a convolution.
    """

    folder: pathlib.Path
    program_bytes: int
    weights_bytes: int
    folded: int


def export(
    predictor: Predictor,
    folder: pathlib.Path,
    form: Form | None = None,
    accuracy: str = "not measured here",
) -> Exported:
    """Exports a network into a folder.

    Writes the program, for any batch size and for CPUs, CUDA and TPUs; the weights as they were
    trained; the names of the classes; a model card; and a server.

    Args:
      predictor: the network.
      folder: the folder; it is created.
      form: the form of the program; None is the default `Form`.
      accuracy: a sentence for the model card.

    Raises:
      InputError: the folder can't be written, a package that ONNX needs is not installed, or
        jax2onnx can't convert the network.

    Examples:
      >>> import flaxres, jax, numpy as np, tempfile
      >>> from flaxres.data.preprocess import Preprocess
      >>> model = flaxres.ResNet20(num_classes=2, depths=(1, 1, 1))
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> predictor = Predictor(model, variables, Preprocess(32, 32), ("cat", "dog"))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     exported = export(predictor, pathlib.Path(folder))
      ...     program = jax.export.deserialize((exported.folder / PROGRAM).read_bytes())
      >>> program.call(np.zeros((4, 32, 32, 3), np.uint8)).shape
      (4, 2)
    """
    form = form or Form()
    require_ready(folder, form)
    predictor = unrolled(predictor)
    variables, count = prepared(predictor, form)
    (batch,) = jax.export.symbolic_shape("batch")
    images = _abstract_images(predictor, form, batch)
    function = jax.jit(program(predictor, variables, form))
    content = bytes(jax.export.export(function, platforms=PLATFORMS)(images).serialize())
    card = model_card(predictor, form, count, accuracy, len(content), PLATFORMS)
    with writing_to(folder), completed(folder) as part:
        if form.onnx:
            write_onnx(predictor, variables, form, part / ONNX)
        (part / PROGRAM).write_bytes(content)
        names = json.dumps(predictor.classes, ensure_ascii=False, indent=0)
        (part / CLASSES).write_text(names + "\n", encoding="utf-8")
        (part / README).write_text(card, encoding="utf-8")
        if has_server(predictor, form):
            write_server(part, predictor.preprocess)
        _write_weights(predictor, part / WEIGHTS)
        written = {path.name for path in part.iterdir()}
    with writing_to(folder):  # files of an earlier export describe another network
        for stale in {ONNX, SERVER, PREPROCESS} - written:
            (folder / stale).unlink(missing_ok=True)
    return Exported(folder, len(content), (folder / WEIGHTS).stat().st_size, count)


def _write_weights(predictor: Predictor, path: pathlib.Path) -> None:
    save_weights(
        path,
        predictor.variables,
        predictor.model,
        predictor.preprocess,
        predictor.classes,
        multi_label=predictor.multi_label,
    )


def require_ready(folder: pathlib.Path, form: Form) -> None:
    """Creates the folder, before anything is computed.

    Raises:
      InputError: the folder can't be written, or a package that ONNX needs is not installed.
    """
    if form.onnx:
        try:
            importlib.import_module("jax2onnx")
        except ModuleNotFoundError as error:
            raise InputError(
                f"--onnx needs {error.name}, best in an environment that only exports: {GET_ONNX}"
            ) from error
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)


def unrolled(predictor: Predictor) -> Predictor:
    """Returns the predictor with `scan_blocks=False`."""
    model, variables = unroll(predictor.model, predictor.variables)
    return dataclasses.replace(predictor, model=model, variables=variables)


def prepared(predictor: Predictor, form: Form) -> tuple[Any, int]:
    """Returns the variables to export, and the number of folded norms."""
    variables, count = predictor.variables, 0
    if form.fold:
        variables, count = folded(predictor.model, variables)
    return (in_8_bits(variables) if form.int8 else variables), count


def program(predictor: Predictor, variables: Any, form: Form) -> Callable[[jax.Array], jax.Array]:
    """Returns the function to export.

    With `form.pixels` it maps (N, S, S, 3) uint8 to (N, classes) probabilities, else normalised
    float32 to logits.
    """
    preprocess = predictor.preprocess

    def predict(images: jax.Array) -> jax.Array:
        if form.pixels:
            images = normalise(images, preprocess.mean, preprocess.std, jnp.float32)
        logits: Any = predictor.model.apply(in_floats(variables), images)
        return probabilities(logits, predictor.multi_label) if form.pixels else logits

    return predict


def write_onnx(predictor: Predictor, variables: Any, form: Form, path: pathlib.Path) -> None:
    """Writes the program as ONNX.

    The network is traced with JAX's own operations; those that suit one compiler mean nothing
    there.

    Raises:
      InputError: jax2onnx can't convert it.
    """
    jax2onnx: Any = importlib.import_module("jax2onnx")
    images = _abstract_images(predictor, form, "batch")
    function = program(predictor, variables, form)
    try:
        with jax_operations_only():
            jax2onnx.to_onnx(function, [images], return_mode="file", output_path=str(path))
    except OSError:
        raise
    except Exception as error:  # its many converters raise many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"jax2onnx can't convert this {type(predictor.model).__name__} ({reason}): export "
            "without --onnx, or with another version of jax2onnx"
        ) from error


def _abstract_images(predictor: Predictor, form: Form, batch: Any) -> jax.ShapeDtypeStruct:
    side, channels = predictor.preprocess.size, predictor.model.in_channels
    dtype = jnp.uint8 if form.pixels else jnp.float32
    return jax.ShapeDtypeStruct((batch, side, side, channels), dtype)


def accuracies(workdir: str, predictor: Predictor, form: Form) -> dict[str, float]:
    """Evaluates a run's network as trained and as exported, on every example of its split.

    Returns:
      `top1_trained` and `top1_exported` in [0, 1], and the number of `examples`.
    """
    config = from_json(local(workdir, "none") / CONFIG)
    # The program has no mirror images, no shifts and no scanned blocks.
    data = dataclasses.replace(config.data, eval_flip=False, eval_shift=0)
    model = dataclasses.replace(config.model, scan_blocks=False)
    replaced = dataclasses.replace(config, data=data, model=model)
    evaluator = Evaluator(prepare_run(replaced, training=False))
    predictor = unrolled(predictor)
    reports = []
    for variables in (predictor.variables, in_floats(prepared(predictor, form)[0])):
        statistics = variables.get("batch_stats", {})
        state = State(jnp.zeros((), jnp.int32), variables["params"], statistics, ())
        reports.append(evaluator(state))
    return {
        "top1_trained": reports[0].top1,
        "top1_exported": reports[1].top1,
        "examples": reports[1].examples,
    }
