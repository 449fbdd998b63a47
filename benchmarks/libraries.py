"""Agreement with libraries whose weights are read: `python -m benchmarks.libraries [--json]`.

Networks of Keras, KerasHub, transformers and open_clip get random weights and are saved by their
library; the file or folder is read here. The program prints the largest difference of the logits,
relative to the largest logit, on two images. A library that is not installed is named and skipped.
None of them is in an extra:

    pip install keras h5py kagglehub && pip install --no-deps keras-hub    # Keras on JAX
    pip install 'transformers<5'    # PyTorch's ResNets, and Flax's, which later versions lack
    pip install open_clip_torch
"""

import importlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np

import flaxres
from benchmarks import command
from benchmarks.parity import difference
from benchmarks.peers import torch_and_timm

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 96, 96, 3)).astype(np.float32)
KERAS_HUB: dict[str, tuple[list[int], str, bool]] = {
    "resnet_18": ([2, 2, 2, 2], "basic_block", False),
    "resnet_50": ([3, 4, 6, 3], "bottleneck_block", False),
    "resnet_v2_50": ([3, 4, 6, 3], "bottleneck_block", True),
    "resnet_vd_50": ([3, 4, 6, 3], "bottleneck_block_vd", False),
}
SMALL = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "resnet-50": {},
    "resnet-50 that strides first": {"downsample_in_bottleneck": True},
    "resnet-18": SMALL,
}


def logits(model: Any, variables: Any, images: Any = IMAGES) -> Any:
    return jax.jit(model.apply)(variables, images)


def fill_keras(model: Any) -> None:
    """Draws the weights of a Keras model, so that none hides a layer."""
    for variable in model.weights:
        name, shape = variable.path.split("/")[-1], variable.shape
        if name in ("gamma", "moving_variance"):
            variable.assign(RNG.uniform(0.5, 1.5, shape))
        elif shape:
            scale = (2 / np.prod(shape[:-1])) ** 0.5 if name == "kernel" else 0.1
            variable.assign(RNG.normal(0, scale, shape))


def keras(folder: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Yields the differences of keras.applications' ResNets, in each form of file."""
    library: Any = importlib.import_module("keras")
    for depth in (50, 101, 152):
        theirs = getattr(library.applications, f"ResNet{depth}")(
            weights=None, classes=10, classifier_activation=None, input_shape=IMAGES.shape[1:]
        )
        fill_keras(theirs)
        theirs.save_weights(folder / "a.weights.h5")
        theirs.save(folder / "a.keras")
        theirs.save(folder / "a.h5")
        ours = flaxres.create_model(f"resnet{depth}_v1", num_classes=10)
        for file in ("a.weights.h5", "a.keras", "a.h5"):
            found = logits(ours, flaxres.load_weights(folder / file, ours))
            yield f"ResNet{depth}, {file[1:]}", difference(found, np.asarray(theirs(IMAGES)))


def keras_hub(folder: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Yields the differences of KerasHub's ResNets."""
    library: Any = importlib.import_module("keras_hub")
    for name, (blocks, kind, preactivated) in KERAS_HUB.items():
        vd = kind.endswith("_vd")
        backbone = library.models.ResNetBackbone(
            input_conv_filters=[32, 32, 64] if vd else [64],
            input_conv_kernel_sizes=[3, 3, 3] if vd else [7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=blocks,
            stackwise_num_strides=[1, 2, 2, 2],
            block_type=kind,
            use_pre_activation=preactivated,
            image_shape=(None, None, 3),
        )
        theirs = library.models.ResNetImageClassifier(backbone=backbone, num_classes=10)
        fill_keras(theirs)
        theirs.save_to_preset(str(folder / name))
        model, variables, _ = flaxres.load_pretrained(str(folder / name))
        yield name, difference(logits(model, variables), np.asarray(theirs(IMAGES)))


def evaluated(network: Any) -> Any:
    """Returns a network of PyTorch in evaluation mode, with random statistics."""
    torch, _ = torch_and_timm()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def torch_images(images: Any = IMAGES) -> Any:
    torch, _ = torch_and_timm()
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def transformers(folder: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Yields the differences of transformers' ResNets, in PyTorch and in Flax."""
    torch, _ = torch_and_timm()
    library: Any = importlib.import_module("transformers")
    for name, settings in TRANSFORMERS.items():
        config = library.ResNetConfig(num_labels=10, **settings)
        theirs = evaluated(library.ResNetForImageClassification(config))
        theirs.save_pretrained(folder / name)
        processor = library.ConvNextImageProcessor(size={"shortest_edge": 224}, resample=3)
        processor.save_pretrained(folder / name)
        with torch.no_grad():
            expected = theirs(torch_images()).logits.numpy()
        model, variables, _ = flaxres.load_pretrained(str(folder / name))
        yield name, difference(logits(model, variables), expected)
    if not hasattr(library, "FlaxResNetForImageClassification"):
        print("transformers from version 5 on has no Flax: skipped", file=sys.stderr)
        return
    config = library.ResNetConfig(num_labels=10, **SMALL)
    theirs = library.FlaxResNetForImageClassification(config, input_shape=IMAGES.shape)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + RNG.uniform(0, 0.1, leaf.shape).astype(np.float32),
        dict(theirs.params),
    )
    theirs.save_pretrained(folder / "flax", params=params)
    ours = flaxres.create_model("resnet18", num_classes=10)
    variables = flaxres.load_weights(folder / "flax" / "flax_model.msgpack", ours)
    expected = theirs(IMAGES.transpose(0, 3, 1, 2), params=params).logits
    yield "resnet-18, .msgpack", difference(logits(ours, variables), np.asarray(expected))


def open_clip(folder: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Yields the difference of the image tower of CLIP's RN50."""
    torch, _ = torch_and_timm()
    library: Any = importlib.import_module("open_clip.modified_resnet")
    theirs = evaluated(library.ModifiedResNet([3, 4, 6, 3], 1024, 32, image_size=224, width=64))
    state = {f"visual.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(state | {"token_embedding.weight": torch.zeros(4, 4)}, folder / "RN50.pt")
    images = RNG.normal(size=(2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch_images(images)).numpy()
    ours = flaxres.create_model("resnet50_clip")
    variables = flaxres.load_weights(folder / "RN50.pt", ours)
    yield "RN50", difference(logits(ours, variables, images), expected)


LIBRARIES: tuple[Callable[[pathlib.Path], Iterator[tuple[str, float]]], ...] = (
    *(keras, keras_hub, transformers, open_clip),
)


def main() -> None:
    chosen = command.parser(__doc__).parse_args()
    figures: dict[str, float] = {}
    for library in LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for name, value in library(pathlib.Path(folder)):
                    print(f"{library.__name__}: {name}: {value:.1e}", file=sys.stderr, flush=True)
                    figures[f"{library.__name__}: {name}"] = value
            except ImportError as error:
                print(f"{library.__name__}: skipped ({error})", file=sys.stderr)
    command.show(figures, chosen.json, ".1e")


if __name__ == "__main__":
    main()
