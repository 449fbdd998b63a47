"""Settings of the augmentation."""

import dataclasses
from typing import Literal

from flaxres.config import _rules as rules
from flaxres.config._rules import setting
from flaxres.data import choices
from flaxres.data.autoaugment import policy


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Settings of the augmentation on the device, in order of application.
    Random numbers depend only on the sample's position.

    Examples:
      >>> AugmentConfig(mixup=0.2).mixup
      0.2
    """

    shift: int = setting(0, rules.NOT_NEGATIVE)
    """Pixels of zero padding before a random window of the original size
    is taken (He et al. 2016: 4 on CIFAR)."""
    flip: bool = setting(True)
    """Mirror half of the images."""
    flip_alternates: bool = setting(False)
    """Mirror half of the images in the first epoch and then each image in
    every second epoch, instead of at random (Jordan 2024, section 3.6)."""
    color_jitter: tuple[float, float, float, float] = setting((0.0, 0.0, 0.0, 0.0), rules.JITTER)
    """Strengths of brightness, contrast, saturation and hue, as
    torchvision's ColorJitter takes them."""
    auto: str | None = setting(None, parse=policy)
    """'ta_wide' (TrivialAugmentWide) or RandAugment in timm's form, e.g.
    'rand-m7-mstd0.5-inc1'."""
    erase: float = setting(0.0, rules.SHARE)
    """Random erasing: probability."""
    erase_area: tuple[float, float] = setting((0.02, 1 / 3), rules.RANGE_BELOW_ONE)
    """Random erasing: range of the share of the image's area."""
    erase_ratio: tuple[float, float] = setting((0.3, 1 / 0.3), rules.RANGE)
    """Random erasing: range of height divided by width."""
    erase_fill: choices.Fill = setting("zero")
    """Random erasing: 'zero' is the mean colour, 'noise' is normal noise
    (timm's 'pixel')."""
    cutout: int = setting(0, rules.NOT_NEGATIVE)
    """Side of the square that cutout blanks, in pixels; 0 is off."""
    mixup: float = setting(0.0, rules.NOT_NEGATIVE)
    """Parameter of mixup's beta distribution; 0 is off. Images are mixed
    with their neighbour in the batch."""
    cutmix: float = setting(0.0, rules.NOT_NEGATIVE)
    """Parameter of cutmix's beta distribution; 0 is off."""
    mix_probability: float = setting(1.0, rules.SHARE)
    """Probability of mixing."""
    mix_switch: float = setting(0.5, rules.SHARE)
    """Probability of cutmix where both mixup and cutmix are on."""
    mix_per: Literal["batch", "example"] = setting("batch")
    """Draw one ratio for a whole batch or one for each image."""
