"""Explanations against pytorch-grad-cam and Captum: `python -m benchmarks.explain PHOTO [NAME...]`.

timm's networks get random parameters and statistics (`benchmarks.parity.reference`), which flaxres
takes over. Both explain the likeliest class of the photograph at 224 pixels, in float32, or in
float64 with JAX_ENABLE_X64=1. The program prints the largest difference of

- `own grid`: the Grad-CAM maps of the last stage on their own pixels, scaled to [0, 1];
- `image`: the same over the pixels of the image, by OpenCV's bilinear interpolation in
  pytorch-grad-cam;
- `gradients`: integrated gradients of 10 midpoints from the mean colour, relative to the largest
  attribution. In float32 a ReLU whose input is nearly 0 may pass the gradient in one of the two
  programs alone. Captum's weights of the points are float32, which leaves 1e-8 in float64.

Needs the extra `parity` and, without their dependencies, `grad-cam`, `ttach` and `captum`;
grad-cam imports `scikit-learn` too.
"""

import importlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxres
from benchmarks import command
from benchmarks.parity import feature_names, reference
from benchmarks.peers import torch_and_timm
from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.inference.explain import grad_cam, integrated_gradients
from flaxres.models.network import Network
from flaxres.weights.transfer import variables_from_torch

NAMES = ("resnet18", "resnet50", "densenet121", "resnetv2_50")
STEPS = 10


def networks(name: str) -> tuple[Any, Network, Any]:
    """Returns timm's network with random weights, ours, and its variables with the same weights.

    They compute in float64 if JAX does by default.
    """
    theirs, ours = reference(name), flaxres.create_model(name)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    variables = variables_from_torch(state, ours)
    if jnp.result_type(float) == jnp.float64:
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        ours = ours.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        theirs = theirs.double()
    return theirs, ours, variables


def last_stage(name: str, network: Any) -> Any:
    """Returns timm's module whose output is the last stage's map."""
    return dict(network.named_modules())[feature_names(name, network)["stage4"]]


def tensor(images: np.ndarray) -> Any:
    """Returns images as a tensor in PyTorch's layout."""
    torch, _ = torch_and_timm()
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def torch_grad_cam(
    network: Any, layer: Any, images: np.ndarray, classes: Sequence[int]
) -> np.ndarray:
    """Computes equations 1 and 2 of Selvaraju et al. 2017 by PyTorch's gradients, unscaled."""
    torch, _ = torch_and_timm()
    kept: list[Any] = []
    hook = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = network(tensor(images))
    hook.remove()
    score = sum(row[number] for row, number in zip(logits, classes, strict=True))
    (gradient,) = torch.autograd.grad(score, kept[0])
    weights = gradient.mean((2, 3), keepdim=True)
    cam: np.ndarray = torch.relu((weights * kept[0]).sum(1)).detach().numpy()
    return cam


def package_grad_cam(
    network: Any, layer: Any, images: np.ndarray, classes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pytorch-grad-cam's maps on their own pixels, and over the pixels of the images."""
    package = importlib.import_module("pytorch_grad_cam")
    targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    scale = importlib.import_module("pytorch_grad_cam.utils.image").scale_cam_image
    chosen = [targets.ClassifierOutputTarget(number) for number in classes]
    x = tensor(images)
    with package.GradCAM(model=network, target_layers=[layer]) as method:
        over_image = method(input_tensor=x, targets=chosen)
        kept = method.activations_and_grads
        activations, gradients = kept.activations[0].numpy(), kept.gradients[0].numpy()
        own = method.get_cam_image(x, layer, chosen, activations, gradients)
    return scale(np.maximum(own, 0)), over_image


def compare(name: str, images: np.ndarray) -> dict[str, float]:
    """Returns the largest differences of one network's explanations from the packages'."""
    theirs, ours, variables = networks(name)
    classes = [int(number) for number in theirs(tensor(images)).argmax(1)]
    own, over_image = package_grad_cam(theirs, last_stage(name, theirs), images, classes)
    if not own.any():
        raise InputError(f"{name}'s map is 0 everywhere and shows nothing: give another photograph")
    numbers = np.asarray(classes)
    ours_own = grad_cam(ours, variables, images, numbers, upsample=False)
    ours_over_image = grad_cam(ours, variables, images, numbers)
    attribution = importlib.import_module("captum.attr").IntegratedGradients(theirs)
    gradients = attribution.attribute(
        tensor(images), 0.0, target=classes, n_steps=STEPS, method="riemann_middle"
    )
    expected = gradients.detach().numpy().transpose(0, 2, 3, 1)
    given = integrated_gradients(ours, variables, images, numbers, steps=STEPS)
    return {
        "own grid": float(np.abs(ours_own - own).max()),
        "image": float(np.abs(ours_over_image - over_image).max()),
        "gradients": float(np.abs(given - expected).max() / np.abs(expected).max()),
    }


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("photograph", type=pathlib.Path)
    parser.add_argument("names", nargs="*", default=NAMES)
    chosen = parser.parse_args()
    images = Preprocess()(chosen.photograph).astype(jnp.result_type(float))
    figures = {}
    for name in chosen.names:
        figures[name] = compare(name, images)
        if not chosen.json:
            parts = (f"{key} {value:.1e}" for key, value in figures[name].items())
            print(f"{name}: {', '.join(parts)}", flush=True)
    if chosen.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
