"""Compares training with PyTorch's, step by step, in float64.

    JAX_ENABLE_X64=1 python -m tools.training_parity resnet18 --json

The same weights and 5 batches go through PyTorch's SGD and ours, in float64 throughout: timm's
EvoNorms would take their deviations in float32, so `Tensor.float` doubles meanwhile. The program
prints the largest relative difference of the losses, and of the final parameters and running
statistics (largest difference over the largest value of an array, or over a millionth: what has no
gradient holds rounding only). PyTorch's running variance is unbiased and ours is not: its factor
n / (n - 1) is removed before the comparison, where n is the number of values that a channel has in
a batch. `--rate` is the learning rate; a network whose loss rises at first amplifies rounding, and
needs a smaller one.
"""

import unittest.mock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flaxres
from benchmarks import command
from benchmarks.peers import torch_and_timm, torch_resnet20
from benchmarks.textbook import plain_step
from flaxres import OptimConfig
from flaxres.training.optimizers import optimizer
from flaxres.weights.names import leaves, to_torch, torch_name
from flaxres.weights.transfer import variables_from_torch

STEPS, BATCH, CLASSES, MOMENTUM = 5, 8, 10, 0.9
OPTIM = OptimConfig(
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-3,
    decay_norm_and_bias=True,
    schedule="constant",
)


def torch_run(
    torch: Any, network: Any, images: np.ndarray, labels: np.ndarray, rate: float
) -> tuple[list[float], dict[str, int]]:
    """Trains with PyTorch.

    Returns:
      The losses, and the number of values that a channel has at each batch norm.
    """
    counts: dict[str, int] = {}

    def count(name: str, images: Any) -> None:
        counts[name] = images.numel() // images.shape[1]

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, __, name=name: count(name, inputs[0]))
    sgd = torch.optim.SGD(
        network.parameters(),
        rate,
        OPTIM.momentum,
        nesterov=True,
        weight_decay=OPTIM.weight_decay,
    )
    losses = []
    for batch, target in zip(images, labels, strict=True):
        logits = network(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy()))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(float(loss))
    return losses, counts


def our_run(
    model: Any, variables: Any, images: np.ndarray, labels: np.ndarray, rate: float
) -> tuple[list[float], Any]:
    """Trains with flaxres and returns the losses and the final variables."""
    tx = optimizer(OPTIM, optax.constant_schedule(rate))
    step = jax.jit(plain_step(model, tx))
    opt_state, losses = tx.init(variables["params"]), []
    for batch, target in zip(images, labels, strict=True):
        variables, opt_state, value = step(variables, opt_state, batch, target)
        losses.append(float(value))
    return losses, variables


def compare(name: str, rate: float) -> dict[str, float]:
    """Returns the largest relative differences of the losses and of the final state."""
    torch, timm = torch_and_timm()
    torch.manual_seed(0)
    if name == "resnet20":
        network = torch_resnet20(torch, CLASSES)
    else:
        network = timm.create_model(name, num_classes=CLASSES, drop_rate=0.0)
    network = network.double().train()
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    model: Any = flaxres.create_model(name, num_classes=CLASSES, **dtypes)
    initial = {key: value.numpy() for key, value in network.state_dict().items()}
    # Copies, since PyTorch changes its arrays in place.
    variables = jax.tree.map(jnp.array, variables_from_torch(initial, model))
    rng, size = np.random.default_rng(0), 32 if name == "resnet20" else 64
    images = rng.normal(size=(STEPS, BATCH, size, size, 3))
    labels = rng.integers(0, CLASSES, (STEPS, BATCH))
    with unittest.mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        theirs, counts = torch_run(torch, network, images, labels, rate)
    ours, variables = our_run(model, variables, images, labels, rate)
    state = {key: value.detach().numpy() for key, value in network.state_dict().items()}
    worst = 0.0
    for path, leaf in leaves(variables):
        key = torch_name(path)
        expected, initial_share = state[key], MOMENTUM**STEPS
        if path[-1] == "var":
            n = counts[key.removesuffix(".running_var")]
            expected = initial_share + (expected - initial_share) * (n - 1) / n
        difference = np.abs(to_torch(path, np.asarray(leaf)) - expected).max()
        worst = max(worst, float(difference / max(np.abs(expected).max(), 1e-6)))
    return {
        "losses": max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)),
        "state": worst,
    }


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate (0.02)")
    chosen = parser.parse_args()
    results = {name: compare(name, chosen.rate) for name in chosen.names}
    command.show(results, chosen.json, "")


if __name__ == "__main__":
    main()
