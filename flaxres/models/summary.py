"""The table of a network's layers: output shapes, parameters and multiply-accumulates.

`flax.linen.tabulate` counts elementwise operations too, and lowers each layer as a program of its
own: 8.9 s for ResNet-50, where two traces of the whole network take 1.2 s (two cores).
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxres.errors import InputError
from flaxres.models.count import in_scopes
from flaxres.models.network import Network
from flaxres.models.outputs import MARK, in_torch, recorded


class Layer(NamedTuple):
    """A row of the table.

    Attributes:
      name: as in PyTorch, e.g. `layer1.0.conv1`.
      output: shape of the layer's output for one image, without the axis of images.
      parameters: trainable parameters; running statistics do not count.
      macs: multiply-accumulates of convolutions and products for one image in inference.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int


def usual_size(model: Network) -> int:
    """Returns the usual pixels of a side: 32 for networks for small images, else 224."""
    return 32 if model.for_small_images else 224


def layers(model: Network, size: int | None = None, depth: int | None = None) -> list[Layer]:
    """Returns the layers that have parameters or multiply-accumulate, in the order of their calls.

    Args:
      model, size, depth: as for `summary`.

    Raises:
      InputError: as `summary`.
    """
    if not isinstance(model, Network):
        raise InputError(
            f"model is {model!r}: the rule is a network, e.g. flaxres.create_model('resnet50')"
        )
    if depth is not None and depth < 1:
        raise InputError(f"depth (={depth}): the rule is >= 1, or None for all layers")
    side = size if size is not None else usual_size(model)
    if side < 1:
        raise InputError(f"size (={size}): the rule is >= 1 pixels")
    # Scanned blocks share one trace, and so have no rows of their own.
    model = model.clone(scan_blocks=False, remat=False)
    images = jax.ShapeDtypeStruct((1, side, side, model.in_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    with recorded() as shapes:
        # First with the stem's pooling after its norm, as in the paper.
        jax.eval_shape(functools.partial(model.apply, features=True), variables, images)
        macs = in_scopes(jax.make_jaxpr(model.apply)(variables, images).jaxpr, MARK)
    parameters: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        parameters[in_torch(name)] += leaf.size
    rows: dict[str, Layer] = {}
    for name in shapes:
        here = (parameters[name], macs[MARK + name])
        if any(here):
            folded = ".".join(name.split(".")[:depth])
            folded = folded if folded in shapes else name  # half a name, such as that of a list
            row = rows.get(folded, Layer(folded, shapes[folded][1:], 0, 0))
            rows[folded] = row._replace(
                parameters=row.parameters + here[0], macs=row.macs + here[1]
            )
    return list(rows.values())


def summary(model: Network, size: int | None = None, depth: int | None = None) -> str:
    """Returns a table of a network's layers.

    A row has the layer's name, its output without the axis of images, its trainable parameters,
    and the multiply-accumulates (MACs) of its convolutions and products for one image in
    inference. Layers without parameters have no row; a norm and the ReLU after it are one layer.
    Nothing is computed or compiled.

    Args:
      model: a network.
      size: height and width of the images in pixels; None is 32 for networks for small images,
        else 224.
      depth: names of a path that are kept: 1 folds `layer1.0.conv1` into `layer1`, 2 into
        `layer1.0`. None keeps all.

    Raises:
      InputError: `model` is no network, `depth` or `size` is below 1, or the network can't take
        images of this size.

    Examples:
      >>> import flaxres
      >>> print(flaxres.summary(flaxres.ResNet20(), depth=1))
      layer     output  parameters        MACs
      conv1   32x32x16         432     442,368
      bn1     32x32x16          32           0
      layer1  32x32x16      14,016  14,155,776
      layer2  16x16x32      51,072  12,976,128
      layer3    8x8x64     203,520  12,976,128
      linear        10         650         640
      total                269,722  40,551,040
    """
    return table(layers(model, size, depth))


def table(rows: Sequence[Layer]) -> str:
    """Returns layers as lines of text, with a line of totals."""
    cells: list[tuple[str, ...]] = [("layer", "output", "parameters", "MACs")]
    for row in rows:
        output = "x".join(map(str, row.output))
        cells.append((row.name, output, f"{row.parameters:,}", f"{row.macs:,}"))
    totals = (sum(row.parameters for row in rows), sum(row.macs for row in rows))
    cells.append(("total", "", *(f"{total:,}" for total in totals)))
    first, *rest = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(
        "  ".join(
            [f"{name:<{first}}", *(f"{cell:>{w}}" for cell, w in zip(line, rest, strict=True))]
        )
        for name, *line in cells
    )
