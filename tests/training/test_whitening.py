"""A whitened stem has uncorrelated channels of equal variance on its images."""

import dataclasses

import jax
import numpy as np
import pytest

from flaxres import Config, DataConfig, ModelConfig, TrainConfig
from flaxres.data.datasets import open_or_prepare
from flaxres.errors import InputError
from flaxres.training.run import prepare_run
from flaxres.training.whitening import patches, require_stem

DATA = DataConfig("digits", image_size=8, eval_size=8, eval_resize=8, crop="centre")
WIDTH = 12
CONFIG = Config(
    ModelConfig(
        "resnet20", depths=(1, 1, 1), stem="small", stem_width=WIDTH, stem_init="whitening"
    ),
    DATA,
    train=TrainConfig(24, 24),
)


def test_the_stem_whitens() -> None:
    state = prepare_run(CONFIG).first_state()
    kernel = np.asarray(state.params["conv1"]["kernel"], np.float64)
    rows = patches(open_or_prepare("digits", ["train"])[0], DATA, 8, 3)
    assert rows.shape == (64 * 1297, 27)
    answers = (rows - rows.mean(0)) @ kernel.reshape(27, WIDTH)
    np.testing.assert_allclose(answers[:, :6], -answers[:, 6:], atol=1e-4)
    covariance = np.cov(answers[:, :6].T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-3)
    # Directions at least as strong as the regularisation; grey images have fewer of them.
    assert (np.diag(covariance) > 0.5).all()
    assert (np.diag(covariance) < 1.001).all()


def test_the_rest_is_as_random_as_without() -> None:
    whitening = prepare_run(CONFIG).first_state()
    random = prepare_run(
        dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, stem_init="random"))
    ).first_state()
    differ = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), whitening.params, random.params)
    )
    assert [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, unlike in differ if unlike
    ] == ["conv1/kernel"]


def test_channels_beyond_the_directions_stay() -> None:
    wide = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, stem_width=60, widths=(64, 64, 64))
    )
    random = dataclasses.replace(wide, model=dataclasses.replace(wide.model, stem_init="random"))
    ours, random_kernel = (
        np.asarray(prepare_run(config).first_state().params["conv1"]["kernel"])
        for config in (wide, random)
    )
    np.testing.assert_array_equal(ours[..., 54:], random_kernel[..., 54:])
    assert (ours[..., :54] != random_kernel[..., :54]).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"name": "resnet50d", "depths": None, "stem": None, "stem_width": None},
            "the stem is not one convolution; set model.stem='small' or 'standard'",
        ),
        (
            {"weights": "some.safetensors"},
            "model.stem_init='whitening' with model.weights: the weights have a stem already",
        ),
    ],
)
def test_what_has_no_such_stem_is_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_run(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **model)))


def test_images_smaller_than_the_kernel_are_refused() -> None:
    with pytest.raises(
        InputError, match="images of 4 pixels: the first convolution's kernel has 7"
    ):
        require_stem({"params": {"conv1": {"kernel": np.zeros((7, 7, 3, 8))}}}, 4)
