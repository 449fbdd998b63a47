"""Agreement with timm: `python -m benchmarks.parity [PATTERN] [--odd] [--json] [--write]`.

Each network that timm has too gets random parameters and running statistics from PyTorch and two
float32 images. The program prints the largest difference of the logits, relative to the largest
logit, the same for the worst feature map, and whether the round trip torch -> flaxres -> torch
returns the same bits and loads strictly.

Scales of norms are uniform in 0.5 to 1.5, the last one of a residual block in 0.1 to 0.4. With all
of them around one, a hundred blocks with squeeze and excitation amplify the rounding of float32 a
hundred thousand times (resnetrs152: 0.4 in float32, 2e-8 in float64).

`--odd` takes images of one channel and 193 x 161 pixels, or the next sides below that the network
takes.

`--write` writes the table to benchmarks/PARITY.md, with `--odd` to PARITY_ODD.md, or with a pattern
the rows of its names. All names take an hour on two cores, with `--odd` two, and the largest ones
most of 24 GiB; `--most` leaves them out. Needs the extra `parity` (PyTorch, timm).
"""

import datetime
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

import flaxres
from benchmarks import command
from benchmarks.peers import torch_and_timm
from flaxres.errors import unknown
from flaxres.models.count import parameters
from flaxres.models.registry import list_models
from flaxres.weights.transfer import torch_from_variables, variables_from_torch

