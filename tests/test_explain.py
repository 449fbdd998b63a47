"""Grad-CAM and integrated gradients by their formulas, and the command that draws them."""

import pathlib
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxres
from flaxres.cli import main
from flaxres.inference.explain import grad_cam, integrated_gradients
from flaxres.models.network import Network
from flaxres.models.stage import stack_blocks

SMALL: dict[str, Network] = {
    "resnet": flaxres.ResNet(
        depths=(1, 3), widths=(8, 16), block="basic", stem="small", stem_width=8, num_classes=5
    ),
    "resnet9": flaxres.ResNet9(depths=(1, 2), widths=(8, 16), stem_width=8, num_classes=5),
    "densenet": flaxres.DenseNet(depths=(2, 2), growth=4, stem_width=8, num_classes=5),
    "resnetv2": flaxres.ResNetV2(
        depths=(1, 1), widths=(16, 32), stem="small", stem_width=8, num_classes=5
    ),
}
TINY = flaxres.ResNet9(depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=5)
DIGITS, GARMENTS = "resnet20.flaxres_digits", "resnet9.flaxres_fashion_mnist"


def drawn(model: Network, side: int = 16) -> tuple[Any, np.ndarray]:
    """Returns random variables of a network, and two images."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, side, side, 3)).astype(np.float32)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.uniform(0.1, 1, shape.shape)
        if path[-1].key == "kernel":
            values = rng.normal(size=shape.shape) / np.sqrt(np.prod(shape.shape[:-1]) / 2)
        return values.astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(leaf, shapes), images


def scaled(cam: np.ndarray) -> np.ndarray:
    """Scales maps linearly to [0, 1]."""
    cam = cam - cam.min((1, 2), keepdims=True)
    result: np.ndarray = cam / cam.max((1, 2), keepdims=True)
    return result


def tail(model: Network, variables: Any, x: Any) -> Any:
    """Computes the logits from the last stage's map, written by hand."""
    params, statistics = variables["params"], variables["batch_stats"]
    norms: dict[type, Any] = {
        flaxres.DenseNet: lambda tree: tree["features"]["norm3"],
        flaxres.ResNetV2: lambda tree: tree["norm"],
    }
    if (norm := norms.get(type(model))) is not None:
        own, running = norm(params), norm(statistics)
        x = (x - running["mean"]) / jnp.sqrt(running["var"] + 1e-5) * own["scale"] + own["bias"]
        x = jnp.maximum(x, 0)
    heads = {flaxres.DenseNet: "classifier", flaxres.ResNetV2: "head"}
    head = params[heads.get(type(model), "fc")]
    head = head.get("fc", head)
    return x.mean((1, 2)) @ head["kernel"].reshape(x.shape[-1], -1) + head["bias"]


@pytest.mark.parametrize("name", SMALL)
def test_maps_are_those_of_the_equations(name: str) -> None:
    """Equations 1 and 2, with the network from the last stage on written by hand."""
    model, classes = SMALL[name], np.array([3, 1])
    variables, images = drawn(model, 32)
    maps = np.asarray(
        jax.jit(lambda v, x: model.apply(v, x, features=True))(variables, images)["stage2"]
    )

    @jax.jit
    @jax.grad
    def gradient(maps: Any) -> Any:
        logits = tail(model, variables, maps)
        return logits[0, 3] + logits[1, 1]

    weights = np.asarray(gradient(maps)).mean((1, 2), keepdims=True)
    expected = scaled(np.maximum((weights * maps).sum(-1), 0))
    own = grad_cam(model, variables, images, classes, upsample=False)
    np.testing.assert_allclose(own, expected, atol=2e-5)
    assert np.ptp(expected, (1, 2)).min() == 1


def test_maps_are_enlarged_as_opencv_does() -> None:
    model = TINY
    variables, images = drawn(model)
    own = np.asarray(grad_cam(model, variables, images, 1, upsample=False))
    enlarged = [cv2.resize(cam, (16, 16), interpolation=cv2.INTER_LINEAR) for cam in own]
    over_images = grad_cam(model, variables, images, 1, layer="stage2")
    np.testing.assert_allclose(over_images, scaled(np.stack(enlarged)), atol=1e-5)


def test_layers_of_scanned_and_recomputed_networks() -> None:
    model, classes = SMALL["resnet"], np.array([3, 1])
    variables, images = drawn(model)
    plain = grad_cam(model, variables, images, classes)
    other = model.clone(scan_blocks=True, remat=True)
    like = jax.eval_shape(other.init, jax.random.key(0), images)
    stacked = stack_blocks(variables, like)
    assert "scanned" in stacked["params"]["layer2"]
    np.testing.assert_allclose(grad_cam(other, stacked, images, classes), plain, atol=2e-5)
    recomputed = model.clone(remat=True)
    block = grad_cam(recomputed, variables, images, classes, layer="layer2.2")
    np.testing.assert_allclose(block, plain, atol=2e-5)  # the last block's output is the stage's
    earlier = grad_cam(model, variables, images, classes, layer="layer2.1")
    assert np.abs(np.asarray(earlier) - plain).max() > 0.01


def test_the_likeliest_class_is_the_default_and_no_evidence_is_zero() -> None:
    model = TINY
    variables, images = drawn(model)
    likeliest = np.asarray(jax.jit(model.apply)(variables, images)).argmax(-1)
    own = grad_cam(model, variables, images, likeliest)
    np.testing.assert_allclose(grad_cam(model, variables, images), own, atol=1e-5)
    default = integrated_gradients(model, variables, images, steps=2)
    chosen = integrated_gradients(model, variables, images, likeliest, steps=2)
    np.testing.assert_allclose(default, chosen, atol=1e-4 * np.abs(chosen).max())
    kernel = variables["params"]["fc"]["kernel"]
    kernel[:] = -np.abs(kernel)
    assert not np.asarray(grad_cam(model, variables, images)).any()


