"""Exports a network: a program that needs only jax, weights, a model card and a server."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from flaxres.config.files import from_json
from flaxres.data.augment import normalise
from flaxres.errors import InputError, writing_to
from flaxres.inference import to_onnx
from flaxres.inference.artifacts import (
    ONNX,
    ONNX_IN_8_BITS,
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
from flaxres.inference.served import takes_photographs
from flaxres.models.stage import unroll
from flaxres.ops.norm import at_least_float32
from flaxres.paths import completed
from flaxres.printing import say
from flaxres.serving.model import CLASSES, PREPROCESS, PROGRAM
from flaxres.training.evaluation import Evaluator, evaluation_batches
from flaxres.training.losses import probabilities
from flaxres.training.run import Run, prepare_run
from flaxres.training.staging import local
from flaxres.training.state import State
from flaxres.training.workdir import CONFIG
from flaxres.weights.transfer import save_weights

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
      folder: the folder.
      program_bytes: size of the program.
      weights_bytes: size of the weights.
      folded: number of batch norms that are now part of a convolution.
      accuracy: by `top1_trained`, `top1_exported` and `top1_onnx_int8` in [0, 1], and the number of
        `examples` of the run's evaluation; empty without a run.
    """

    folder: pathlib.Path
    program_bytes: int
    weights_bytes: int
    folded: int
    accuracy: dict[str, float]


def export(
    predictor: Predictor,
    folder: pathlib.Path,
    form: Form | None = None,
    *,
    workdir: str | None = None,
    typical: Sequence[Any] = (),
) -> Exported:
    """Exports a network into a folder.

    Writes the program, for any batch size and for CPUs, CUDA and TPUs; the weights as they were
    trained; the names of the classes; a model card; and a server.

    Args:
      predictor: the network.
      folder: the folder; it is created.
      form: the form of the program; None is the default `Form`.
      workdir: of the network's run, on whose evaluation split the accuracy is measured; None
        measures none.
      typical: paths, encoded bytes or PIL images, a few hundred like those to predict: the program
        is also written as ONNX in 8 bits. Needs `form.onnx`.

    Raises:
      InputError: the folder can't be written, a package that ONNX needs is not installed, the
        network can't be converted, or a typical image can't be read.

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
    require_ready(folder, form, bool(typical))
    trained = unrolled(predictor)
    predictor = in_float32(trained)
    inputs = typical_inputs(predictor, form, typical)
    variables, count = prepared(predictor, form)
    run, accuracy = _measured(workdir, trained.variables, variables)
    content = _serialised(predictor, variables, form)
    with writing_to(folder), completed(folder) as part:
        if form.onnx:
            _write_onnx(predictor, variables, form, inputs, part)
        if inputs and run is not None:
            accuracy["top1_onnx_int8"] = onnx_accuracy(run, form, part / ONNX_IN_8_BITS)
        sentence = accuracy_sentence(accuracy)
        card = model_card(predictor, form, count, sentence, len(content), PLATFORMS)
        (part / PROGRAM).write_bytes(content)
        (part / README).write_text(card, encoding="utf-8")
        _write_others(trained, form, part)
        written = {path.name for path in part.iterdir()}
    _remove_others(folder, written)
    size = (folder / WEIGHTS).stat().st_size
    return Exported(folder, len(content), size, count, accuracy)


def typical_inputs(predictor: Predictor, form: Form, images: Sequence[Any]) -> list[np.ndarray]:
    """Returns images as the program takes them, without the first dimension.

    Raises:
      InputError: an image can't be read, or the network takes no colours.
    """
    if images and not takes_photographs(predictor):
        raise InputError(
            f"the network takes {predictor.model.in_channels}-channel images, and image files give "
            "3 channels: export it without 8 bits"
        )
    preprocess = predictor.preprocess
    crops = [preprocess.crop(image) for image in images]
    return crops if form.pixels else [preprocess.normalised(crop) for crop in crops]


def _measured(
    workdir: str | None, trained: Any, exported: Any
) -> tuple[Run | None, dict[str, float]]:
    """Returns the run of a workdir and its accuracies, or says why there are none."""
    if workdir is None:
        return None, {}
    try:
        run = evaluation_run(workdir)
        return run, accuracies(run, trained, exported)
    except InputError as error:
        say(f"flaxres: the accuracy is not measured: {error}")
        return None, {}


def _serialised(predictor: Predictor, variables: Any, form: Form) -> bytes:
    """Returns the program for any batch size and all platforms."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = _abstract_images(predictor, form, batch)
    function = jax.jit(program(predictor, variables, form))
    return bytes(jax.export.export(function, platforms=PLATFORMS)(images).serialize())


def _write_onnx(
    predictor: Predictor, variables: Any, form: Form, inputs: list[np.ndarray], folder: pathlib.Path
) -> None:
    """Writes the program as ONNX, and in 8 bits if there are inputs."""
    images = _abstract_images(predictor, form, "batch")
    to_onnx.write_onnx(program(predictor, variables, form), images, folder / ONNX)
    if inputs:
        to_onnx.write_in_8_bits(folder / ONNX, inputs, folder / ONNX_IN_8_BITS)


def _remove_others(folder: pathlib.Path, written: set[str]) -> None:
    """Removes files of an earlier export, which describe another network."""
    with writing_to(folder):
        for stale in {ONNX, ONNX_IN_8_BITS, SERVER, PREPROCESS} - written:
            (folder / stale).unlink(missing_ok=True)


