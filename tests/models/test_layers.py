"""Layers against plain formulas and against XLA's own operations."""

import functools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

import flaxres
from flaxres.errors import InputError
from flaxres.models.group_norms import GroupNorm
from flaxres.models.layers import BatchNorm, Conv, norm_relu_pool, zero_pad_shortcut
from flaxres.models.pooling import shrink_average
from flaxres.models.stochastic import Dropout
from flaxres.ops.norm import NORMALISED, NORMALISED_AND_RECTIFIED
from flaxres.ops.pool import max_pool
from flaxres.training.mesh import data_mesh, split


def images(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("size", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (1, 2, 2), (3, 1, 1), (3, 2, 4), (7, 2, 1)]
)
def test_conv_is_the_symmetrically_padded_convolution(size: int, stride: int, groups: int) -> None:
    x, layer = images(2, 9, 10, 4), Conv(8, size, stride, groups)
    variables = layer.init(jax.random.key(1), x)
    pad = size // 2
    reference = nn.Conv(
        8,
        (size, size),
        stride,
        [(pad, pad), (pad, pad)],
        feature_group_count=groups,
        use_bias=False,
    )

    def value(module: nn.Module, x: jax.Array) -> jax.Array:
        return jnp.sin(module.apply(variables, x)).sum()

    np.testing.assert_allclose(layer.apply(variables, x), reference.apply(variables, x), atol=1e-5)
    np.testing.assert_allclose(
        jax.grad(value, 1)(layer, x), jax.grad(value, 1)(reference, x), atol=1e-4
    )


def test_conv_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(
        InputError, match=r"\(=4\) and out \(=8\) must be divisible by groups \(=3\)"
    ):
        Conv(8, groups=3).init(jax.random.key(0), images(1, 4, 4, 4))


def test_conv_starts_with_he_fan_out() -> None:
    kernel = Conv(256, 3, dtype=jnp.bfloat16).init(jax.random.key(0), images(1, 4, 4, 64))[
        "params"
    ]["kernel"]
    assert kernel.dtype == jnp.float32
    assert float(kernel.std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("group", [None, 2, 4])
def test_batch_norm_by_groups(group: int | None) -> None:
    x = images(8, 3, 5, 6) * 3 + 1
    layer = BatchNorm(group)
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    y, new = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    rows = np.asarray(x, np.float64)
    for first in range(0, 8, group or 8):
        part = rows[first : first + (group or 8)]
        expected = (part - part.mean((0, 1, 2))) / np.sqrt(part.var((0, 1, 2)) + 1e-5)
        np.testing.assert_allclose(y[first : first + (group or 8)], expected, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * rows.mean((0, 1, 2)), atol=1e-6)
    # However it is grouped, the running variance is that of all images together.
    np.testing.assert_allclose(
        new["batch_stats"]["var"], 0.9 + 0.1 * rows.var((0, 1, 2)), rtol=1e-5
    )
    z = layer.apply({"params": variables["params"], **new}, x, use_running_average=True)
    np.testing.assert_allclose(
        z, (x - new["batch_stats"]["mean"]) / np.sqrt(new["batch_stats"]["var"] + 1e-5), atol=1e-5
    )


def test_batch_norm_statistics_are_float32_in_bfloat16() -> None:
    x = (images(64, 8, 8, 4) + 30).astype(jnp.bfloat16)
    layer = BatchNorm(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    y, new = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert new["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(
        new["batch_stats"]["var"], 0.9 + 0.1 * np.asarray(x, np.float64).var((0, 1, 2)), rtol=1e-3
    )


@pytest.mark.parametrize("group", [None, 2])
@pytest.mark.parametrize("negative", [False, True])
def test_the_variance_survives_a_large_mean(group: int | None, negative: bool) -> None:
    """Runs a few steps on values of mean 300 and deviation 1.

    `E[x^2] - E[x]^2` in float32 is wrong by a tenth there.
    """
    layer = BatchNorm(group, momentum=0.5)
    x = images(8, 16, 16, 4) + (-300 if negative else 300)
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    step = jax.jit(lambda v: layer.apply(v, x, use_running_average=False, mutable=["batch_stats"]))
    for _ in range(25):
        y, new = step(variables)
        variables = variables | new
    rows = np.asarray(x, np.float64).reshape(8 // (group or 8), -1, 4)
    expected = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=2e-4)
    variance = rows.reshape(-1, 4).var(0)
    np.testing.assert_allclose(new["batch_stats"]["var"], variance, rtol=2e-5)


def test_batch_norm_refuses_a_group_that_does_not_divide_or_comes_with_an_axis() -> None:
    variables = BatchNorm(3).init(jax.random.key(0), images(8, 2, 2, 4), use_running_average=False)
    with pytest.raises(InputError, match=r"bn_group \(=3\) must divide the 8 images"):
        BatchNorm(3).apply(
            variables, images(8, 2, 2, 4), use_running_average=False, mutable=["batch_stats"]
        )
    with pytest.raises(InputError, match="exclude each other"):
        BatchNorm(4, "data").apply(
            variables, images(8, 2, 2, 4), use_running_average=False, mutable=["batch_stats"]
        )


def test_batch_norm_refuses_one_value_a_channel() -> None:
    """Its output would be zero but for rounding, whose sign then decides what a ReLU passes."""
    variables = BatchNorm().init(jax.random.key(0), images(8, 1, 1, 4), use_running_average=False)

    def train(layer: BatchNorm, x: jax.Array) -> jax.Array:
        return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])[0]

    for layer, x in ((BatchNorm(1), images(8, 1, 1, 4)), (BatchNorm(), images(1, 1, 1, 4))):
        with pytest.raises(InputError, match="one value for each channel"):
            train(layer, x)
    for layer, x in ((BatchNorm(1), images(8, 1, 2, 4)), (BatchNorm(2), images(8, 1, 1, 4))):
        assert np.abs(train(layer, x)).max() > 0.5
    # The other images of the mapped axis count.
    mapped = jax.vmap(lambda x: train(BatchNorm(axis_name="data"), x), axis_name="data")
    assert np.abs(mapped(images(8, 1, 1, 4)[:, None])).max() > 0.5


