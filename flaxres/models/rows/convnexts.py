"""Rows of ConvNeXts."""

from functools import partial
from typing import Any

from flaxres.models.convnext import ConvNeXt
from flaxres.models.rows.shapes import Row, widths

# Depths and the first width, see `widths`.
CONVNEXTS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    ("tiny", (3, 3, 9, 3), 96),
    *((name, (3, 3, 27, 3), first) for name, first in (("small", 96), ("base", 128))),
    *((name, (3, 3, 27, 3), first) for name, first in (("large", 192), ("xlarge", 256))),
)
SMALL_CONVNEXTS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    *((name, (2, 2, 6, 2), first) for name, first in (("atto", 40), ("femto", 48), ("pico", 64))),
    ("nano", (2, 2, 8, 2), 80),
)
v2: dict[str, Any] = {"layer_scale": None, "response_norm": True}
zepto = partial(
    ConvNeXt, depths=(2, 2, 4, 2), widths=widths(32), convolutions=True, norm_kind="simple"
)
tiny = partial(ConvNeXt, depths=(1, 1, 1, 1), widths=(32, 64, 96, 128), epsilon=1e-5)

ROWS: dict[str, Row] = {
    # Liu et al. 2022, section 3; Woo et al. 2023, table 9; timm for the others.
    **{
        f"convnext_{name}": partial(ConvNeXt, depths=depths, widths=widths(first))
        for name, depths, first in CONVNEXTS
    },
    **{
        f"convnext_{name}": partial(
            ConvNeXt, depths=depths, widths=widths(first), convolutions=True
        )
        for name, depths, first in SMALL_CONVNEXTS
    },
    **{
        f"convnext_{name}_ols": partial(
            ConvNeXt,
            depths=depths,
            widths=widths(first),
            convolutions=True,
            stem="overlap" if name == "nano" else "overlap_tiered",
        )
        for name, depths, first in SMALL_CONVNEXTS
    },
    "convnext_tiny_hnf": partial(ConvNeXt, convolutions=True, norm_first=True),
    "convnext_large_mlp": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=widths(192), hidden=1536),
    "convnext_xxlarge": partial(ConvNeXt, depths=(3, 4, 30, 3), widths=widths(384), epsilon=1e-5),
    **{
        f"convnextv2_{name}": partial(
            ConvNeXt, depths=depths, widths=widths(first), **v2, convolutions=small
        )
        for rows, small in ((SMALL_CONVNEXTS, True), (CONVNEXTS, False))
        for name, depths, first in rows
        if name != "xlarge"
    },
    "convnextv2_huge": partial(ConvNeXt, depths=(3, 3, 27, 3), widths=widths(352), **v2),
    # timm's, the last three for tests.
    "convnext_zepto_rms": zepto,
    "convnext_zepto_rms_ols": partial(zepto, stem="overlap_activated"),
    "test_convnext": partial(
        tiny, depths=(1, 2, 4, 2), widths=(24, 32, 48, 64), activation="gelu_tanh"
    ),
    "test_convnext2": partial(tiny, activation="gelu_tanh"),
    "test_convnext3": partial(tiny, kernel_size=(7, 5, 5, 3), activation="silu"),
}
