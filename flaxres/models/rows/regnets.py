"""Rows of RegNets."""

from functools import partial
from typing import Any

from flaxres.models.regnet import RegNet, design
from flaxres.models.rows.shapes import Row

# Depth, initial width, slope, factor and group width, see `design`.
REGNETS_X: dict[str, tuple[Any, ...]] = {
    "002": (13, 24, 36.44, 2.49, 8),
    "004": (22, 24, 24.48, 2.54, 16),
    "004_tv": (22, 24, 24.48, 2.54, 16, 0.9),
    "006": (16, 48, 36.97, 2.24, 24),
    "008": (16, 56, 35.73, 2.28, 16),
    "016": (18, 80, 34.01, 2.25, 24),
    "032": (25, 88, 26.31, 2.25, 48),
    "040": (23, 96, 38.65, 2.43, 40),
    "064": (17, 184, 60.83, 2.07, 56),
    "080": (23, 80, 49.56, 2.88, 120),
    "120": (19, 168, 73.36, 2.37, 112),
    "160": (22, 216, 55.59, 2.1, 128),
    "320": (23, 320, 69.86, 2.0, 168),
}
REGNETS_Y: dict[str, tuple[Any, ...]] = {
    "002": (13, 24, 36.44, 2.49, 8),
    "004": (16, 48, 27.89, 2.09, 8),
    "006": (15, 48, 32.54, 2.32, 16),
    "008": (14, 56, 38.84, 2.4, 16),
    "008_tv": (14, 56, 38.84, 2.4, 16, 0.9),
    "016": (27, 48, 20.71, 2.65, 24),
    "032": (21, 80, 42.63, 2.66, 24),
    "040": (22, 96, 31.41, 2.24, 64),
    "064": (25, 112, 33.22, 2.27, 72),
    "080": (17, 192, 76.82, 2.19, 56),
    "080_tv": (17, 192, 76.82, 2.19, 56, 0.9),
    "120": (19, 168, 73.36, 2.37, 112),
    "160": (18, 200, 106.23, 2.48, 112),
    "320": (20, 232, 115.89, 2.53, 232),
    "640": (20, 352, 147.48, 2.4, 328),
    "1280": (27, 456, 160.83, 2.52, 264),
    "2560": (27, 640, 230.83, 2.53, 373),
}
v: dict[str, Any] = {"preactivation": True, "se_ratio": 0.25, "activation": "silu"}
z: dict[str, Any] = {
    "expansion": 4.0,
    "se_ratio": 0.25,
    "shortcut": "none",
    "linear": True,
    "activation": "silu",
}
Z_005 = design(21, 16, 10.7, 2.51, 4, expansion=4)
Z_040 = design(28, 48, 14.5, 2.226, 8, expansion=4)

ROWS: dict[str, Row] = {
    # Radosavovic et al. 2020, appendix; Goyal et al. 2021 for 640 and more; torchvision for `tv`.
    **{f"regnetx_{name}": partial(RegNet, **design(*point)) for name, point in REGNETS_X.items()},
    **{
        f"regnety_{name}": partial(RegNet, se_ratio=0.25, **design(*point))
        for name, point in REGNETS_Y.items()
    },
    # timm's: norms before the convolutions.
    "regnetv_040": partial(RegNet, **design(22, 96, 31.41, 2.24, 64), **v),
    "regnetv_064": partial(RegNet, shortcut="average", **design(25, 112, 33.22, 2.27, 72), **v),
    # Dollár et al. 2021, section 5.3.
    "regnetz_005": partial(RegNet, last_width=1024, **Z_005, **z),
    "regnetz_040": partial(RegNet, **Z_040, **z),
    "regnetz_040_h": partial(RegNet, last_width=1536, **Z_040, **z),
}
