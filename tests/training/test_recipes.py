"""Parts of the step: losses, accumulation, averages, float16, SAM, distillation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxres import (
    AugmentConfig,
    Config,
    DataConfig,
    InputError,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from flaxres.config.check import check
from flaxres.data.augment import normalise
from flaxres.data.order import mirrored
from flaxres.models.network import Network
from flaxres.models.resnet import ResNet
from flaxres.training.augmentation import augmented
from flaxres.training.losses import distillation_losses, example_losses
from flaxres.training.mesh import data_mesh
from flaxres.training.optimizers import learning_rate, optimizer
from flaxres.training.state import State, create_state
from flaxres.training.steps import compiled_train_step, eval_step

SIZE, CLASSES = 8, 6


def model(**attributes: Any) -> ResNet:
    return ResNet(
        depths=(1, 1),
        **{"block": "basic", "widths": (8, 16)} | attributes,
        num_classes=CLASSES,
        stem="small",
        stem_width=8,
    )


def config(
    batch: int = 32, optim: OptimConfig | None = None, group: int | None = 8, **train: Any
) -> Config:
    optim = optim or OptimConfig(learning_rate=0.1, schedule="constant")
    data = DataConfig(image_size=SIZE, eval_size=SIZE, eval_resize=SIZE, crop="centre")
    return Config(
        ModelConfig("resnet20", dtype="float32", bn_group=group),
        data,
        optim=optim,
        train=TrainConfig(batch, **train),
    )


def batch(size: int, first: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(first)
    images, labels = (
        rng.integers(0, 256, (size, SIZE, SIZE, 3), np.uint8),
        rng.integers(0, CLASSES, size).astype(np.int32),
    )
    return {
        "image": images,
        "label": labels,
        "position": np.arange(first, first + size, dtype=np.uint32),
        "weight": np.ones(size, np.float32),
    }


def steps(
    settings: Config,
    count: int = 1,
    devices: int = 1,
    teacher: Any = None,
    spoil: Any = None,
    **attributes: Any,
) -> tuple[State, Any]:
    """The state and the metrics after some steps; `spoil` changes the state before each."""
    network, mesh = (
        model(
            bn_group=settings.model.bn_group, dtype=jnp.dtype(settings.model.dtype), **attributes
        ),
        data_mesh(devices),
    )
    schedule = learning_rate(settings.optim, 100, 10.0)
    tx = optimizer(settings.optim, schedule)
    step = compiled_train_step(settings, network, tx, schedule, mesh, 10.0, teacher and teacher[0])
    state: Any = create_state(network, tx, settings, mesh)
    metrics: Any = {}
    for i in range(count):
        state = spoil(state, i) if spoil else state
        state, metrics = step(
            state,
            np.uint32(settings.train.seed),
            batch(settings.train.batch_size, i * settings.train.batch_size),
            *(teacher[1:] if teacher else ()),
        )
    return state, metrics


def far(ours: Any, theirs: Any) -> float:
    """The largest difference, over the largest value of its array."""
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (ours, theirs)), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


@pytest.mark.slow
def test_four_parts_of_32_are_a_batch_of_128() -> None:
    whole, _ = steps(config(128))
    parts, metrics = steps(config(128, accumulate=4), devices=4)
    assert far(parts.variables, whole.variables) < 1e-5
    assert 0 <= float(metrics["top1"]) <= 1


@pytest.mark.slow
def test_parts_of_a_grouped_network_on_half_of_the_devices_each() -> None:
    """A part is 8 neighbours of 16 images on 4 devices: two devices hold each part."""
    settings = config(16, accumulate=2)
    network = {"block": "bottleneck", "widths": (32, 32), "cardinality": 4, "base_width": 32}
    network["shortcut"] = "none"  # scales of zero would hide the gradients
    parts, _ = steps(settings, 2, devices=4, **network)
    alone, _ = steps(settings, 2, devices=1, **network)
    assert far(parts.variables, alone.variables) < 1e-4


def test_parts_whose_statistics_would_be_others_are_refused() -> None:
    with pytest.raises(InputError, match="bn_group"):
        check(config(128, group=None, accumulate=4))
    with pytest.raises(InputError, match="bn_group"):
        check(config(128, group=64, accumulate=4))
    with pytest.raises(InputError, match=r"train.accumulate=3 must divide train.batch_size=128"):
        check(config(128, accumulate=3))


def test_binary_losses_are_their_formulas() -> None:
    logits, targets = jnp.asarray([[1.0, -2.0, 0.5]]), jnp.asarray([[0.7, 0.1, 0.3]])
    each = -(
        targets * jnp.log(jax.nn.sigmoid(logits))
        + (1 - targets) * jnp.log(1 - jax.nn.sigmoid(logits))
    )

    def loss(targets: jax.Array, **settings: Any) -> float:
        return float(example_losses(OptimConfig(**settings), logits, targets)[0])

    assert loss(targets, loss="binary") == pytest.approx(float(each.mean()), rel=1e-5)
    assert loss(targets, loss="binary_sum") == pytest.approx(float(each.sum()), rel=1e-5)
    hard = loss(targets, loss="binary", binary_threshold=0.2)
    assert hard == pytest.approx(loss(jnp.asarray([[1.0, 0, 1.0]]), loss="binary"), rel=1e-6)


def test_the_average_is_its_formula_and_evaluation_uses_it() -> None:
    start, _ = steps(config(ema_decay=0.5), 0)
    assert far(start.ema, start.variables) == 0
    seen = [start.variables]

    def remember(state: State, i: int) -> State:
        seen.append(jax.tree.map(np.asarray, state.variables))
        return state

    state, _ = steps(config(ema_decay=0.5, ema_every=2, ema_start_epochs=0.2), 6, spoil=remember)
    trajectory = [*seen[1:], state.variables]  # after 0, 1, ... 6 steps
    expected = trajectory[2]  # a copy until epoch 0.2, which is step 2; then every second step
    for number in (4, 6):
        expected = jax.tree.map(
            lambda old, new: 0.5 * old + 0.5 * new, expected, trajectory[number]
        )
    assert far(state.ema, expected) < 1e-6
    assert state.eval_variables is state.ema


@pytest.mark.slow
def test_fault_28_an_overflow_leaves_everything_but_the_scale() -> None:
    half = dataclasses.replace(
        config(ema_decay=0.9), model=ModelConfig("resnet20", dtype="float16", bn_group=8)
    )
    _, metrics = steps(half, 2)
    assert float(metrics["loss_scale"]) == 2.0**16
    assert np.isfinite(float(metrics["loss"]))
    kept: list[Any] = []

    def overflow(state: State, i: int) -> State:
        if i == 1:
            state = state.replace(loss_scale={"scale": jnp.float32(2.0**60), "good": jnp.int32(7)})
            kept.append(jax.tree.map(np.asarray, state))
        return state

    after, metrics = steps(half, 2, spoil=overflow)
    before = kept[0]
    assert int(after.step) == 2
    assert float(metrics["finite"]) == 1
    assert float(after.loss_scale["scale"]) == 2.0**59
    assert int(after.loss_scale["good"]) == 0
    for name in ("params", "batch_stats", "ema"):
        assert far(getattr(after, name), getattr(before, name)) == 0, name
    counts = [
        leaf for leaf in jax.tree.leaves(after.opt_state) if jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    assert [int(count) for count in counts] == [2], "the schedule goes on with the run"
    traces = [
        [
            leaf
            for leaf in jax.tree.leaves(state.opt_state)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        for state in (after, before)
    ]
    assert far(*traces) == 0


def test_the_scale_grows_after_enough_good_steps() -> None:
    half = dataclasses.replace(config(), model=ModelConfig("resnet20", dtype="float16", bn_group=8))
    ready = {"scale": jnp.float32(1024), "good": jnp.int32(1999)}
    state, _ = steps(
        half, 1, spoil=lambda state, i: state.replace(loss_scale=jax.tree.map(jnp.copy, ready))
    )
    assert (float(state.loss_scale["scale"]), int(state.loss_scale["good"])) == (2048, 0)


@pytest.mark.slow
def test_sharpness_aware_steps_are_the_papers() -> None:
    """By hand: the gradient at w + rho * g / |g|, with the learning rate at w."""
    base = OptimConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")
    start, plain = (steps(config(optim=base), count)[0] for count in (0, 1))
    # In NumPy: JAX would compile each operation for each shape.
    before, after = jax.device_get((start.params, plain.params))
    gradient = jax.tree.map(lambda a, b: (a - b) / 0.1, before, after)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient)))
    uphill = jax.tree.map(lambda w, g: w + np.float32(0.5 / norm) * g, before, gradient)
    there, _ = steps(
        config(optim=base), 1, spoil=lambda state, i: state.replace(params=jax.device_put(uphill))
    )
    moved = jax.device_get(there.params)
    expected = jax.tree.map(lambda w, a, b: w - (a - b), before, uphill, moved)
    sharp, _ = steps(config(optim=dataclasses.replace(base, sam_rho=0.5)), 1)
    assert far(sharp.params, expected) < 1e-4
    assert far(sharp.batch_stats, plain.batch_stats) < 1e-6
    seldom = dataclasses.replace(base, sam_rho=0.5, sam_every=2)
    one, _ = steps(config(optim=seldom), 1)
    assert far(one.params, expected) < 1e-4, "step 0 is one of them"


def test_a_student_is_pulled_to_its_teacher() -> None:
    logits, teacher = jnp.asarray([[1.0, 2.0, 0.0]]), jnp.asarray([[2.0, 0.0, 1.0]])
    p, q = jax.nn.softmax(teacher / 3), jax.nn.softmax(logits / 3)
    assert distillation_losses(3.0, logits, teacher)[0] == pytest.approx(
        float(9 * (p * (jnp.log(p) - jnp.log(q))).sum()), rel=1e-5
    )
    network = model()
    variables = network.init(jax.random.key(3), jnp.zeros((1, SIZE, SIZE, 3)))
    variables["params"]["fc"]["bias"] = (
        variables["params"]["fc"]["bias"].at[4].set(9.0)
    )  # a teacher that always says 4
    taught = config(optim=OptimConfig(learning_rate=0.5, schedule="constant", distill_alpha=1.0))
    state, metrics = steps(taught, 30, teacher=(network, variables))
    answers = model().apply(state.variables, jnp.zeros((1, SIZE, SIZE, 3)))
    assert int(jnp.argmax(answers)) == 4
    assert float(metrics["loss"]) < 0.5


def test_half_a_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="distill_model and optim.distill_weights go together"):
        check(config(optim=OptimConfig(distill_model="resnet20")))


def evaluation_loss(
    settings: Config, network: Network, variables: Any, batch: dict[str, Any]
) -> float:
    return float(eval_step(settings.data, network, "float32")(variables, batch)["loss"])


def test_flipping_averages_the_logits_of_both() -> None:
    network = model()
    variables = network.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    flipped = dataclasses.replace(config(), data=dataclasses.replace(config().data, eval_flip=True))
    inputs = batch(8)
    mirrored = inputs | {"image": inputs["image"][:, :, ::-1].copy()}
    one, other = (evaluation_loss(flipped, network, variables, part) for part in (inputs, mirrored))
    assert one == pytest.approx(other, rel=1e-6)
    assert one != pytest.approx(evaluation_loss(config(), network, variables, inputs), rel=1e-6)


def test_the_step_mirrors_what_alternates() -> None:
    alternating = dataclasses.replace(config(), augment=AugmentConfig(flip_alternates=True))
    given, size = batch(8, 16), 11
    seed = alternating.train.seed
    seen = augmented(given, alternating.data, alternating.augment, seed, size, jnp.float32)
    plain = normalise(given["image"], alternating.data.mean, alternating.data.std, jnp.float32)
    which = mirrored(given["position"], size, alternating.train.seed)
    assert which.any()
    assert not which.all()
    for row, turned in enumerate(which):
        np.testing.assert_allclose(
            seen[row], plain[row, :, ::-1] if turned else plain[row], rtol=1e-6
        )


def test_moving_averages_the_logits_of_three_places() -> None:
    network = model()
    variables = network.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    moved = dataclasses.replace(config(), data=dataclasses.replace(config().data, eval_shift=2))
    inputs = batch(8)
    padded = np.pad(inputs["image"], ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    places = [inputs["image"], padded[:, :SIZE, :SIZE], padded[:, 4 : SIZE + 4, 4 : SIZE + 4]]
    middle, low, high = (
        network.apply(variables, normalise(place, moved.data.mean, moved.data.std, jnp.float32))
        for place in places
    )
    expected = optax.softmax_cross_entropy_with_integer_labels(
        middle / 2 + low / 4 + high / 4, inputs["label"]
    ).sum()
    loss, unmoved = (
        evaluation_loss(settings, network, variables, inputs) for settings in (moved, config())
    )
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert loss != pytest.approx(unmoved, rel=1e-6)


@pytest.mark.parametrize("far", [-1, SIZE])
def test_pictures_moved_out_of_sight_are_refused(far: int) -> None:
    with pytest.raises(
        InputError, match=f"data.eval_shift={far}: the rule is 0 <= eval_shift < data.eval_size"
    ):
        check(
            dataclasses.replace(config(), data=dataclasses.replace(config().data, eval_shift=far))
        )


def test_the_heads_bias_starts_where_the_config_says() -> None:
    variables = model(head_bias=-2.5).init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    np.testing.assert_array_equal(variables["params"]["fc"]["bias"], -2.5)
