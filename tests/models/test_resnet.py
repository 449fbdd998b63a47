"""The networks: sizes from the papers, shapes, dtypes, the identity at birth, and refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxres
from flaxres.errors import InputError
from flaxres.models import registry
from flaxres.models.count import multiply_accumulates

# torchvision's counts. Those of the CIFAR networks are akamaster/pytorch_resnet_cifar10's; the
# paper's table 6 has them in millions.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    # Counted by hand, from the widths in the papers; the first three have PyTorch's layers.
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "resnet1202": 19_421_274,
    "resnetv2_164": 1_703_258,
    "resnetv2_1001": 10_327_706,
    "resnet9": 6_573_130,
    # timm's.
    "res2net50_26w_4s": 25_699_120,
    "res2net50_14w_8s": 25_059_816,
    "res2next50": 24_671_464,
    "resnest14d": 10_611_688,
    "resnest50d": 27_483_240,
    "resnest50d_4s2x40d": 30_417_592,
    "resnest269e": 110_929_480,
    "skresnet18": 11_958_056,
    "skresnet50d": 25_822_392,
    "skresnext50_32x4d": 27_479_784,
    "regnetx_002": 2_684_792,
    "regnetx_004_tv": 5_495_976,
    "regnetx_320": 107_811_560,
    "regnety_008_tv": 6_432_512,
    "regnety_2560": 1_282_601_138,
    "convnext_tiny": 28_589_128,
    "convnext_nano_ols": 15_649_560,
    "convnext_large_mlp": 200_128_168,
    "convnext_xxlarge": 846_471_016,
    "convnextv2_atto": 3_708_400,
    "convnextv2_huge": 660_289_640,
    "convnext_zepto_rms": 2_155_656,
    "dm_nfnet_f0": 71_489_284,
    "nfnet_l0": 35_074_488,
    "nf_regnet_b0": 8_764_288,
    "nf_ecaresnet26": 15_995_220,
    "legacy_senet154": 115_088_984,
    "legacy_seresnet18": 11_778_592,
    "resnet50x4_clip": 87_137_080,
    "resnet101_clip_gap": 42_519_392,
    "regnetv_064": 30_576_052,
    "regnetz_040_h": 28_938_880,
}


def shapes(model: flaxres.ResNet, size: int = 64) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    model = flaxres.create_model(name, scan_blocks=True)  # traces equal blocks once
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model)["params"])) == PARAMETERS[name]


def test_every_name_that_timm_lacks_has_a_count() -> None:
    missing = set(registry.OWN) - set(PARAMETERS)
    assert not missing, f"add the number of parameters of {sorted(missing)} to PARAMETERS"


def test_multiply_accumulates_of_small_pictures_are_those_of_large_ones_by_pixel() -> None:
    """Convolutions over few pixels, which are an operation of our own, are counted."""
    classifier = 512 * 1000
    model = flaxres.ResNet18()
    large, small = (multiply_accumulates(model, size) - classifier for size in (224, 64))
    assert large == 1_814_073_344 - classifier  # torchvision's table of weights
    assert small * 224**2 == large * 64**2


def test_names_of_parameters_are_pytorchs() -> None:
    names = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes(flaxres.ResNet50())["params"])
    }
    assert {
        "conv1.kernel",
        "bn1.scale",
        "layer1.0.conv3.kernel",
        "layer1.0.downsample.0.kernel",
        "layer4.2.bn3.bias",
        "fc.kernel",
    } <= names
    assert not any(
        "downsample" in name for name in names if ".1." in name.replace("downsample.1", "")
    )


def test_a_function_and_a_name_give_the_same_module() -> None:
    assert flaxres.create_model("resnet50", num_classes=10) == flaxres.ResNet50(num_classes=10)
    assert flaxres.list_models("resnet1?")[0] == "resnet18"
    assert flaxres.list_models().index("resnet50") < flaxres.list_models().index("resnet101")


def test_features_have_strides_2_to_32() -> None:
    model = flaxres.ResNet18()
    maps = jax.eval_shape(
        lambda v, x: model.apply(v, x, features=True), shapes(model), jnp.zeros((2, 96, 64, 3))
    )
    assert {name: leaf.shape for name, leaf in maps.items()} == {
        "stem": (2, 48, 32, 64),
        "stage1": (2, 24, 16, 64),
        "stage2": (2, 12, 8, 128),
        "stage3": (2, 6, 4, 256),
        "stage4": (2, 3, 2, 512),
        "pooled": (2, 512),
    }
    assert jax.eval_shape(
        flaxres.ResNet18(num_classes=0).apply, shapes(model), jnp.zeros((2, 64, 64, 3))
    ).shape == (2, 512)


def test_version_1_and_1_5_differ_only_in_where_they_stride() -> None:
    assert jax.tree.structure(shapes(flaxres.ResNet50(v1=True))) == jax.tree.structure(
        shapes(flaxres.ResNet50())
    )
    x = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    model = flaxres.ResNet(depths=(1, 1), widths=(8, 16), stem_width=8)
    variables = jax.tree.map(lambda a: a + 0.1, jax.jit(model.init)(jax.random.key(0), x))
    assert (
        float(
            jnp.abs(
                jax.jit(model.apply)(variables, x)
                - jax.jit(model.clone(v1=True).apply)(variables, x)
            ).max()
        )
        > 1e-3
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_float32_and_training_changes_the_statistics(dtype: jnp.dtype) -> None:
    model = flaxres.ResNet20(dtype=dtype)
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, new = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, x
    )
    assert logits.dtype == jnp.float32
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: bool((a != b).any()), new["batch_stats"], variables["batch_stats"]
        )
    )
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, features=True), variables, x)
    assert {name: leaf.dtype for name, leaf in maps.items()}["stage3"] == dtype


def test_a_new_block_is_its_shortcut() -> None:
    model = flaxres.ResNet(
        depths=(3,), block="basic", widths=(8,), stem="small", stem_width=8, num_classes=4
    )
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    maps = model.apply(model.init(jax.random.key(1), x), x, features=True)
    np.testing.assert_array_equal(maps["stage1"], maps["stem"])


def test_dropout_is_active_only_in_training() -> None:
    model = flaxres.ResNet20(dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)

    @jax.jit
    def logits(key: jax.Array) -> jax.Array:
        return model.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]

    assert (logits(jax.random.key(0)) != logits(jax.random.key(1))).any()
    without = jax.jit(flaxres.ResNet20().apply)(variables, x)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x), without)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"stem": "smal"}, "unknown stem 'smal': did you mean small"),
        ({"block": "wide"}, "unknown block 'wide'"),
        ({"shortcut": "x"}, "shortcut"),
    ],
)
def test_unknown_attribute_values_are_refused(attributes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shapes(flaxres.ResNet18(**attributes))


def test_unknown_names_are_refused_with_the_near_ones() -> None:
    with pytest.raises(InputError, match="unknown model 'resnet5O': did you mean .*resnet50"):
        flaxres.create_model("resnet5O")
    with pytest.raises(InputError, match="'num_clases': did you mean num_classes"):
        flaxres.create_model("resnet50", num_clases=10)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((32, 32, 3), np.float32), "add a batch axis"),
        (np.zeros((1, 32, 32, 3), np.uint8), "images are uint8"),
        (np.zeros((1, 3, 32, 32), np.float32), "transpose"),
    ],
)
def test_wrong_images_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        flaxres.ResNet18().init(jax.random.key(0), images)


def test_the_table_of_a_network_names_its_operations() -> None:
    model = flaxres.ResNet(depths=(1,), widths=(8,), stem_width=8, num_classes=3)
    table = model.tabulate(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3)), console_kwargs={"width": 150}
    )
    assert "norm, ReLU, max pooling" in table
    assert not re.search(r"object at|0x|lambda|Dropout", table)
