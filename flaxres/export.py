"""`flaxres export`: a network that leaves the trainer: a program that needs jax alone, its weights, its numbers and a script that serves it."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from flaxres.data.augment import normalise
from flaxres.errors import InputError
from flaxres.models.blocks import unstack_blocks
from flaxres.models.count import multiply_accumulates, parameters
from flaxres.models.layers import BatchNorm, Conv
from flaxres.models.network import Network
from flaxres.prediction import Predictor
from flaxres.weights.transfer import save_weights

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS, CARD, CLASSES, SERVER = "model.jax_export", "weights.safetensors", "README.md", "classes.json", "serve.py"
LEVELS = 127

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and the sizes in bytes."""

    folder: pathlib.Path
    program_bytes: int
    weights_bytes: int
    folded: int
    """Batch norms that are now part of a convolution."""


def folded(model: Network, variables: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The variables of a network that answers the same, with each batch norm that follows a convolution made part of its kernel, and their number.

    A norm at rest is a product and a sum by channel (Ioffe & Szegedy 2015, section 3.1, algorithm 2): the product goes into the kernel, the sum stays
    as the norm's bias, and what is left of the norm is the identity, which XLA leaves out of a program whose weights are constants. Norms before
    convolutions (pre-activation networks, DenseNets) and those of standardised kernels stay. `scan_blocks` must be False.
    """
    flat = {kind: dict(flattened(tree)) for kind, tree in variables.items()}
    pairs = convolutions_before_norms(model, variables)
    for convolution, norm, epsilon in pairs:
        params, statistics = flat["params"], flat["batch_stats"]
        mean, var = (np.asarray(statistics[(*norm, name)], np.float64) for name in ("mean", "var"))
        scale, bias = (np.asarray(params[(*norm, name)], np.float64) for name in ("scale", "bias"))
        factor = scale / np.sqrt(var + epsilon)
        for path, value in (
            ((*convolution, "kernel"), np.asarray(params[(*convolution, "kernel")], np.float64) * factor),
            ((*norm, "scale"), np.ones_like(scale)),
            ((*norm, "bias"), bias - mean * factor),
        ):
            params[path] = value.astype(params[path].dtype)
        statistics[(*norm, "mean")] = np.zeros_like(statistics[(*norm, "mean")])
        statistics[(*norm, "var")] = np.full_like(statistics[(*norm, "var")], 1 - epsilon)
    return {kind: nested(leaves) for kind, leaves in flat.items()}, len(pairs)


def convolutions_before_norms(model: Network, variables: Mapping[str, Any]) -> list[tuple[Path, Path, float]]:
    """Paths of each convolution whose very output a batch norm takes, and of that norm, with its epsilon."""
    outputs: dict[int, tuple[Path, Any]] = {}
    pairs = []

    def watch(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, BatchNorm) and id(arguments[0]) in outputs:
            pairs.append((outputs[id(arguments[0])][0], module.path, module.epsilon))
        result = call(*arguments, **options)
        if isinstance(module, Conv) and context.method_name == "__call__" and module.standardise is None and not module.use_bias:
            outputs[id(result)] = module.path, result  # kept alive, so that no other array gets its id
        return result

    images = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(model.apply, variables, images)
    return pairs


def flattened(tree: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    return [
        pair for name, value in tree.items() for pair in (flattened(value, (*path, name)) if isinstance(value, Mapping) else [((*path, name), value)])
    ]


def nested(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eighths:
    """A kernel in whole numbers of 8 bits, and what each output channel's are multiples of."""

    whole: np.ndarray
    step: np.ndarray

    def kernel(self) -> jax.Array:
        return jnp.asarray(self.whole, jnp.float32) * jnp.asarray(self.step)


def in_8_bits(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with every kernel in 8 bits, symmetric and by output channel (Jacob et al. 2018, section 2.1, with a zero point of 0)."""

    def rounded(path: Any, leaf: Any) -> Any:
        if path[-1].key != "kernel":
            return leaf
        kernel = np.asarray(leaf, np.float32)
        step = np.maximum(abs(kernel).max(tuple(range(kernel.ndim - 1))), 1e-12) / LEVELS
        return Eighths(np.rint(kernel / step).astype(np.int8), step.astype(np.float32))

    return jax.tree_util.tree_map_with_path(rounded, dict(variables))


def whole(variables: Any) -> Any:
    """The variables with their 8-bit kernels as float32."""
    return jax.tree.map(lambda leaf: leaf.kernel() if isinstance(leaf, Eighths) else leaf, variables, is_leaf=lambda leaf: isinstance(leaf, Eighths))


def prepared(predictor: Predictor, fold: bool, eight_bits: bool) -> tuple[Any, int]:
    """The variables that are exported, and how many norms were folded."""
    variables, count = folded(predictor.model, predictor.variables) if fold else (predictor.variables, 0)
    return (in_8_bits(variables) if eight_bits else variables), count


def program(predictor: Predictor, variables: Any, pixels: bool) -> Callable[[jax.Array], jax.Array]:
    """`pixels`: (N, S, S, 3) uint8 -> probabilities (N, classes); else normalised float32 -> logits."""
    preprocess = predictor.preprocess

    def answer(images: jax.Array) -> jax.Array:
        if pixels:
            images = normalise(images, preprocess.mean, preprocess.std, jnp.float32)
        whole = jax.tree.map(
            lambda leaf: leaf.kernel() if isinstance(leaf, Eighths) else leaf, variables, is_leaf=lambda leaf: isinstance(leaf, Eighths)
        )
        logits: Any = predictor.model.apply(whole, images)
        return jax.nn.softmax(logits) if pixels else logits

    return answer


def at_rest(predictor: Predictor) -> Predictor:
    """The same, with its blocks one by one."""
    if not predictor.model.scan_blocks:
        return predictor
    model = predictor.model.clone(scan_blocks=False, parent=None)
    return dataclasses.replace(predictor, model=model, variables=unstack_blocks(predictor.variables))


def export(
    predictor: Predictor, folder: pathlib.Path, pixels: bool = True, fold: bool = True, eight_bits: bool = False, measured: str = ""
) -> Exported:
    """Writes the program for any batch size and for CPUs, CUDA and TPUs, the weights, class names, a card with numbers and a server into `folder`.

    `measured` is a sentence about the accuracy for the card. Raises InputError where `folder` can't be written.
    """
    predictor = at_rest(predictor)
    variables, count = prepared(predictor, fold, eight_bits)
    (batch,) = jax.export.symbolic_shape("batch")
    side = predictor.preprocess.size
    shape = jax.ShapeDtypeStruct((batch, side, side, predictor.model.in_channels), jnp.uint8 if pixels else jnp.float32)
    exported = jax.export.export(jax.jit(program(predictor, variables, pixels)), platforms=PLATFORMS)(shape)
    content = exported.serialize()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRAM).write_bytes(content)
        (folder / CLASSES).write_text(json.dumps(predictor.classes, ensure_ascii=False, indent=0) + "\n")
        (folder / CARD).write_text(card(predictor, pixels, count, eight_bits, measured, len(content)))
        if pixels:
            (folder / SERVER).write_text(server(side))
    except OSError as error:
        raise InputError(f"--out {str(folder)!r} can't be written ({error.strerror}): give another folder") from error
    save_weights(folder / WEIGHTS, predictor.variables, predictor.model)
    return Exported(folder, len(content), (folder / WEIGHTS).stat().st_size, count)


def accuracies(workdir: str, predictor: Predictor, fold: bool, eight_bits: bool) -> dict[str, float]:
    """Top-1 on a run's evaluation split, every example once, as trained and as exported."""
    from flaxres.training.config import from_json
    from flaxres.training.evaluation import Evaluator
    from flaxres.training.run import prepare_run
    from flaxres.training.state import State

    config = from_json(pathlib.Path(workdir) / "config.json")
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, eval_flip=False), model=dataclasses.replace(config.model, scan_blocks=False)
    )
    evaluator, predictor = Evaluator(prepare_run(config)), at_rest(predictor)
    reports = []
    for variables in (predictor.variables, whole(prepared(predictor, fold, eight_bits)[0])):
        reports.append(evaluator(State(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], ())))
    return {"top1_trained": reports[0].top1, "top1_exported": reports[1].top1, "examples": reports[1].examples}


