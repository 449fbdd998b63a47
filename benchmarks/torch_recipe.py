"""Trains the recipe of a run in PyTorch, on the same files.

    python -m benchmarks.torch_recipe runs/digits --seeds 3 --json
    python -m benchmarks.torch_recipe runs/cifar10 --device cuda

Reads `config.json` of a run of flaxres, and trains the same network by PyTorch's modules and its
SGD, with the schedule of the config and the distributions of flaxres' first weights. Images are
those that flaxres decodes from the dataset. The augmentation is torchvision's `RandomCrop` with
padding and `RandomHorizontalFlip`, drawn for each image and computed for a whole batch. Random
numbers are PyTorch's, so that results agree in distribution only. Arithmetic is float32 as PyTorch
has it (on GPUs its convolutions are in TensorFloat-32), or bfloat16 by PyTorch's autocast where the
config has that dtype. With `--out`, the same command resumes a run that was ended from its last
checkpoint, one every 2,000 steps.

It knows ResNet-20 and ResNet-9, with or without shortcuts, SGD, random shifts and flips, and
refuses any other config. ResNet-9 on Fashion-MNIST takes a quarter of an hour a seed on two cores,
ResNet-20 on the digits a minute.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import command
from benchmarks.peers import torch_and_timm, torch_resnet9, torch_resnet20
from flaxres.config.files import from_json, to_json
from flaxres.config.schema import AugmentConfig, Config, OptimConfig
from flaxres.data.resident import resident
from flaxres.errors import InputError
from flaxres.training.mesh import replicated
from flaxres.training.run import Run, evaluation_transform, prepare_run

torch: Any = torch_and_timm()[0]
v2: Any = importlib.import_module("torchvision.transforms.v2")

CHECKPOINT_STEPS = 2000
# Settings that this program knows, by section; all others must have their defaults.
KNOWN: dict[str, tuple[type, set[str]]] = {
    "augment": (AugmentConfig, {"shift", "flip"}),
    "optim": (
        OptimConfig,
        {
            *("learning_rate", "momentum", "nesterov", "weight_decay", "label_smoothing"),
            *("schedule", "warmup_epochs", "milestones", "gamma", "final_scale"),
            "decay_norm_and_bias",
        },
    ),
}


def require_known(config: Config) -> None:
    """Checks that this program trains by every setting of a config.

    Raises:
      InputError: it does not know one.
    """
    for section, (kind, names) in KNOWN.items():
        ours, usual = dataclasses.asdict(getattr(config, section)), dataclasses.asdict(kind())
        for name, value in ours.items():
            if name not in names and value != usual[name]:
                raise InputError(
                    f"{section}.{name}={value!r} is not known here: compare a recipe without it"
                )
    model, data, train = config.model, config.data, config.train
    refused = {
        "model.dtype": model.dtype not in ("float32", "bfloat16"),
        "model.stem_init": model.stem_init != "random",
        "model.bn_group": model.bn_group is not None,
        "model.shortcut": model.shortcut not in (None, "none"),
        "data.crop": data.crop != "centre",
        "data.image_size": not data.image_size == data.eval_size == data.eval_resize,
        "data.eval_flip": data.eval_flip or bool(data.eval_shift),
        "data.progressive_sizes": bool(data.progressive_sizes),
        "train.accumulate": train.accumulate != 1,
        "train.ema_decay": bool(train.ema_decay),
    }
    for name, wrong in refused.items():
        if wrong:
            raise InputError(f"{name} is not known here: compare a recipe without it")


def network(config: Config, classes: int) -> Any:
    """Returns the network of a config with weights from flaxres' distributions."""
    model = config.model
    residual = model.shortcut != "none"
    if model.name == "resnet20":
        made = torch_resnet20(torch, classes, residual)
    elif model.name == "resnet9" and model.depths and model.widths and model.stem_width:
        sizes = model.depths, model.widths, model.stem_width
        made = torch_resnet9(torch, classes, *sizes, residual)
    else:
        raise InputError(f"model.name={model.name!r} is not known here: resnet20 or resnet9")
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.01)
            torch.nn.init.zeros_(module.bias)
        elif hasattr(module, "bn2") and residual:  # each block starts as its shortcut
            torch.nn.init.zeros_(module.bn2.weight)
    return made.to(memory_format=torch.channels_last)


