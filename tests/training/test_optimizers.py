"""Schedules equal their formulas at every step; SGD is PyTorch's."""

import functools
import importlib
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxres
from benchmarks.peers import torch_and_timm
from flaxres import OptimConfig
from flaxres.models.registry import small_images
from flaxres.models.stage import stack_blocks, unstack_blocks
from flaxres.training.optimizers import by_depth, decayed, depth, learning_rate, optimizer

STEPS, EPOCH = 200, 12.5
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="needs the extra `parity`"
)


@pytest.mark.parametrize(
    ("name", "everything"),
    [
        *(("sgd", False), ("sgd", True), ("sgdw", True), ("lars", False), ("lamb", True)),
        *(("adamw", False), ("muon", False), ("muon", True)),
    ],
)
def test_a_scanned_network_is_trained_as_the_unrolled_one(name: str, everything: bool) -> None:
    """Runs two steps on the same gradients, clipping and layer decay included."""
    model = flaxres.ResNet(
        depths=(3,), widths=(4,), block="basic", stem="small", stem_width=4, num_classes=3
    )
    shapes, scanned = (
        jax.eval_shape(each.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        for each in (model, model.clone(scan_blocks=True))
    )
    rng = np.random.default_rng(0)
    params, gradient = (
        jax.tree.map(lambda leaf: rng.normal(1, 0.5, leaf.shape).astype(np.float32), dict(shapes))
        for _ in range(2)
    )
    config = OptimConfig(
        name=name,
        weight_decay=0.1,
        decay_norm_and_bias=everything,
        clip_norm=3.0,
        adaptive_clip=0.05,
        layer_decay=0.7,
    )  # type: ignore[arg-type]
    results = []
    for form in (lambda tree: tree, lambda tree: stack_blocks(tree, scanned)):
        tx, now = optimizer(config, lambda count: 0.1), form(params)
        state, update = tx.init(now), jax.jit(tx.update)
        for _ in range(2):
            updates, state = update(form(gradient), state, now)
            now = optax.apply_updates(now, updates)
        results.append(unstack_blocks(now))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)


def test_milestones_that_round_to_one_step_all_count() -> None:
    config = OptimConfig(schedule="step", learning_rate=1.0, milestones=(1.0, 1.1, 2.0), gamma=0.1)
    rates = [float(learning_rate(config, 9, 3)(step)) for step in range(9)]
    np.testing.assert_allclose(rates, [1.0] * 3 + [0.01] * 3 + [0.001] * 3, rtol=1e-6)


def cosine(step: int) -> float:
    return (
        0.4 * (0.01 + 0.99 * step / 25)
        if step < 25
        else 0.4 * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 25) / 175)) / 2)
    )


def steps(step: int) -> float:
    return 0.4 * 0.1 ** sum(step >= boundary for boundary in (50, 100))


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (
            OptimConfig(learning_rate=0.4, warmup_epochs=2, warmup_scale=0.01, final_scale=0.1),
            cosine,
        ),
        (OptimConfig(learning_rate=0.4, schedule="step", milestones=(4, 8)), steps),
        (
            OptimConfig(learning_rate=0.4, schedule="step", milestones=(4, 8), warmup_epochs=2),
            lambda s: 0.4 * s / 25 if s < 25 else steps(s),
        ),
        (OptimConfig(learning_rate=0.4, schedule="constant"), lambda step: 0.4),
        (
            OptimConfig(learning_rate=0.4, schedule="linear", final_scale=0.1),
            lambda step: 0.4 * (1 - 0.9 * step / STEPS),
        ),
        (
            OptimConfig(
                learning_rate=0.4,
                schedule="polynomial",
                power=2.0,
                warmup_steps=40,
                final_scale=0.01,
            ),
            lambda step: (
                0.4 * step / 40 if step < 40 else 0.4 * (0.01 + 0.99 * (1 - (step - 40) / 160) ** 2)
            ),
        ),
        (OptimConfig(learning_rate=0.4, schedule="step", milestone_steps=(50, 100)), steps),
        (
            OptimConfig(learning_rate=0.4, schedule="wsd", warmup_steps=40, final_scale=0.1),
            lambda s: 0.4 * (s / 40 if s < 40 else 1 - 0.9 * max(s - 160, 0) / 40),
        ),
    ],
)
def test_schedules_equal_their_formulas(config: OptimConfig, formula: object) -> None:
    schedule = learning_rate(config, STEPS, EPOCH)
    assert callable(formula)
    np.testing.assert_allclose(
        [schedule(step) for step in range(STEPS + 1)],
        [formula(step) for step in range(STEPS + 1)],
        rtol=1e-5,
        atol=1e-8,
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("everything", [False, True])
def test_sgd_is_pytorchs(nesterov: bool, everything: bool) -> None:
    config = OptimConfig(
        learning_rate=0.3,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.01,
        decay_norm_and_bias=everything,
        schedule="constant",
    )
    tx = optimizer(config, learning_rate(config, STEPS, EPOCH))
    params = {"kernel": jnp.ones((2, 3)), "scale": jnp.full(3, 2.0)}
    opt_state = tx.init(params)
    ours, buffers = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}, {}
    for step in range(5):
        gradients = {
            name: jax.random.normal(jax.random.key(step), leaf.shape)
            for name, leaf in params.items()
        }
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, weight in ours.items():  # the loop of torch.optim.SGD's documentation
            gradient = np.asarray(gradients[name], np.float64) + (
                0.01 * weight if everything or name == "kernel" else 0
            )
            buffers[name] = gradient if step == 0 else 0.9 * buffers[name] + gradient
            ours[name] = weight - 0.3 * (
                gradient + 0.9 * buffers[name] if nesterov else buffers[name]
            )
    for name, weight in ours.items():
        np.testing.assert_allclose(params[name], weight, rtol=1e-5)