def test_axis_name_gives_the_statistics_of_the_whole_batch() -> None:
    x, mesh = images(16, 3, 3, 4) * 2 + 1, data_mesh(4)
    variables = BatchNorm().init(jax.random.key(0), x, use_running_average=False)

    def run(layer: BatchNorm, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, new = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        return y, new["batch_stats"]["var"]

    whole = run(BatchNorm(), x)
    data = PartitionSpec("data")
    mapped = jax.shard_map(
        lambda x: run(BatchNorm(axis_name="data"), x),
        mesh=mesh,
        in_specs=data,
        out_specs=(data, PartitionSpec()),
    )(x)
    for ours, expected in zip(mapped, whole, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    pmapped = jax.pmap(lambda x: run(BatchNorm(axis_name="data"), x), axis_name="data")(
        x.reshape(8, 2, 3, 3, 4)
    )
    np.testing.assert_allclose(pmapped[0].reshape(x.shape), whole[0], atol=1e-5)


@pytest.mark.parametrize(
    ("group", "devices", "expected"),
    [(None, 4, True), (4, 4, False), (2, 4, False), (16, 4, True), (4, 1, False)],
)
def test_aligned_groups_need_no_communication(
    group: int | None, devices: int, expected: bool
) -> None:
    mesh, x = data_mesh(devices), images(16, 4, 4, 8)
    layer = BatchNorm(group)
    variables = layer.init(jax.random.key(0), x, use_running_average=False)

    def normalised(x: jax.Array) -> jax.Array:
        return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])[0]

    program = (
        jax.jit(normalised, in_shardings=split(mesh), out_shardings=split(mesh))
        .lower(x)
        .compile()
        .as_text()
    )
    assert (
        any(word in program for word in ("all-reduce", "all-gather", "collective-permute"))
        == expected
    )


NORMS = BatchNorm(), BatchNorm(2), BatchNorm(frozen=True), GroupNorm(3)