def split(run: Run, source: Any, device: str) -> tuple[Any, Any]:
    """Returns the images of a split, (n, 3, h, w) uint8, and their labels, on a device."""
    transform = evaluation_transform(run.config.data)
    speed = run.speed(len(source))
    arrays = jax.device_get(resident(source, transform, replicated(run.mesh), speed))
    images = torch.from_numpy(np.ascontiguousarray(arrays["image"].transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(arrays["label"].astype(np.int64))
    return images.to(device), labels.to(device)


@functools.lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> Any:
    """Returns the rows of an epoch in its order."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


def batch_rows(count: int, seed: int, first: int, last: int) -> Any:
    """Returns the rows at positions of the run; a batch may reach over the end of an epoch."""
    positions = torch.arange(first, last)
    epochs = (positions // count).unique().tolist()
    return torch.cat(
        [
            order(count, seed, epoch)[positions[positions // count == epoch] % count]
            for epoch in epochs
        ]
    )


def augmented(images: Any, shift: int, flip: bool) -> Any:
    """Crops each image at random after padding it by zeros, and mirrors half of them."""
    count, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * shift + 1, (2, count, 1), device=device)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    if flip:
        mirrored = torch.rand(count, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = left + columns
    padded = torch.nn.functional.pad(images, (shift, shift, shift, shift))
    index = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    return padded[index, channel, rows[:, None, :, None], columns[:, None, None, :]]


def optimizer(optim: OptimConfig, model: Any) -> Any:
    """Returns the optimizer of a config."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    decay_of_others = optim.weight_decay if optim.decay_norm_and_bias else 0.0
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": decay_of_others},
        ],
        lr=optim.learning_rate,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
    )


def train(
    run: Run, splits: Any, seed: int, verbose: bool, checkpoint: pathlib.Path | None = None
) -> dict[str, Any]:
    """Trains once and returns the accuracy, the losses by step and the seconds of training.

    Args:
      run: the run.
      splits: images and labels to train on and to test on.
      seed: of the weights, of the order and of the augmentation.
      verbose: prints the loss every 1,000 steps.
      checkpoint: a file, written every `CHECKPOINT_STEPS` and at the end; training resumes from it
        if it exists.
    """
    config, ((images, labels), test) = run.config, splits
    data, augment, batch_size = config.data, config.augment, config.train.batch_size
    torch.manual_seed(seed)
    model = network(config, len(run.train.classes)).to(images.device)
    sgd = optimizer(config.optim, model)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=config.optim.label_smoothing)
    normalise = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
    )
    learning_rates = np.asarray(jax.vmap(run.schedule)(np.arange(run.steps))).tolist()
    losses, seconds = list[Any](), 0.0
    if checkpoint and checkpoint.exists():
        losses, seconds = restore(checkpoint, config, model, sgd)
    start = time.monotonic() - seconds
    for step in range(len(losses), run.steps):
        for group in sgd.param_groups:
            group["lr"] = learning_rates[step]
        rows = batch_rows(len(images), seed, step * batch_size, (step + 1) * batch_size)
        rows = rows.to(images.device)
        batch = normalise(augmented(images[rows], augment.shift, augment.flip))
        with autocast(config, images.device):
            value = loss(model(batch.to(memory_format=torch.channels_last)), labels[rows])
        sgd.zero_grad()
        value.backward()
        sgd.step()
        losses.append(value.detach())
        if verbose and not (step + 1) % 1000:
            print(f"seed {seed}, step {step + 1}/{run.steps}, loss {losses[-1]:.3f}", flush=True)
        if checkpoint and (not (step + 1) % CHECKPOINT_STEPS or step + 1 == run.steps):
            save(checkpoint, config, model, sgd, losses, time.monotonic() - start)
    curve = torch.stack(losses).tolist()
    seconds = time.monotonic() - start
    with autocast(config, images.device):
        top1 = accuracy(model, normalise, *test)
    return {"top1": top1, "losses": curve, "seconds": seconds}


