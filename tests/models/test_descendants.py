"""Networks with blocks of their own: Res2Net, ResNeSt, SKNet, RegNet, ConvNeXt, NFNet, CLIP's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.errors import InputError
from flaxres.models.activations import relu
from flaxres.models.channel_norms import GlobalResponseNorm, LayerNorm
from flaxres.models.clip import PooledBottleneck
from flaxres.models.convnext import ConvNeXtBlock
from flaxres.models.network import Network
from flaxres.models.nfnet import NormFreeBlock
from flaxres.models.pooling import average_neighbours
from flaxres.models.regnet import RegNetBlock, design
from flaxres.models.res2net import MultiScaleBlock
from flaxres.models.resnest import SplitAttention, SplitAttentionBlock
from flaxres.models.senet import LegacyBlock
from flaxres.models.sknet import PathAttention, SelectiveKernelBlock
from flaxres.models.stage import stack_blocks
from tests.models.test_variants import shapes

RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {"depths": (3,), "widths": (16,), "num_classes": 3}
NETWORKS: dict[str, Network] = {
    "res2net": flaxres.Res2Net(**SMALL, stem_width=8, base_width=26),
    "resnest": flaxres.ResNeSt(**SMALL, stem_width=8, stem="deep", shortcut="average"),
    "resnest of one map": flaxres.ResNeSt(
        **SMALL, stem_width=8, radix=1, cardinality=2, average_first=True
    ),
    "sknet": flaxres.SKNet(**SMALL, stem_width=8, block="basic"),
    "sknext": flaxres.SKNet(**SMALL, stem_width=8, cardinality=2, split=False),
    "regnetx": flaxres.RegNet(**SMALL, stem_width=8),
    "convnext": flaxres.ConvNeXt(**SMALL, stem="overlap_tiered", hidden=8),
    "convnextv2": flaxres.ConvNeXt(
        **SMALL, layer_scale=None, response_norm=True, convolutions=True, norm_first=True
    ),
    "regnety": flaxres.RegNet(**SMALL, stem_width=8, se_ratio=0.25),
    "regnetv": flaxres.RegNet(**SMALL, stem_width=8, preactivation=True, activation="silu"),
    "regnetz": flaxres.RegNet(**SMALL, stem_width=8, expansion=2, shortcut="none", linear=True),
    "nfnet": flaxres.NFNet(
        **SMALL, stem_width=8, group_width=4, last_width=8, skip_gain=True, same_padding=True
    ),
    "nf-regnet": flaxres.NFNet(
        **SMALL, stem="single", stem_width=8, group_width=None, inverted=True, last_width=0
    ),
    "legacy": flaxres.LegacySENet(**SMALL, stem_width=8, block="basic"),
    "clip": flaxres.CLIPResNet(**SMALL | {"widths": (64,)}, stem_width=8, image_size=32),
}

VARIANTS = ("resnest of one map", "sknext", "regnetx", "regnetz", "nf-regnet")
SHAPE = {"kind": "bottleneck", "width": 8, "stride": 1, "stochastic": True}
BLOCKS: dict[str, Any] = {
    "res2net": functools.partial(MultiScaleBlock, **SHAPE),
    "resnest": functools.partial(SplitAttentionBlock, **SHAPE),
    "sknet": functools.partial(SelectiveKernelBlock, **SHAPE),
    "regnet": functools.partial(RegNetBlock, 32, 32, 4, 1, (1, 1), 4, stochastic=True),
    "convnext": lambda conv, norm: ConvNeXtBlock(
        32, 1, 0.1, conv, functools.partial(conv, kernel_size=1), LayerNorm, stochastic=True
    ),
    "legacy": functools.partial(LegacyBlock, **SHAPE),
    "clip": functools.partial(PooledBottleneck, 32, 1, stochastic=True),
    "nfnet": lambda conv, norm: NormFreeBlock(
        32, 8, 1, 1, (1, 1), conv, relu, 0.2, stochastic=True
    ),
}


def filled(model: Network) -> Any:
    """Returns random variables without zeros, which would hide a branch."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(RNG.uniform(0.1, 0.3, leaf.shape), leaf.dtype), variables
    )


def filled_block(block: Any, x: jax.Array) -> Any:
    """Returns variables of ones in the shapes of a block's, kernels scaled down."""
    variables = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 0.3, leaf.shape)), variables)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS)) for name in NETWORKS],
)
def test_a_scanned_network_is_the_unrolled_one(name: str) -> None:
    model, images = NETWORKS[name], jnp.asarray(RNG.normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = filled(model)

    def run(model: Network, variables: Any) -> Any:
        return jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]))(
            variables
        )

    logits, new = run(model, variables)
    rolled = model.clone(scan_blocks=True, remat=True)
    like = jax.eval_shape(rolled.init, jax.random.key(0), images)
    scanned, stacked = run(rolled, stack_blocks(variables, like))
    assert "batch_stats" in new or isinstance(model, flaxres.ConvNeXt | flaxres.NFNet)
    assert scanned.shape == (2, 3)
    np.testing.assert_allclose(scanned, logits, rtol=1e-4)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4)
    jax.tree.map(close, dict(stacked), stack_blocks(new, stacked))


