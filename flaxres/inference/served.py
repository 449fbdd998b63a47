"""Networks that are served as they are, without an export."""

import numpy as np

from flaxres.data.preprocess import Preprocess
from flaxres.errors import InputError
from flaxres.inference.predict import Predictor
from flaxres.serving.model import Crop, Model, distinct


def served(predictor: Predictor) -> Model:
    """Returns the network that the server runs for a predictor.

    The server's probabilities are those of `flaxres predict`: pixels are normalised by the same
    code. They may differ by some float32 rounding, since the number of images in a batch is
    another, and native code may compute the one and XLA the other.

    Args:
      predictor: the network.

    Raises:
      InputError: the network takes no colours.

    Examples:
      >>> import flaxres, jax
      >>> model = flaxres.ResNet20(num_classes=2, depths=(1, 1, 1))
      >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))
      >>> network = served(Predictor(model, variables, Preprocess(32, 32), ("cat", "dog")))
      >>> network.program(np.zeros((4, 32, 32, 3), np.uint8)).shape
      (4, 2)
    """
    if not takes_photographs(predictor):
        raise InputError(
            f"the network takes {predictor.model.in_channels}-channel images: the server takes "
            "colours; give a network with in_channels=3"
        )
    preprocess = predictor.preprocess

    def program(images: np.ndarray) -> np.ndarray:
        return predictor.probabilities(np.stack([preprocess.normalised(crop) for crop in images]))

    return Model(served_crop(preprocess), distinct(predictor.classes), program)


def takes_photographs(predictor: Predictor) -> bool:
    """Returns True if the network takes colours."""
    return predictor.model.in_channels == 3


def served_crop(preprocess: Preprocess) -> Crop:
    """Returns the crop of the server, which turns photographs upright as `flaxres predict` does."""
    given = preprocess.for_photographs()
    return Crop(given.size, given.resize, given.interpolation, given.exif, given.squash)