def save(
    path: pathlib.Path, config: Config, model: Any, sgd: Any, losses: list[Any], seconds: float
) -> None:
    """Writes a checkpoint, whole or not at all."""
    state = {
        "config": to_json(config),
        "model": model.state_dict(),
        "sgd": sgd.state_dict(),
        "losses": torch.stack(losses),
        "seconds": seconds,
        "random": random_states(losses[0].device),
    }
    part = path.with_name(f"{path.name}.part")
    torch.save(state, part)
    part.replace(path)


def restore(path: pathlib.Path, config: Config, model: Any, sgd: Any) -> tuple[list[Any], float]:
    """Restores the model, the optimizer and the random states.

    Returns:
      The losses so far, and the seconds that they took.

    Raises:
      InputError: the checkpoint is of another config, or of another kind of device.
    """
    device = next(model.parameters()).device
    state = torch.load(path, map_location="cpu")
    if state["config"] != to_json(config) or len(state["random"]) != len(random_states(device)):
        raise InputError(
            f"checkpoint {str(path)!r} is of another config or device: delete it, or give another "
            "--out"
        )
    model.load_state_dict(state["model"])
    sgd.load_state_dict(state["sgd"])
    torch.set_rng_state(state["random"][0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["random"][1], device)
    return list(state["losses"].to(device)), state["seconds"]


def random_states(device: Any) -> list[Any]:
    """Returns the states of the generators that a training on a device draws from."""
    return [torch.get_rng_state()] + (
        [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    )


def autocast(config: Config, device: Any) -> Any:
    """Returns the context in which PyTorch computes in the dtype of a config."""
    enabled = config.model.dtype == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def accuracy(model: Any, normalise: Any, images: Any, labels: Any) -> float:
    """Returns the share of images whose likeliest class is right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for part, expected in zip(images.split(500), labels.split(500), strict=True):
            right += int((model(normalise(part)).argmax(1) == expected).sum())
    return right / len(images)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("run", type=pathlib.Path, help="folder with the config.json of a run")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first run")
    parser.add_argument("--device", default="cpu", help="PyTorch's name of a device: cpu, cuda")
    parser.add_argument("--out", type=pathlib.Path, help="write a JSON file with a curve of losses")
    chosen: argparse.Namespace = parser.parse_args()
    config = from_json(chosen.run / "config.json")
    require_known(config)
    run = prepare_run(config)
    splits = [split(run, source, chosen.device) for source in (run.train, run.evaluation)]
    results, checkpoints = [], list[pathlib.Path]()
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        checkpoint = None
        if chosen.out is not None:
            checkpoint = chosen.out.with_name(f"{chosen.out.name}.seed{seed}")
            checkpoints.append(checkpoint)
        results.append(train(run, splits, seed, not chosen.json, checkpoint))
        if chosen.out is not None:
            chosen.out.write_text(json.dumps(figures(results)) + "\n")
    for checkpoint in checkpoints:
        checkpoint.unlink()
    command.show({k: v for k, v in figures(results).items() if k != "curve"}, chosen.json, "")


def figures(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of several runs, with the means of 50 losses of the first one."""
    losses = results[0]["losses"]
    curve = [[i, statistics.fmean(losses[i - 50 : i])] for i in range(50, len(losses) + 1, 50)]
    return {
        "torch": torch.__version__,
        **command.spread([result["top1"] for result in results]),
        "minutes": [round(result["seconds"] / 60, 1) for result in results],
        "curve": curve,
    }


if __name__ == "__main__":
    main()
