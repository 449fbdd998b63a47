"""What travels between devices, read in the compiled program: gradients and metrics once, statistics only where their groups cross devices."""

import dataclasses
import math
import re

import pytest

from flaxres import Config, DataConfig, ModelConfig, TrainConfig
from flaxres.training.described import described_run, lowered

PATTERN = r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
CONFIG = Config(
    ModelConfig("resnet20", dtype="float32"),
    DataConfig("cifar10", image_size=32, eval_size=32, eval_resize=32, crop="centre"),
    train=TrainConfig(64, eval_batch_size=64),
)


def collectives(config: Config) -> list[tuple[str, int]]:
    """Kind and number of values of each collective of the compiled step."""
    text = lowered(described_run(config)).compile().as_text()
    found = []
    for shapes, kind in re.findall(PATTERN, text):
        sizes = (dims.split(",") for dims in re.findall(r"\w+\[([\d,]*)\]", shapes))
        found.append((kind, sum(math.prod(int(d) for d in dims if d) for dims in sizes)))
    return found


@pytest.mark.parametrize("augment", [{}, {"mixup": 0.2, "cutmix": 1.0, "erase": 0.1, "shift": 4}])
def test_aligned_groups_need_the_gradients_once_and_nothing_for_statistics(augment: dict[str, float]) -> None:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, bn_group=8), augment=dataclasses.replace(CONFIG.augment, **augment))
    found = collectives(config)
    parameters, statistics = 269_722, 2 * 688  # of ResNet-20; the running statistics are averaged over the groups, as the gradients are
    parameters += 7 * 5 * (32**2 + 64**2)  # on CPU 3x3 gradients travel as 16 products, not 9 (models/convolution.py): five of stride 1 in two stages
    assert [kind for kind, _ in found] == ["all-reduce"], found
    assert parameters + statistics <= found[0][1] <= parameters + statistics + 16, found


def test_the_whole_batch_needs_them_in_each_layer() -> None:
    assert len(collectives(CONFIG)) > 19
