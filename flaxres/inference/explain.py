"""Grad-CAM and integrated gradients: the pixels that a network's score of a class depends on."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from flaxres.errors import InputError, unknown
from flaxres.models.network import Network
from flaxres.models.outputs import layer_name, recorded
from flaxres.models.stage import SCANNED
from flaxres.ops.norm import at_least_float32


def grad_cam(
    model: Network,
    variables: Any,
    images: Float[ArrayLike, "n h w c"],
    classes: Int[ArrayLike, " n"] | int | None = None,
    layer: str | None = None,
    upsample: bool = True,
) -> Float[Array, "n h2 w2"]:
    """Computes Grad-CAM maps (Selvaraju et al. 2017, "Grad-CAM", eq. 1 and 2).

    With the maps `A_k` of a layer and the logit `y` of a class, the weight of channel k is the
    mean over all pixels of `dy / dA_k`, and the result is `relu(sum_k weight_k A_k)`. Each map is
    scaled linearly so that its least value is 0 and its largest 1; a map that is 0 everywhere
    remains so.

    Args:
      model: a network with classes.
      variables: its variables.
      images: normalised images, as the network takes them.
      classes: number of the class for each image, or one for all images; None takes the likeliest.
      layer: a feature map, `stage1`, `stage2` and so on, or the name of a layer with such a map, as
        in `flaxres.summary`; None takes the last stage. The maps of a ResNetV2 are sums before any
        norm; `norm` is the map after the last one, as is `features.norm5` of a DenseNet-121.
      upsample: interpolate the map bilinearly to the height and width of the images, with centres
        of pixels aligned (OpenCV's `INTER_LINEAR`), before it is scaled. Otherwise the result has
        the height and width of the layer's map.

    Returns:
      Maps in [0, 1], in float32 or wider.

    Raises:
      InputError: a class or the layer is unknown, or the network has no classes.

    Examples:
      >>> import flaxres
      >>> model = flaxres.ResNet9(depths=(1, 1), widths=(4, 8), stem_width=4, num_classes=3)
      >>> images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> grad_cam(model, variables, images, classes=2).shape
      (2, 16, 16)
      >>> grad_cam(model, variables, images, layer="stage1", upsample=False).shape
      (2, 8, 8)
    """
    chosen = _checked_classes(model, images, classes)
    model = model.clone(remat=False)  # a value inside of a recomputed block can't be returned
    maps: jax.Array = _grad_cam(model, layer, upsample, variables, jnp.asarray(images), chosen)
    return maps


def integrated_gradients(
    model: Network,
    variables: Any,
    images: Float[ArrayLike, "n h w c"],
    classes: Int[ArrayLike, " n"] | int | None = None,
    baseline: Float[ArrayLike, "..."] | float = 0.0,
    steps: int = 50,
) -> Float[Array, "n h w c"]:
    """Computes integrated gradients (Sundararajan et al. 2017, "Axiomatic attribution", eq. 1).

    With the logit F of a class, an image x and a baseline b, the result is `(x - b)` times the
    mean of the gradient of F along the straight line from b to x. As in eq. 3 the mean is that of
    `steps` points. Here they are the midpoints of equal intervals, whose error is smaller than
    that of their ends. The attributions of an image add up to `F(x) - F(b)` (completeness,
    proposition 1), but for that error.

    Args:
      model: a network with classes.
      variables: its variables.
      images: normalised images, as the network takes them.
      classes: number of the class for each image, or one for all images; None takes the likeliest.
      baseline: an image without information, normalised as `images` are; any shape that broadcasts
        to theirs. 0 is the mean colour of the normalisation, `-mean / std` is black.
      steps: points at which the gradient is computed (Sundararajan et al. use 20 to 300).

    Returns:
      The attribution of each value of the images, in float32 or wider.

    Raises:
      InputError: a class is unknown, `baseline` has another shape, `steps` is below 1, or the
        network has no classes.

    Examples:
      >>> import flaxres
      >>> model = flaxres.ResNet9(depths=(1, 1), widths=(4, 8), stem_width=4, num_classes=3)
      >>> images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
      >>> variables = model.init(jax.random.key(1), images)
      >>> sums = integrated_gradients(model, variables, images, classes=2).sum((1, 2, 3))
      >>> logits = model.apply(variables, images) - model.apply(variables, 0 * images)
      >>> bool(abs(sums - logits[:, 2]).max() < 0.01 * abs(logits[:, 2]).max())
      True
    """
    chosen = _checked_classes(model, images, classes)
    if steps < 1:
        raise InputError(f"steps (={steps}): the rule is >= 1")
    images = jnp.asarray(images)
    try:
        start = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    except ValueError as error:
        raise InputError(
            f"baseline has shape {jnp.shape(baseline)}: the rule is a shape that broadcasts to "
            f"that of the images, {images.shape}"
        ) from error
    result: jax.Array = _integrated_gradients(model, variables, images, start, chosen, steps)
    return result


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _grad_cam(
    model: Network,
    layer: str | None,
    upsample: bool,
    variables: Any,
    images: jax.Array,
    classes: jax.Array | None,
) -> jax.Array:
    """Computes `grad_cam` by the gradient of a change of the layer's output, which is 0."""
    name, shape = _map_of(model, variables, images, layer)

    def score(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        maps: list[jax.Array] = []

        def changed(output: jax.Array) -> jax.Array:
            maps.append(output)
            return output + change.astype(output.dtype)

        with _output_of(name, changed):
            logits: Any = model.apply(variables, images)
        return _of_classes(logits, classes).sum(), maps[0]

    wide = at_least_float32(model.dtype)
    gradient, maps = jax.grad(score, has_aux=True)(jnp.zeros(shape, wide))
    weights = gradient.mean((1, 2), keepdims=True)
    cam = jax.nn.relu((weights * maps.astype(wide)).sum(-1))
    if upsample:
        cam = jax.image.resize(cam, images.shape[:3], "linear", antialias=False)
    cam = cam - cam.min((1, 2), keepdims=True)
    largest = cam.max((1, 2), keepdims=True)
    scaled: jax.Array = cam / jnp.where(largest > 0, largest, 1)
    return scaled


@functools.partial(jax.jit, static_argnums=0)
def _integrated_gradients(
    model: Network,
    variables: Any,
    images: jax.Array,
    start: jax.Array,
    classes: jax.Array | None,
    steps: int,
) -> jax.Array:
    """Computes `integrated_gradients` from the baseline `start`, step after step."""
    logits: Any = model.apply
    if classes is None:
        classes = logits(variables, images).argmax(-1)
    wide = at_least_float32(images.dtype)

    def score(x: jax.Array) -> jax.Array:
        return _of_classes(logits(variables, x), classes).sum()

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        share = ((step + 0.5) / steps).astype(images.dtype)
        gradient: jax.Array = jax.grad(score)(start + share * (images - start))
        return total + gradient.astype(wide)

    total = jax.lax.fori_loop(0, steps, add, jnp.zeros(images.shape, wide))
    attributions: jax.Array = (images - start).astype(wide) * total / steps
    return attributions


def _of_classes(
    logits: Float[Array, "n k"], classes: Int[Array, " n"] | None
) -> Float[Array, " n"]:
    """Returns the logit of each image's class; None takes the likeliest."""
    if classes is None:
        classes = logits.argmax(-1)
    chosen: jax.Array = jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]
    return chosen


def _checked_classes(
    model: Network, images: Any, classes: Int[ArrayLike, " n"] | int | None
) -> Int[Array, " n"] | None:
    """Returns a class for each image, None for the likeliest.

    Raises:
      InputError: they are not classes of the network, or not one for each image.
    """
    if not model.num_classes:
        raise InputError(
            "the network has no classes (num_classes=0) to explain: create it with a head"
        )
    if classes is None:
        return None
    count = len(images)
    if jnp.shape(classes) not in ((), (count,)):
        raise InputError(
            f"classes have shape {jnp.shape(classes)}: the rule is one number for each of the "
            f"{count} images, or one for all"
        )
    if not jnp.issubdtype(jnp.result_type(classes), jnp.integer):
        raise InputError(f"classes are {jnp.result_type(classes)}: the rule is integers")
    if not isinstance(classes, jax.core.Tracer):
        numbers = np.atleast_1d(np.asarray(classes))
        for number in numbers[(numbers < 0) | (numbers >= model.num_classes)]:
            raise InputError(f"class {number} is unknown: the rule is 0 to {model.num_classes - 1}")
    return jnp.broadcast_to(jnp.asarray(classes), (count,))


def _map_of(
    model: Network, variables: Any, images: Any, layer: str | None
) -> tuple[str, tuple[int, ...]]:
    """Returns the name of the layer of a feature map, and the shape of its output.

    Raises:
      InputError: no layer has this name, or its output is no feature map.
    """
    with recorded() as shapes:
        jax.eval_shape(model.apply, variables, images)
    stages = {f"stage{i}": name for i, name in enumerate(model.stage_layers(), 1)}
    name = list(stages.values())[-1] if layer is None else stages.get(layer, layer)
    # Within the loop of a scan a block has no output of its own.
    maps = [
        name for name, shape in shapes.items() if len(shape) == 4 and SCANNED not in name.split(".")
    ]
    if name not in maps:
        raise unknown("layer with a feature map", layer, [*stages, *maps])
    if shapes[name][1:3] == (1, 1):
        raise InputError(
            f"layer {layer or name!r} has a map of one pixel for images of {images.shape[1]}x"
            f"{images.shape[2]}: give larger images, or an earlier layer"
        )
    return name, shapes[name]


@contextlib.contextmanager
def _output_of(name: str, function: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
    """Replaces the output of a layer by a function of it."""

    def replace(
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        output = call(*arguments, **keywords)
        here = context.method_name == "__call__" and layer_name(context.module) == name
        return function(output) if here else output

    with nn.intercept_methods(replace):
        yield
