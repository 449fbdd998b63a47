"""Communication in compiled programs: gradients once, statistics only across devices."""

import dataclasses
import math
import re

import pytest

from flaxres import Config, DataConfig, ModelConfig, TrainConfig
from flaxres.diagnostics.described import described_run, lowered

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
PATTERN = rf"= (\(.*?\)|\S+) ({KINDS})(?:-start)?\("
# How many arrays XLA's CPU compiler joins in one reduction.
MOST_JOINED = 256
CONFIG = Config(
    ModelConfig("resnet20", dtype="float32"),
    DataConfig("cifar10", image_size=32, eval_size=32, eval_resize=32, crop="centre"),
    train=TrainConfig(64, eval_batch_size=64),
)


def collectives(config: Config) -> list[tuple[str, list[int]]]:
    """Kind of each collective of the compiled step, and how many values each of its arrays has."""
    text = lowered(described_run(config)).compile().as_text()
    return [
        (
            kind,
            [
                math.prod(int(extent) for extent in extents.split(",") if extent)
                for extents in re.findall(r"\w+\[([\d,]*)\]", shapes)
            ],
        )
        for shapes, kind in re.findall(PATTERN, text)
    ]


@pytest.mark.parametrize(
    "augment",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"mixup": 0.2, "cutmix": 1.0, "erase": 0.1, "shift": 4},
    ],
)
def test_aligned_groups_need_the_gradients_once_and_nothing_for_statistics(
    augment: dict[str, float],
) -> None:
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, bn_group=8),
        augment=dataclasses.replace(CONFIG.augment, **augment),
    )
    found = collectives(config)
    parameters, statistics = (
        269_722,
        2 * 688,
    )  # of ResNet-20; the running statistics are averaged over the groups, as the gradients are
    arrays = [values for _, sizes in found for values in sizes]
    assert [kind for kind, _ in found] == ["all-reduce"] * math.ceil(len(arrays) / MOST_JOINED), (
        found
    )
    assert parameters + statistics <= sum(arrays) <= parameters + statistics + 16, found


def test_the_whole_batch_needs_them_in_each_layer() -> None:
    assert len(collectives(CONFIG)) > 19
