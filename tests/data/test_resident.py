"""Datasets that stay on the devices."""

import numpy as np
import pytest

from flaxres.data.decode import CentreCrop
from flaxres.data.loader import Speed
from flaxres.data.order import sample_ids
from flaxres.data.resident import resident
from flaxres.data.source import Source
from flaxres.errors import InputError
from flaxres.training.mesh import data_mesh, replicated
from tests.data.loading import AS_THEY_ARE, load, training


def test_a_dataset_on_the_device_is_the_same_one(digits: Source) -> None:
    dataset = resident(digits, AS_THEY_ARE, replicated(data_mesh(2)), Speed(2))
    batch = next(iter(load(digits, training(1297, 32, 0, 0, 1))))
    ids = sample_ids(batch["position"], 1297, 0)
    np.testing.assert_array_equal(np.asarray(dataset["image"])[ids], batch["image"])
    np.testing.assert_array_equal(np.asarray(dataset["label"])[ids], batch["label"])
    by_processes = resident(digits, AS_THEY_ARE, replicated(data_mesh(2)), Speed(1, 2))
    for name, array in dataset.items():
        np.testing.assert_array_equal(array, by_processes[name])
    with pytest.raises(InputError, match="set data.resident=False"):
        resident(digits, CentreCrop(2000, 2000), replicated(data_mesh(1)), Speed(1))