@pytest.mark.parametrize(
    "layer",
    [*NORMS, BatchNorm(dtype=jnp.bfloat16)],
    ids=["batch", "groups", "frozen", "group norm", "bfloat16"],
)
def test_pooling_before_a_norm_is_pooling_after_it(layer: Any) -> None:
    """Compares values, statistics and gradients, in training and at rest.

    Channels have scales of both signs, and one has a scale of zero.
    """
    x = images(6, 9, 8, 6).astype(layer.dtype)
    params = {
        "scale": jnp.asarray([1.5, -0.5, 0.0, -2.0, 1.0, 0.3]),
        "bias": jnp.linspace(-0.5, 0.5, 6),
    }
    stats = {"mean": jnp.linspace(-0.2, 0.3, 6), "var": jnp.linspace(0.5, 2.0, 6)}
    weights = images(6, 5, 4, 6, seed=1)

    def loss(params: Any, x: jax.Array, before: bool, rest: bool) -> tuple[jax.Array, Any]:
        variables = {"params": params} | (
            {"batch_stats": stats} if isinstance(layer, BatchNorm) else {}
        )

        def pooled(norm: nn.Module, x: jax.Array) -> jax.Array:
            return norm_relu_pool(norm, x, not rest, max_pool, features=not before)[1]

        y, new = nn.apply(pooled, layer, mutable=["batch_stats"])(variables, x)
        return (y.astype(jnp.float32) * weights).sum(), (y, new)

    for rest in (False, True):
        before, after = (
            jax.grad(loss, (0, 1), has_aux=True)(params, x, before, rest)
            for before in (True, False)
        )
        jax.tree.map(np.testing.assert_array_equal, before[1], after[1])
        # In bfloat16 more values of a window are equal after the norm, and the gradient goes to
        # another of them.
        if layer.dtype == jnp.float32:
            alike = np.arange(6) != 2  # of a scale of 0 all are
            for got, expected in zip(
                jax.tree.leaves(before[0]), jax.tree.leaves(after[0]), strict=True
            ):
                np.testing.assert_allclose(got[..., alike], expected[..., alike], atol=1e-4)


STEMS = {
    "maximum": flaxres.ResNet(depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=3),
    "deep": flaxres.ResNet(depths=(1, 1), widths=(8, 16), stem="deep", stem_width=4, num_classes=3),
    "blur": flaxres.ResNet(
        depths=(1, 1), widths=(8, 16), stem_width=8, anti_alias="blur", num_classes=3
    ),
    "average": flaxres.ResNet(
        depths=(1, 1), widths=(8, 16), stem_width=8, anti_alias="average", num_classes=3
    ),
    "densenet": flaxres.DenseNet(depths=(2, 2), growth=4, stem_width=8, num_classes=3),
}


@pytest.mark.parametrize("stem", STEMS)
def test_the_map_of_the_stem_changes_nothing(stem: str) -> None:
    """Compares pooling after the norm, which the stem's map needs, to pooling before it.

    Scales have both signs.
    """
    model, x, rng = STEMS[stem], images(2, 32, 32, 3), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = {
        kind: jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), shapes[kind]
        )
        for kind in shapes
    }
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    maps = model.apply(variables, x, features=True)
    pooled = model.clone(num_classes=0, parent=None).apply(variables, x)
    np.testing.assert_allclose(
        maps["pooled"], pooled, rtol=1e-5, atol=1e-5 * float(jnp.abs(pooled).max())
    )
    assert maps["stem"].shape[1:3] == (16, 16)


