"""Compares training with PyTorch, step by step: `JAX_ENABLE_X64=1 python -m tools.training_parity resnet18 --json`.

The same weights and 5 batches through PyTorch's SGD and ours, in float64. Prints the largest relative difference of the losses, and of the
final parameters and running statistics (largest difference over largest value of an array). PyTorch's running variance is unbiased and ours is
not: theirs is compared after its factor n / (n - 1) is taken out, n being the values that a channel has in a batch.
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxres
from benchmarks.peers import torch_and_timm, torch_resnet20
from benchmarks.textbook import plain_step
from flaxres import OptimConfig
from flaxres.training.optimizers import learning_rate, optimizer
from flaxres.weights.names import leaves, to_torch, torch_name
from flaxres.weights.transfer import variables_from_torch

STEPS, BATCH, CLASSES, MOMENTUM = 5, 8, 10, 0.9
OPTIM = OptimConfig(
    learning_rate=0.02,
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-3,
    decay_norm_and_bias=True,
    schedule="constant",
)


def torch_run(
    torch: Any, network: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[list[float], dict[str, int]]:
    """The losses of PyTorch's own loop, and how many values a channel has at each batch norm."""
    counts: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: counts.update(
                    {name: inputs[0].numel() // inputs[0].shape[1]}
                )
            )
    sgd = torch.optim.SGD(
        network.parameters(),
        OPTIM.learning_rate,
        OPTIM.momentum,
        nesterov=True,
        weight_decay=OPTIM.weight_decay,
    )
    losses = []
    for batch, target in zip(images, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(
            network(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())), torch.from_numpy(target)
        )
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(float(loss))
    return losses, counts


def our_run(
    model: Any, variables: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[list[float], Any]:
    tx = optimizer(OPTIM, learning_rate(OPTIM, STEPS, 1))

    step = jax.jit(plain_step(model, tx))
    opt_state, losses = tx.init(variables["params"]), []
    for batch, target in zip(images, labels, strict=True):
        variables, opt_state, value = step(variables, opt_state, batch, target)
        losses.append(float(value))
    return losses, variables


def compare(name: str) -> dict[str, float]:
    torch, timm = torch_and_timm()
    torch.manual_seed(0)
    network = (
        torch_resnet20(torch, CLASSES)
        if name == "resnet20"
        else timm.create_model(name, num_classes=CLASSES)
    )
    network = network.double().train()
    model: Any = flaxres.create_model(
        name, num_classes=CLASSES, dtype=jnp.float64, param_dtype=jnp.float64
    )
    variables = variables_from_torch(
        {key: value.numpy() for key, value in network.state_dict().items()}, model
    )
    variables = jax.tree.map(jnp.array, variables)  # copies: PyTorch changes its own in place
    rng, size = np.random.default_rng(0), 32 if name == "resnet20" else 64
    images, labels = (
        rng.normal(size=(STEPS, BATCH, size, size, 3)),
        rng.integers(0, CLASSES, (STEPS, BATCH)),
    )
    theirs, counts = torch_run(torch, network, images, labels)
    ours, variables = our_run(model, variables, images, labels)
    state = {key: value.detach().numpy() for key, value in network.state_dict().items()}
    worst = 0.0
    for path, leaf in leaves(variables):
        key = torch_name(path)
        expected, born = state[key], MOMENTUM**STEPS
        if path[-1] == "var":
            n = counts[key.removesuffix(".running_var")]
            expected = born + (expected - born) * (n - 1) / n
        worst = max(
            worst,
            float(
                np.abs(to_torch(path, np.asarray(leaf)) - expected).max() / np.abs(expected).max()
            ),
        )
    return {
        "losses": max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)),
        "state": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    results = {name: compare(name) for name in chosen.names}
    print(
        json.dumps(results)
        if chosen.json
        else "\n".join(f"{name}: {figures}" for name, figures in results.items())
    )


if __name__ == "__main__":
    main()