def test_gradients_are_summed_at_midpoints_of_the_line() -> None:
    model = TINY
    variables, images = drawn(model)
    baseline = np.array([0.5, -1.0, 0.0], np.float32)

    @jax.jit
    @jax.grad
    def gradient(x: Any) -> Any:
        logits = model.apply(variables, x)
        return logits[0, 4] + logits[1, 0]  # type: ignore[call-overload]

    points = [baseline + share * (images - baseline) for share in (1 / 6, 3 / 6, 5 / 6)]
    expected = (images - baseline) * sum(gradient(point) for point in points) / 3
    given = integrated_gradients(model, variables, images, np.array([4, 0]), baseline, 3)
    np.testing.assert_allclose(given, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("tag", [GARMENTS, DIGITS])
def test_attributions_add_up_to_the_change_of_the_logit(tag: str) -> None:
    """Completeness, proposition 1, in float64. Measured: 0.8% with 50 steps, 0.3% with 400.

    The example of `integrated_gradients` checks it in float32.
    """
    with jax.enable_x64(True):
        model, variables, preprocess = flaxres.load_pretrained(tag)
        model = model.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        image = flaxres.pretrained_info(tag).example
        assert image is not None
        images = preprocess(image).astype(np.float64)
        black = -np.asarray(preprocess.mean) / np.asarray(preprocess.std)
        apply = jax.jit(model.apply)
        logits = np.asarray(apply(variables, images))[0]
        without = np.asarray(apply(variables, np.broadcast_to(black, images.shape)))[0]
        change = (logits - without)[logits.argmax()]
        for steps, bound in ((50, 0.01), (400, 0.004)):
            given = integrated_gradients(model, variables, images, None, black, steps)
            assert given.dtype == np.float64
            assert abs(float(given.sum()) - change) <= bound * change
        same = integrated_gradients(model, variables, images, None, images, 3)
    assert not np.asarray(same).any()


def test_what_can_not_be_explained_is_refused() -> None:
    model = SMALL["resnet"]
    variables, images = drawn(model)
    headless = model.clone(num_classes=0)
    for function, arguments, message in (
        (grad_cam, (headless, variables, images), "the network has no classes (num_classes=0)"),
        (grad_cam, (model, variables, images, 5), "class 5 is unknown: the rule is 0 to 4"),
        (grad_cam, (model, variables, images, np.array([0, -1])), "class -1 is unknown"),
        (grad_cam, (model, variables, images, np.array([1, 2, 3])), "one number for each of the 2"),
        (grad_cam, (model, variables, images, 1.0), "the rule is integers"),
        (grad_cam, (model, variables, images, 0, "stage3"), "did you mean stage2 or stage1?"),
        (grad_cam, (model, variables, images, 0, "fc"), "unknown layer with a feature map 'fc'"),
        (grad_cam, (model, variables, images[:, :2, :2]), "has a map of one pixel for images of"),
        (integrated_gradients, (model, variables, images, 0, 0.0, 0), "steps (=0): the rule is"),
        (integrated_gradients, (model, variables, images, 0, np.zeros(2)), "baseline has shape"),
    ):
        with pytest.raises(flaxres.InputError) as refused:
            function(*arguments)  # type: ignore[operator]
        assert message in str(refused.value)


def test_the_command_draws_photographs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photograph = str(flaxres.pretrained_info(GARMENTS).example)
    words = ["explain", "--tag", GARMENTS, "--steps", "3", photograph]
    assert main(words) == 0
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{photograph}: ankle boot, ")
    assert last == "wrote explanation.png"
    both = np.asarray(Image.open("explanation.png").convert("RGB"))
    assert (
        main([*words, photograph, "--class", "bag", "--method", "grad-cam", "--out", "x.png"]) == 0
    )
    assert capsys.readouterr().out.count(": bag, ") == 2
    two = np.asarray(Image.open("x.png"))
    assert two.shape[0] == 2 * both.shape[0]
    assert two.shape[1] < both.shape[1]
    assert main([*words, "--class", "7", "--method", "integrated-gradients"]) == 0
    assert ": sneaker, " in capsys.readouterr().out
    assert not np.array_equal(both, np.asarray(Image.open("explanation.png").convert("RGB")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "sneakr"], "unknown class 'sneakr': did you mean sneaker?"),
        (["--class", "10"], "unknown class '10': numbers are 0 to 9, in the order of the labels"),
        (["broken.jpg"], "image 'broken.jpg': "),
        (["nothing.jpg"], "image 'nothing.jpg' can't be read"),
        (["--steps", "0"], "--steps=0: the rule is > 0"),
        (["--layer", "layer9"], "unknown layer with a feature map 'layer9': did you mean"),
        (["--method", "saliency"], "invalid choice: 'saliency'"),
        (["--out", "none/x.png"], "'none' is no folder"),
        (["--method", "grad-cam", "--out", "x.nothing"], "--out 'x.nothing' can't be written"),
        (["many"], "33 photographs: the rule is at most 32 in one picture"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("broken.jpg").write_text("no image")
    photograph = str(flaxres.pretrained_info(GARMENTS).example)
    if words == ["many"]:
        words = [photograph] * 32
    assert main(["explain", "--tag", GARMENTS, photograph, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not pathlib.Path("explanation.png").exists()