@pytest.mark.parametrize("name", BLOCKS)
def test_stochastic_depth_drops_the_branch(name: str) -> None:
    block = BLOCKS[name](conv=flaxres.ResNet().conv(), norm=flaxres.ResNet().norm())
    x = jnp.asarray(RNG.uniform(1, 2, (2, 6, 6, 32)), jnp.float32)
    variables = filled_block(block, x)

    def run(rate: float) -> Any:
        keys = {"dropout": jax.random.key(0)}
        return block.apply(variables, x, True, rate, rngs=keys, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(run(1.0), x)
    assert not np.allclose(run(0.0), x)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("res2net50_26w_4s", {"layer1.0.convs.2.weight": (3, 3, 26, 26)}),
        ("res2next50", {"layer4.2.convs.0.weight": (3, 3, 32, 256)}),
        ("resnest50d", {"layer1.0.conv2.conv.weight": (3, 3, 32, 128)}),
        ("resnest50d_4s2x40d", {"layer1.0.conv2.fc2.weight": (1, 1, 40, 320)}),
        ("skresnet18", {"layer1.0.conv1.paths.1.conv.weight": (3, 3, 32, 64)}),
        ("skresnext50_32x4d", {"layer1.0.conv2.attn.fc_select.weight": (1, 1, 32, 256)}),
        ("convnext_tiny", {"stages.1.downsample.1.bias": (192,), "head.fc.bias": (1000,)}),
        ("convnextv2_atto", {"stages.0.blocks.1.mlp.grn.bias": (160,)}),
        ("convnext_large_mlp", {"head.pre_logits.fc.weight": (1536, 1536)}),
        (
            "regnetv_064",
            {"s1.b1.downsample.1.weight": (1, 1, 32, 144), "stem.weight": (3, 3, 3, 32)},
        ),
        ("regnetz_040_h", {"final_conv.conv.weight": (1, 1, 528, 1536)}),
        ("dm_nfnet_f0", {"stages.1.1.skipinit_gain": (), "stages.0.0.attn_last.fc1.bias": (128,)}),
        ("nf_regnet_b0", {"final_conv.gain": (960,), "stages.0.0.attn.fc1.bias": (24,)}),
        ("legacy_seresnet18", {"layer1.0.se_module.fc1.bias": (4,), "layer0.bn1.bias": (64,)}),
        ("resnet50_clip", {"head.pos_embed": (50, 2048), "head.proj.bias": (1024,)}),
        ("resnet50_clip", {"stages.1.0.shortcut.conv.bn.bias": (512,)}),
        ("regnety_002", {"s4.b7.se.fc1.weight": (1, 1, 368, 92), "head.fc.bias": (1000,)}),
    ],
)
def test_layers_have_timms_names(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    assert expected.items() <= shapes(flaxres.create_model(name)).items()


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: flaxres.Res2Net(block="basic"), "unknown block 'basic'"),
        (lambda: flaxres.Res2Net(anti_alias="blur"), "unknown anti_alias 'blur'"),
        (lambda: flaxres.ResNeSt(attention="se"), "unknown attention 'se'"),
        (lambda: flaxres.SKNet(v1=True), "unknown v1 '?True"),
        (lambda: flaxres.ConvNeXt(stem="deep"), "unknown stem 'deep'"),
        (lambda: flaxres.RegNet(output_stride=4), "unknown output_stride '?4"),
        (lambda: flaxres.RegNet(widths=(20, 24, 32, 64), group_width=16), "change 20"),
        (lambda: flaxres.RegNet(shortcut="average"), "unknown shortcut 'average'"),
        (lambda: flaxres.RegNet(expansion=0.1), "change 152"),
        (lambda: flaxres.RegNet(activation="elu"), "unknown activation 'elu'"),
        (lambda: flaxres.NFNet(activation="gelu_tanh"), "unknown activation 'gelu_tanh'"),
        (lambda: flaxres.NFNet(group_width=0), r"group_width \(=0\): the rule is >= 1; None"),
        (lambda: flaxres.NFNet(stem_width=4), r"stem_width \(=4\): the rule of the stem"),
        (lambda: flaxres.CLIPResNet(image_size=(224, 224)), "the rule is a whole number"),
        (lambda: flaxres.LegacySENet(attention=None), "unknown attention 'None'"),
        (lambda: flaxres.LegacySENet(stem="small"), "unknown stem 'small'"),
        (lambda: flaxres.CLIPResNet(widths=(8, 8, 8, 8)), "the last one must be a multiple of 64"),
        (
            lambda: flaxres.CLIPResNet(image_size=40),
            r"image_size \(=40\): the rule .* 34",
        ),
        (lambda: flaxres.ConvNeXt(kernel_size=4), r"kernel_size \(=4\): the rule is an odd"),
        (lambda: flaxres.ConvNeXt(kernel_size=(7, 5)), "one for each of the 4 stages"),
        (lambda: flaxres.ResNet(cardinality=0), r"cardinality \(=0\): the rule is >= 1"),
        (lambda: flaxres.Res2Net(scale=-1), r"scale \(=-1\): the rule is >= 1"),
        (lambda: flaxres.ResNeSt(radix=0), r"radix \(=0\): the rule is >= 1"),
        (lambda: flaxres.SKNet(kernel_divisor=0), r"kernel_divisor \(=0\): the rule is >= 1"),
        (lambda: flaxres.RegNet(group_width=0), r"group_width \(=0\): the rule is >= 1"),
        (lambda: flaxres.DenseNet(growth=0), r"growth \(=0\): the rule is >= 1"),
    ],
)
def test_what_a_network_lacks_is_refused(create: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        shapes(create())


def test_the_average_of_neighbours_counts_pixels_beyond_the_edge() -> None:
    x = RNG.normal(size=(1, 5, 4, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for stride in (1, 2):
        expected = [
            [padded[0, i : i + 3, j : j + 3].mean((0, 1)) for j in range(0, 4, stride)]
            for i in range(0, 5, stride)
        ]
        np.testing.assert_allclose(average_neighbours(x, stride)[0], expected, atol=1e-6)


def test_the_weights_of_paths_add_up_to_one() -> None:
    model = flaxres.SKNet()
    attention = PathAttention(8, model.conv(), model.norm())
    maps = jnp.asarray(RNG.normal(size=(2, 3, 3, 2, 8)), jnp.float32)
    weights, _ = attention.init_with_output(jax.random.key(0), maps, False)
    assert weights.shape == (2, 1, 1, 2, 8)
    np.testing.assert_allclose(weights.sum(3), 1, rtol=1e-6)
    assert np.ptp(np.asarray(weights)) > 0


def test_split_attention_without_preference_is_the_mean_of_the_maps() -> None:
    model = flaxres.ResNeSt()
    split = SplitAttention(4, 1, 1, 1, 2, model.conv(), model.norm())
    x = jnp.asarray(RNG.normal(size=(1, 6, 6, 4)), jnp.float32)
    variables = split.init(jax.random.key(0), x, False)
    kernel = variables["params"]["conv"]["kernel"]
    even = {"kernel": jnp.zeros_like(variables["params"]["fc2"]["kernel"]), "bias": jnp.ones(8)}
    y = split.apply({**variables, "params": {**variables["params"], "fc2": even}}, x, False)
    maps = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    maps = np.maximum(maps / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(y, (maps[..., :4] + maps[..., 4:]) / 2, rtol=1e-5, atol=1e-6)


def test_a_block_that_strides_averages_before_or_behind_its_convolution() -> None:
    model = flaxres.ResNeSt()
    x = jnp.asarray(RNG.normal(size=(1, 8, 8, 8)), jnp.float32)
    outputs = []
    for first in (False, True):
        block = SplitAttentionBlock(
            "bottleneck", 8, 2, model.conv(), model.norm(), average_first=first
        )
        variables = filled_block(block, x)
        outputs.append(np.asarray(block.apply(variables, x, False)))
    assert outputs[0].shape == outputs[1].shape == (1, 4, 4, 32)
    assert not np.allclose(*outputs)


def test_files_state_whether_kernels_share_their_input() -> None:
    """Both networks have the same leaves, and compute other functions."""
    one = flaxres.SKNet(**SMALL, stem_width=8)
    other = flaxres.SKNet(**SMALL, stem_width=8, split=False, cardinality=2, base_width=32)
    assert shapes(one) == shapes(other)
    assert "split" in one.BEYOND_LEAVES


def test_torchvision_rounds_the_widths_of_groups_up() -> None:
    """The last stage of its regnet_x_400mf has 400 channels, that of the authors 384."""
    point = (22, 24, 24.48, 2.54, 16)
    assert design(*point)["widths"] == (32, 64, 160, 384)
    assert design(*point, 0.9)["widths"] == (32, 64, 160, 400)


def test_dense_layers_and_1x1_convolutions_are_the_same_function() -> None:
    model = flaxres.ConvNeXt(**SMALL)
    images = jnp.asarray(RNG.normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = filled(model)
    convolved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[None, None] if "mlp" in str(path) and leaf.ndim == 2 else leaf,
        variables,
    )
    np.testing.assert_allclose(
        model.clone(convolutions=True).apply(convolved, images),
        model.apply(variables, images),
        rtol=1e-5,
    )


def test_a_norm_over_a_map_of_zeros_has_a_gradient() -> None:
    norm = GlobalResponseNorm()
    x = jnp.asarray(RNG.normal(size=(1, 3, 3, 4)), jnp.float32).at[..., 0].set(0)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    y = norm.apply({"params": params}, x)
    norms = np.sqrt(np.square(x).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(y, x + x * norms / (norms.mean(-1, keepdims=True) + 1e-6), rtol=1e-5)
    gradient = jax.grad(lambda x: norm.apply({"params": params}, x).sum())(x)
    assert np.isfinite(gradient).all()