def test_the_mask_spares_norms_and_biases() -> None:
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 1))},
        "bn": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
    }
    assert decayed(params) == {"conv": {"kernel": True}, "bn": {"scale": False, "bias": False}}


def trajectories(config: OptimConfig, make: Any, decay: bool = True, steps: int = 20) -> None:
    """Compares with a PyTorch optimizer, which `make` builds from groups with and without decay."""
    torch, _ = torch_and_timm()
    shapes = {"kernel": (4, 3), "scale": (3,)}
    params = {
        name: jax.random.normal(jax.random.key(9), shape) + 1 for name, shape in shapes.items()
    }
    theirs = {
        name: torch.nn.Parameter(torch.from_numpy(np.array(leaf))) for name, leaf in params.items()
    }
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": config.weight_decay},
        {"params": [theirs["scale"]], "weight_decay": 0.0},
    ]
    optimiser, tx = make(groups), optimizer(config, learning_rate(config, STEPS, EPOCH))
    opt_state, schedule = tx.init(params), learning_rate(config, STEPS, EPOCH)
    for step in range(steps):
        gradients = {
            name: jax.random.normal(jax.random.fold_in(jax.random.key(step), i), shapes[name])
            for i, name in enumerate(shapes)
        }
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, weight in theirs.items():
            weight.grad = torch.from_numpy(np.array(gradients[name]))
        for group in optimiser.param_groups:
            group["lr"] = float(schedule(step))
        optimiser.step()
    for name, weight in theirs.items():
        np.testing.assert_allclose(params[name], weight.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.extra
@needs_torch
@pytest.mark.parametrize("nesterov", [False, True])
def test_twenty_steps_are_pytorchs_sgd(nesterov: bool) -> None:
    torch, _ = torch_and_timm()
    config = OptimConfig(
        learning_rate=0.1, nesterov=nesterov, weight_decay=0.01, warmup_epochs=1, warmup_scale=0.1
    )
    trajectories(config, lambda groups: torch.optim.SGD(groups, 0.1, 0.9, nesterov=nesterov))


@pytest.mark.extra
@needs_torch
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_twenty_steps_are_timms_lamb(clip: float) -> None:
    torch_and_timm()
    optim = importlib.import_module("timm.optim")
    config = OptimConfig("lamb", 0.05, weight_decay=0.02, clip_norm=clip)
    trajectories(
        config, lambda groups: optim.Lamb(groups, 0.05, eps=1e-6, max_grad_norm=clip or None)
    )


@pytest.mark.extra
@needs_torch
@pytest.mark.parametrize("nesterov", [False, True])
def test_twenty_steps_are_timms_lars(nesterov: bool) -> None:
    torch_and_timm()
    optim = importlib.import_module("timm.optim")
    config = OptimConfig("lars", 2.0, nesterov=nesterov, weight_decay=0.05, trust_coefficient=0.01)
    trajectories(
        config,
        lambda groups: optim.Lars(groups, 2.0, momentum=0.9, nesterov=nesterov, trust_coeff=0.01),
    )


@pytest.mark.extra
@needs_torch
def test_twenty_steps_are_pytorchs_adamw() -> None:
    torch, _ = torch_and_timm()
    config = OptimConfig("adamw", 0.01, weight_decay=0.1, epsilon=1e-8)
    trajectories(config, lambda groups: torch.optim.AdamW(groups, 0.01, (0.9, 0.999), 1e-8))


def test_decoupled_decay_is_its_formula() -> None:
    config = OptimConfig(
        "sgdw", 0.4, momentum=0.0, weight_decay=0.1, warmup_epochs=2, schedule="constant"
    )
    schedule = learning_rate(config, STEPS, EPOCH)
    tx = optimizer(config, schedule)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    opt_state = tx.init(params)
    for _ in range(3):  # the third step, on a 25th of the way up
        updates, opt_state = tx.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    rate = float(schedule(2))
    np.testing.assert_allclose(updates["kernel"], -rate - rate / 0.4 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["scale"], -rate, rtol=1e-6)


@pytest.mark.parametrize("name", ["resnet20", "resnet9", "resnet50", "resnetv2_50", "densenet121"])
def test_depth_orders_the_stages(name: str) -> None:
    size, stages = (32, 3) if small_images(name) else (64, 4)
    shapes = jax.eval_shape(
        lambda: flaxres.create_model(name).init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    )["params"]
    tx = by_depth(0.5)
    updates, _ = jax.eval_shape(lambda p: tx.update(p, tx.init(p)), shapes)
    assert jax.tree.structure(updates) == jax.tree.structure(shapes)
    names = [
        "/".join(str(key.key) for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    found = {depth(path) for path in names}
    assert found == {*range(stages + 1), 5}
    heads = [path for path in names if depth(path) == 5]
    assert len(heads) == 2
    ones = {
        "conv1": {"kernel": jnp.ones(2)},
        "layer3": {"0": {"conv1": {"kernel": jnp.ones(2)}}},
        "fc": {"kernel": jnp.ones(2)},
    }
    scaled, _ = tx.update(ones, tx.init(ones))
    assert [
        float(leaf[0])
        for leaf in (
            scaled["conv1"]["kernel"],
            scaled["layer3"]["0"]["conv1"]["kernel"],
            scaled["fc"]["kernel"],
        )
    ] == [
        1 / 4,
        1 / 2,
        1,
    ]


def random_like(params: Any, seed: int) -> Any:
    key = jax.random.key(seed)
    return jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape), params
    )


@pytest.mark.extra
@needs_torch
@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (1, 1, 6, 24), (6, 24), (2, 3, 3, 4, 5)])
def test_twenty_steps_are_timms_muon(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW takes the head and the scales; each block of a scan is a matrix of its own.

    timm computes in float32 here, as we do, in place of bfloat16.
    """
    torch, _ = torch_and_timm()
    theirs = importlib.import_module("timm.optim.muon")
    monkeypatch.setattr(
        theirs,
        "zeropower_via_newtonschulz",
        functools.partial(theirs.zeropower_via_newtonschulz, dtype=torch.float32),
    )
    decay = {"weight_decay": 0.1, "momentum": 0.95}
    config = OptimConfig("muon", 0.02, epsilon=1e-8, warmup_epochs=1, warmup_scale=0.1, **decay)
    schedule = learning_rate(config, STEPS, EPOCH)
    tx = optimizer(config, schedule)
    block = "scanned" if len(shape) == 5 else "0"
    params = {
        block: {
            "conv": {"kernel": jax.random.normal(jax.random.key(1), shape) / 10},
            "scale": jnp.ones(4),
        },
        "fc": {"kernel": jax.random.normal(jax.random.key(2), (8, 3))},
    }

    def tensors(tree: Any) -> list[Any]:
        """The head, then the blocks' kernels, then the scale, in PyTorch's layouts."""
        kernels = np.array(tree[block]["conv"]["kernel"])
        if kernels.ndim == 2:
            kernels = kernels.T[None]
        else:
            kernels = kernels.reshape(-1, *shape[-4:]).transpose(0, 4, 3, 1, 2)
        leaves = (tree["fc"]["kernel"], *kernels, tree[block]["scale"])
        return [torch.from_numpy(np.array(leaf)) for leaf in leaves]

    weights = [torch.nn.Parameter(tensor) for tensor in tensors(params)]
    adam = [
        torch.optim.AdamW(weights[:1], 0.02, (0.95, 0.999), 1e-8, weight_decay=0.1),
        torch.optim.AdamW(weights[-1:], 0.02, (0.95, 0.999), 1e-8, weight_decay=0),
    ]
    original = {"nesterov": False, "ns_coefficients": "original"}
    muon = theirs.Muon(weights[1:-1], 0.02, **decay, **original)
    opt_state, update = tx.init(params), jax.jit(tx.update)
    for step in range(20):
        gradients = random_like(params, step)
        updates, opt_state = update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for weight, gradient in zip(weights, tensors(gradients), strict=True):
            weight.grad = gradient
        for peer in (*adam, muon):
            peer.param_groups[0]["lr"] = float(schedule(step))
            peer.step()
    for ours, weight in zip(tensors(params), weights, strict=True):
        np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=1e-4, atol=2e-5)


def test_the_rate_is_as_exact_as_the_step() -> None:
    """A rate in float32 made updates in float64 depend on the number of devices."""
    settings = OptimConfig(learning_rate=0.1, warmup_steps=3)
    with jax.enable_x64(True):
        rate = jax.jit(learning_rate(settings, 10, 5.0))(jnp.int32(1))
        assert rate.dtype == jnp.float64
        assert float(rate) == pytest.approx(0.1 / 3, rel=1e-15)
    assert jax.jit(learning_rate(settings, 10, 5.0))(jnp.int32(1)).dtype == jnp.float32
