"""Depths, widths, and stems and shortcuts that rows share."""

import functools
from typing import Any

Row = functools.partial[Any]


def widths(first: int) -> tuple[int, ...]:
    """Returns four widths, each twice the one before."""
    return tuple(first * 2**i for i in range(4))


# Blocks of each stage: He et al. 2016, table 1; "Identity mappings", section 5, for 200; Bello et
# al. 2021, table 11, for 270 to 420.
D18 = D26 = (2, 2, 2, 2)
D34 = D50 = (3, 4, 6, 3)
D101, D152, D200 = (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)
D269 = (3, 30, 48, 8)
BOTTLENECKS = {26: D26, 50: D50, 101: D101, 152: D152, 200: D200}

# Attributes of stems and shortcuts by timm's suffixes.
deep: dict[str, Any] = {"stem": "deep", "stem_width": 32}
tiered: dict[str, Any] = {"stem": "deep_tiered", "stem_width": 32}
d: dict[str, Any] = deep | {"shortcut": "average"}
t: dict[str, Any] = tiered | {"shortcut": "average"}
x4: dict[str, Any] = {"cardinality": 32, "base_width": 4}
x8: dict[str, Any] = {"cardinality": 32, "base_width": 8}
wide_d: dict[str, Any] = d | {"stem_width": 64}
