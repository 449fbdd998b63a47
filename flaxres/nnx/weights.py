"""Weights of NNX networks: the files and the hub of `flaxres.weights`."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

import flaxres
from flaxres.nnx._call import value_of, write
from flaxres.nnx.conversion import from_linen, leaves_of, to_linen
from flaxres.nnx.network import Network
from flaxres.weights import transfer


def load_weights(
    model: Network, path: str | os.PathLike[str], adapt: bool = False, ema: bool = True
) -> None:
    """Reads weights from a file into a network.

    Args:
      model: the network; its parameters and statistics are replaced.
      path: as in `flaxres.load_weights`.
      adapt: as in `flaxres.load_weights`: re-initialise a head with another number of classes, and
        adapt a first convolution with another number of channels.
      ema: read the averaged weights of a training checkpoint that has them.

    Raises:
      InputError: the file can't be read, or a layer of the network was replaced.
      WeightsError: the weights don't fit the network; its attributes have every leaf.

    Examples:
      >>> import flaxres.nnx, tempfile
      >>> file = os.path.join(tempfile.mkdtemp(), "resnet9.safetensors")
      >>> model = flaxres.nnx.ResNet9(depths=(1,), widths=(4,), stem_width=4, rngs=nnx.Rngs(0))
      >>> flaxres.nnx.save_weights(file, model)
      >>> other = flaxres.nnx.ResNet9(depths=(1,), widths=(4,), stem_width=4, rngs=nnx.Rngs(1))
      >>> flaxres.nnx.load_weights(other, file)
      >>> bool((other.conv1.kernel == model.conv1.kernel).all())
      True
    """
    network, _ = to_linen(model)
    variables = transfer.load_weights(path, network, adapt, ema)
    for leaf in leaves_of(model):
        value: Any = variables
        for name in leaf.path:
            value = value[name]
        old = value_of(getattr(leaf.holder, leaf.path[-1]))
        value = value.reshape(old.shape)
        if isinstance(sharding := getattr(old, "sharding", None), jax.sharding.NamedSharding):
            value = jax.device_put(value, sharding)
        write(leaf.holder, leaf.path[-1], value)


def save_weights(
    path: str | os.PathLike[str],
    model: Network,
    preprocess: Any = None,
    classes: Sequence[str] = (),
    *,
    multi_label: bool = False,
) -> None:
    """Writes the weights of a network to a safetensors file in torchvision's and timm's naming.

    Args:
      path: of the file; an existing one is replaced.
      model: the network.
      preprocess: of the images, as in `flaxres.save_weights`.
      classes: names of the classes in label order.
      multi_label: images have any number of labels, as in `flaxres.save_weights`.

    Raises:
      InputError: the file can't be written, or a layer of the network was replaced.

    Examples:
      >>> import flaxres.nnx, tempfile
      >>> file = os.path.join(tempfile.mkdtemp(), "resnet9.safetensors")
      >>> model = flaxres.nnx.ResNet9(depths=(1,), widths=(4,), stem_width=4, rngs=nnx.Rngs(0))
      >>> model.fc = nnx.Linear(4, 2, rngs=nnx.Rngs(1))
      >>> flaxres.nnx.save_weights(file, model, classes=("cat", "dog"))
      >>> linen = flaxres.ResNet9(depths=(1,), widths=(4,), stem_width=4, num_classes=2)
      >>> flaxres.load_weights(file, linen)["params"]["fc"]["kernel"].shape
      (4, 2)
    """
    network, variables = to_linen(model)
    transfer.save_weights(path, variables, network, preprocess, classes, multi_label=multi_label)


def load_pretrained(
    tag: str,
    *,
    rngs: nnx.Rngs | None = None,
    num_classes: int | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    resolution: str = "input",
    **attributes: Any,
) -> tuple[Network, Any]:
    """Creates a network with weights from the hub, or from a folder in the hub's form.

    Args:
      tag: as in `flaxres.load_pretrained`.
      rngs: gives the keys of dropout and stochastic depth; None where the network has none.
      num_classes: number of classes; another than the weights' re-initialises the head.
      revision: branch, tag or commit of the repository.
      cache_dir: folder in place of the hub's usual cache.
      resolution: 'input' or 'test', as in `flaxres.load_pretrained`.
      **attributes: as in `flaxres.load_pretrained`.

    Returns:
      `(model, preprocess)`. The network is in training mode: call `eval()` before inference.

    Raises:
      InputError: as `flaxres.load_pretrained`.
      ImportError: a package of the extra `train` is missing.

    Examples:
      >>> import flaxres.nnx, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> model = flaxres.nnx.create_model("test_resnet", num_classes=2, rngs=nnx.Rngs(0))
      >>> flaxres.nnx.save_pretrained(folder, model, classes=("cat", "dog"))
      >>> model, preprocess = flaxres.nnx.load_pretrained(folder)
      >>> model.fc.bias.shape, preprocess.classes
      ((2,), ('cat', 'dog'))
    """
    model, variables, preprocess = flaxres.load_pretrained(
        tag,
        num_classes=num_classes,
        revision=revision,
        cache_dir=cache_dir,
        resolution=resolution,
        **attributes,
    )
    return from_linen(model, variables, rngs=rngs), preprocess


def save_pretrained(
    folder: str | pathlib.Path,
    model: Network,
    preprocess: Any = None,
    classes: Sequence[str] = (),
    **card: Any,
) -> None:
    """Writes a network into a folder that `load_pretrained` and timm load.

    Args:
      folder: as in `flaxres.save_pretrained`.
      model: the network.
      preprocess: of the images; None is `Preprocess()`.
      classes: names of the classes in label order.
      **card: `about`, `license` and `multi_label`, as in `flaxres.save_pretrained`.

    Raises:
      InputError: as `flaxres.save_pretrained`, or a layer of the network was replaced.
      ImportError: a package of the extra `train` is missing.

    Examples:
      >>> import flaxres.nnx, tempfile
      >>> folder = tempfile.mkdtemp()
      >>> model = flaxres.nnx.create_model("test_resnet", rngs=nnx.Rngs(0))
      >>> flaxres.nnx.save_pretrained(folder, model, license="apache-2.0")
      >>> sorted(os.listdir(folder))
      ['README.md', 'config.json', 'model.safetensors']
    """
    network, variables = to_linen(model)
    flaxres.save_pretrained(folder, network, variables, preprocess, classes, **card)