def server(side: int) -> str:
    return f'''"""Serves the model beside this file, with jax alone: `python serve.py 8000`. POST {side} x {side} x 3 bytes of RGB for each picture."""

import http.server, json, pathlib, sys
import jax, numpy as np

here = pathlib.Path(__file__).parent
model = jax.jit(jax.export.deserialize((here / "{PROGRAM}").read_bytes()).call)
names = json.loads((here / "{CLASSES}").read_text())

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        pixels = np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.uint8).reshape(-1, {side}, {side}, 3)
        best = [{{names[i]: float(row[i]) for i in np.argsort(-row)[:5]}} for row in np.asarray(model(pixels))]
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(best).encode())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''


def card(predictor: Predictor, pixels: bool, count: int, eight_bits: bool, measured: str, size: int) -> str:
    model, preprocess = predictor.model, predictor.preprocess
    given = "uint8 RGB" if pixels else f"float32, (pixels / 255 - {list(preprocess.mean)}) / {list(preprocess.std)}"
    rows = {
        "network": type(model).__name__ + f", {parameters(model):,} parameters",
        "multiply-accumulates": f"{multiply_accumulates(model, preprocess.size) / 1e9:.3f} thousand million an image",
        "classes": f"{len(predictor.classes):,}, in `{CLASSES}`",
        "input": f"(N, {preprocess.size}, {preprocess.size}, {model.in_channels}) {given}; any N",
        "pictures": f"the short side resized to {preprocess.resize} ({preprocess.interpolation}), the middle {preprocess.size} x {preprocess.size}",
        "output": "(N, classes) float32 " + ("probabilities" if pixels else "logits"),
        "batch norms in kernels": f"{count}",
        "kernels": "8 bits, by output channel" if eight_bits else str(jnp.dtype(model.param_dtype)),
        "devices": ", ".join(PLATFORMS),
        "accuracy": measured or "not measured here",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    serve = f"\n`python {SERVER} 8000` answers on this machine to POSTs of raw pixels.\n" if pixels else ""
    return f"""# {type(model).__name__} of {len(predictor.classes)} classes

| | |
|---|---|
{table}

`{PROGRAM}` ({size / 1e6:.1f} MB, weights included) needs jax and nothing else:

```python
import jax, numpy as np

model = jax.export.deserialize(open("{PROGRAM}", "rb").read())
answers = model.call(images)  # {given.partition(",")[0]}
```
{serve}
`{WEIGHTS}` has the weights before anything was folded or rounded, in torchvision's and timm's naming.
"""