def _write_others(trained: Predictor, form: Form, folder: pathlib.Path) -> None:
    """Writes the names of the classes, the server and the weights."""
    names = json.dumps(trained.classes, ensure_ascii=False, indent=0)
    (folder / CLASSES).write_text(names + "\n", encoding="utf-8")
    if has_server(trained, form):
        write_server(folder, trained.preprocess)
    save_weights(
        folder / WEIGHTS,
        trained.variables,
        trained.model,
        trained.preprocess,
        trained.classes,
        multi_label=trained.multi_label,
    )


def require_ready(folder: pathlib.Path, form: Form, in_8_bits: bool) -> None:
    """Creates the folder, before anything is computed.

    Raises:
      InputError: the folder can't be written, a package that ONNX needs is not installed, or
        8 bits are wanted without ONNX.
    """
    if form.onnx:
        to_onnx.require_converter(in_8_bits)
    elif in_8_bits:
        raise InputError("typical images without form.onnx: ONNX alone is written in 8 bits")
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)


def unrolled(predictor: Predictor) -> Predictor:
    """Returns the predictor with `scan_blocks=False`."""
    model, variables = unroll(predictor.model, predictor.variables)
    return dataclasses.replace(predictor, model=model, variables=variables)


def in_float32(predictor: Predictor) -> Predictor:
    """Returns the predictor in float32 if its dtype has 16 bits.

    ONNX Runtime has no convolutions of bfloat16 on CPUs, and XLA's CPU compiler slow ones.
    """
    model = predictor.model.clone(dtype=at_least_float32(predictor.model.dtype))
    return dataclasses.replace(predictor, model=model)


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


def _abstract_images(predictor: Predictor, form: Form, batch: Any) -> jax.ShapeDtypeStruct:
    side, channels = predictor.preprocess.size, predictor.model.in_channels
    dtype = jnp.uint8 if form.pixels else jnp.float32
    return jax.ShapeDtypeStruct((batch, side, side, channels), dtype)


def evaluation_run(workdir: str) -> Run:
    """Returns a run to evaluate exported programs: no mirror images, shifts or scanned blocks.

    Raises:
      InputError: its dataset is not there.
    """
    config = from_json(local(workdir, "none") / CONFIG)
    data = dataclasses.replace(config.data, eval_flip=False, eval_shift=0)
    model = dataclasses.replace(config.model, scan_blocks=False)
    return prepare_run(dataclasses.replace(config, data=data, model=model), training=False)


def accuracies(run: Run, trained: Any, exported: Any) -> dict[str, float]:
    """Evaluates variables as trained and as exported, on every example of a run's split.

    Args:
      run: of `evaluation_run`.
      trained: variables, evaluated in the dtype of the run.
      exported: variables, evaluated in float32 if that dtype has 16 bits.

    Returns:
      `top1_trained` and `top1_exported` in [0, 1], and the number of `examples`.
    """
    before = Evaluator(run)
    dtype: Any = str(at_least_float32(run.config.model.compute_dtype))
    model = dataclasses.replace(run.config.model, dtype=dtype)
    config = dataclasses.replace(run.config, model=model)
    same = dtype == run.config.model.compute_dtype
    after = before if same else Evaluator(dataclasses.replace(run, config=config))
    report, exported_report = before(_state(trained)), after(_state(in_floats(exported)))
    return {
        "top1_trained": report.top1,
        "top1_exported": exported_report.top1,
        "examples": exported_report.examples,
    }


def _state(variables: Any) -> State:
    statistics = variables.get("batch_stats", {})
    return State(jnp.zeros((), jnp.int32), variables["params"], statistics, ())


def onnx_accuracy(run: Run, form: Form, path: pathlib.Path) -> float:
    """Returns top-1 in [0, 1] of an ONNX file, on every example of a run's evaluation split."""
    data, labels = run.config.data, []

    def inputs() -> Iterator[np.ndarray]:
        for batch in evaluation_batches(run):
            real = np.asarray(batch["weight"]) > 0
            labels.append(np.asarray(batch["label"])[real])
            images = jnp.asarray(batch["image"])
            if not form.pixels:
                images = normalise(images, data.mean, data.std, jnp.float32)
            yield np.asarray(images)[real]

    best = np.concatenate([rows.argmax(1) for rows in to_onnx.outputs(path, inputs())])
    expected = np.concatenate(labels)
    if expected.ndim == 1:
        return float((best == expected).mean())
    labelled = expected.any(1)  # of several labels one must be the likeliest class
    return float(expected[np.arange(len(best)), best][labelled].mean())


def accuracy_sentence(accuracy: dict[str, float]) -> str:
    """Returns the accuracy for people.

    Examples:
      >>> accuracy_sentence({"top1_trained": 0.93, "top1_exported": 0.92, "examples": 5000})
      'top-1 92.00% of 5,000 evaluation examples, 93.00% as trained'
    """
    if not accuracy:
        return "not measured here"
    exported, trained = (100 * accuracy[f"top1_{name}"] for name in ("exported", "trained"))
    sentence = f"top-1 {exported:.2f}% of {accuracy['examples']:,} evaluation examples, "
    sentence += f"{trained:.2f}% as trained"
    if "top1_onnx_int8" in accuracy:
        sentence += f", {100 * accuracy['top1_onnx_int8']:.2f}% with {ONNX_IN_8_BITS}"
    return sentence