def test_gradients_of_each_image_apart() -> None:
    """A saliency map: what reads the images is mapped, the parameters are not."""
    model, x = STEMS["maximum"], images(3, 32, 32, 3)
    variables = model.init(jax.random.key(0), x)
    one = jax.jit(jax.grad(lambda image: model.apply(variables, image[None])[0, 1]))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(one))(x), jnp.stack([one(image) for image in x]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("group", "dtype"), [(None, jnp.float32), (2, jnp.float32), (2, jnp.bfloat16)]
)
def test_a_rectified_norm_is_a_norm_and_a_relu(group: int | None, dtype: jnp.dtype) -> None:
    """Compares values, statistics and derivatives of both modes and of the second order.

    Derivatives are by parameters, input and running statistics.
    """
    layer, x = BatchNorm(group, dtype=dtype), images(4, 3, 3, 6).astype(dtype)
    params = {"scale": jnp.linspace(-1.0, 2.0, 6), "bias": jnp.linspace(0.5, -0.5, 6)}
    stats = {"mean": jnp.linspace(-0.2, 0.3, 6), "var": jnp.linspace(0.5, 2.0, 6)}
    weights, change = (
        images(*x.shape, seed=1),
        (jax.tree.map(jnp.ones_like, params), images(*x.shape, seed=2).astype(dtype), stats),
    )
    tolerance = 1e-4 if dtype == jnp.float32 else 0.1

    def outcome(params: Any, x: jax.Array, stats: Any, joint: bool, rest: bool) -> Any:
        variables = {"params": params, "batch_stats": stats}
        form = NORMALISED_AND_RECTIFIED if joint else NORMALISED
        y, new = layer.apply(variables, x, rest, form, mutable=["batch_stats"])
        return y if joint else nn.relu(y), new

    for rest in (False, True):
        results = []
        for joint in (True, False):
            function = functools.partial(outcome, joint=joint, rest=rest)

            def loss(params: Any, x: jax.Array, stats: Any, function: Any = function) -> jax.Array:
                return (function(params, x, stats)[0].astype(jnp.float32) ** 2 * weights).sum()

            gradient = jax.grad(loss, (0, 1, 2))
            results.append(
                (
                    function(params, x, stats),
                    gradient(params, x, stats),
                    jax.jvp(function, (params, x, stats), change)[1],
                )
            )
            if dtype == jnp.float32:
                results[-1] += (jax.jvp(gradient, (params, x, stats), change)[1],)
        for got, expected in zip(
            jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True
        ):
            np.testing.assert_allclose(
                got.astype(jnp.float32),
                expected.astype(jnp.float32),
                rtol=tolerance,
                atol=tolerance,
            )


def test_zero_pad_shortcut_subsamples_and_centres_the_channels() -> None:
    x = images(1, 4, 4, 2)
    y = zero_pad_shortcut(x, 6, 2)
    np.testing.assert_array_equal(y[..., 2:4], x[:, ::2, ::2])
    assert not y[..., :2].any()
    assert not y[..., 4:].any()


@pytest.mark.parametrize("height", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_the_average_of_a_shortcut_is_that_of_the_pixels_inside(height: int, width: int) -> None:
    """Compares with NumPy; XLA's windows over the edge gave other values for some batches."""
    sizes = ((1, 8), (8, 256), (16, 256))
    batches = [np.asarray(images(count, height, width, channels)) for count, channels in sizes]
    shrunk = jax.jit(lambda batches: [shrink_average(x, stride=2) for x in batches])(batches)
    for x, ours in zip(batches, shrunk, strict=True):
        expected = [
            [x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in range(0, width, 2)]
            for i in range(0, height, 2)
        ]
        np.testing.assert_allclose(ours, np.array(expected).transpose(2, 0, 1, 3), atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.37, 0.5])
def test_dropout_is_flaxs_and_the_same_with_x64(rate: float) -> None:
    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return Dropout(rate)(x, True)

    class Flaxs(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dropout(rate, deterministic=False)(x)

    x, rngs = images(64, 1, 1, 32), {"dropout": jax.random.key(3)}
    got = Ours().apply({}, x, rngs=rngs)
    np.testing.assert_array_equal(got, Flaxs().apply({}, x, rngs=rngs))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(Ours().apply({}, x, rngs=rngs), got)


def test_what_training_needs_is_named() -> None:
    model = flaxres.ResNet(depths=(1,), widths=(4,), block="basic", stem="small", dropout=0.5)
    x = images(2, 8, 8, 3)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    with pytest.raises(InputError, match=r'train=True, mutable=\["batch_stats"\]'):
        model.apply(variables, x, train=True)
    with pytest.raises(InputError, match=r'train=True, rngs=\{"dropout": key\}'):
        model.apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(InputError, match=r"num_classes \(=-1\): the rule is >= 0"):
        model.clone(num_classes=-1).init(jax.random.key(0), x)