PAGES = {odd: pathlib.Path(__file__).parent / f"PARITY{'_ODD' * odd}.md" for odd in (False, True)}
HEAD = "| name | logits, largest relative difference | feature maps | torch -> flaxres -> torch |\n"
RULE = "|---|---|---|---|\n"
SHAPE, ODD = (2, 64, 64, 3), (2, 193, 161, 1)
IMAGES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def reference(name: str, **attributes: Any) -> Any:
    """Returns timm's network with random parameters and statistics, in evaluation mode."""
    torch, timm = torch_and_timm()
    torch.manual_seed(0)
    network = timm.create_model(name, **attributes).eval()
    with torch.no_grad():
        for module in network.modules():
            evonorm = isinstance(getattr(module, "v", None), torch.nn.Parameter)
            affine = (torch.nn.BatchNorm2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
            if evonorm or isinstance(module, affine):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
            if evonorm:
                module.v.uniform_(0.5, 1.5)
            if type(module).__name__ == "GlobalResponseNorm":  # zeros would hide it
                module.weight.normal_(0, 0.5)
                module.bias.normal_(0, 0.1)
            for scale in ("gamma", "gain", "skipinit_gain"):  # a millionth would hide the branch
                if isinstance(getattr(module, scale, None), torch.nn.Parameter):
                    getattr(module, scale).uniform_(0.1, 0.4)
            if hasattr(module, "pos_embed"):  # so that attention is not even
                module.pos_embed.normal_(0, 0.5)
                module.q.weight.mul_(3)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for module in network.modules():
            # The last scale of a residual block is small, as in a trained network.
            shortcut = hasattr(module, "downsample") or hasattr(module, "shortcut")
            if shortcut and (norm := last_norm(module)) is not None:
                norm.weight.uniform_(0.1, 0.4)
    return network


def last_norm(block: Any) -> Any:
    """Returns the last batch norm of a block of timm, None if none is behind a convolution."""
    layers = [getattr(block, name, None) for name in ("bn3", "conv3_1x1", "conv3", "bn2", "conv2")]
    norms = [getattr(layer, "bn", layer) for layer in layers]
    return next((norm for norm in norms if hasattr(norm, "running_mean")), None)


def feature_names(name: str, network: Any) -> dict[str, str]:
    """Returns the names of timm's modules by our names of the feature maps."""
    if name.startswith("densenet"):
        stages = {f"stage{i}": f"features.denseblock{i}" for i in range(1, 5)}
        return {"stem": network.feature_info[0]["module"]} | stages
    if name.startswith("legacy"):
        return {"stem": "layer0"} | {f"stage{i}": f"layer{i}" for i in range(1, 5)}
    if hasattr(network, "stages"):
        inner = () if "convnext" in name else ("conv4", "conv3", "conv")
        layers = (f"stem.{layer}" for layer in inner if hasattr(network.stem, layer))
        stem = next(layers, "stem")
        return {"stem": stem} | {f"stage{i}": f"stages.{i - 1}" for i in range(1, 5)}
    if name.startswith("regnet"):
        return {"stem": "stem"} | {f"stage{i}": f"s{i}" for i in range(1, 5)}
    return {"stem": "act1"} | {f"stage{i}": f"layer{i}" for i in range(1, 5)}


def odd_images(name: str) -> np.ndarray:
    """Returns images of one channel, of the largest sides up to `ODD` that a network takes."""
    model = flaxres.create_model(name)
    images, *sides, channels = ODD
    height, width = (
        next(side for side in range(most, 0, -1) if model.extents(side)) for most in sides
    )
    shape = (images, height, width, channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def compare(name: str, images: np.ndarray = IMAGES, **attributes: Any) -> tuple[float, float, bool]:
    """Compares a network to timm's.

    Args:
      name: of the network.
      images: for both.
      **attributes: of both.

    Returns:
      Relative differences of the logits and of the worst feature map, and whether the round trip is
      exact.
    """
    torch, _ = torch_and_timm()
    channels = images.shape[-1]
    network = reference(name, in_chans=channels, **attributes)
    modules, kept = dict(network.named_modules()), {}
    for ours, theirs in feature_names(name, network).items():
        modules[theirs].register_forward_hook(
            lambda _, __, output, ours=ours: kept.update({ours: output.clone()})
        )
    with torch.no_grad():
        logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    state = network.state_dict()
    model: Any = flaxres.create_model(name, in_channels=channels, **attributes)
    variables = variables_from_torch({key: value.numpy() for key, value in state.items()}, model)

    def forward(variables: Any, images: Any) -> Any:
        return model.apply(variables, images), model.apply(variables, images, features=True)

    ours, maps = jax.jit(forward)(variables, images)
    worst = max(
        difference(maps[key], value.numpy().transpose(0, 2, 3, 1)) for key, value in kept.items()
    )
    back = torch_from_variables(variables)
    exact = all(np.array_equal(back[key], value.numpy()) for key, value in state.items())
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in back.items()}
    network.load_state_dict(tensors, strict=True)
    return difference(ours, logits), worst, exact


def difference(ours: Any, theirs: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def row_of(name: str, theirs: set[str], most: float | None, odd: bool) -> str:
    """Compares a network, if timm has it and it is not too large, and returns its row."""
    if name not in theirs:
        return f"| {name} | not in timm | | |"
    millions = parameters(flaxres.create_model(name)) / 1e6
    if most is not None and millions > most:
        return f"| {name} | {millions:,.0f} million parameters, not compared | | |"
    logits, features, exact = compare(name, odd_images(name) if odd else IMAGES)
    jax.clear_caches()  # of programs that no other name has
    return f"| {name} | {logits:.1e} | {features:.1e} | {'exact' if exact else 'DIFFERS'} |"


def renewed(page: str, rows: dict[str, str]) -> str:
    """Returns a page with rows in place of those of the same names, and new ones in order."""
    head, table = page.split(RULE)
    known = {line.split("|")[1].strip(): line for line in table.splitlines()} | rows
    return head + RULE + "".join(f"{known[name]}\n" for name in list_models() if name in known)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="names of networks (all)")
    parser.add_argument("--odd", action="store_true", help="other images, see above")
    parser.add_argument("--write", action="store_true", help="write the rows to the page")
    parser.add_argument(
        "--most", type=float, metavar="MILLIONS", help="of parameters of a network that is compared"
    )
    chosen = parser.parse_args()
    try:
        torch, timm = torch_and_timm()
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: install the extra `parity`")
    if not (names := list_models(chosen.pattern)):
        raise unknown("model", chosen.pattern, list_models())
    theirs, rows = set(timm.list_models()), dict[str, str]()
    for name in names:
        rows[name] = row_of(name, theirs, chosen.most, chosen.odd)
        print(rows[name], file=sys.stderr, flush=True)
    if chosen.write:
        what = "one channel and at most 193 x 161 pixels" if chosen.odd else "64 pixels"
        title = (
            f"# Agreement with timm {timm.__version__}\n\n"
            f"Written by `python -m benchmarks.parity{' --odd' * chosen.odd} --write` on "
            f"{datetime.date.today()}, "
            f"jax {jax.__version__}, PyTorch {torch.__version__}, CPU, float32, "
            f"two images of {what}.\n\n"
        )
        place = PAGES[chosen.odd]
        fresh = chosen.pattern == "*" or not place.exists()
        place.write_text(renewed(title + HEAD + RULE if fresh else place.read_text(), rows))
    print(json.dumps(rows) if chosen.json else HEAD + RULE + "\n".join(rows.values()))


if __name__ == "__main__":
    main()
