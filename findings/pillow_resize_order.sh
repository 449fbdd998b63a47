#!/usr/bin/env bash
# Pillow 13 orders the two passes of Image.resize otherwise than Pillow 12.
#
# Packages: pillow 12.1.0 and 13.0.0, numpy 2.4.2, Python 3.11 or newer.
# Guess:    the same filter on the same image gives the same pixels in both versions.
# Seen:     a noise image of 70 x 997 pixels, resized by the bicubic filter to 64 x 911: one value in
#           fifty differs by more than 1, the largest by 26. The transposed image gives the same
#           pixels in both. Version 12 resizes the width first. Version 13 resizes the height first
#           here, and its result equals two calls, one an axis. Between the passes Pillow rounds and
#           clips to 8 bits, and a bicubic filter overshoots, so the order is visible.
# Matters:  after an upgrade an evaluation that resizes by Pillow gives the network other inputs, and
#           code that computes a part of a resized image must know the order.
#
# Output seen:
#   70 x 997: 2.1% of the values differ by more than 1, the largest by 26
#   997 x 70: the same values
#   equal to height first: {'12.1.0': False, '13.0.0': True}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 12.1.0 13.0.0; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install -q "pillow==$version" numpy==2.4.2
  "$work/$version/bin/python" - "$work/$version.npz" <<'PYTHON'
import sys

import numpy as np
from PIL import Image

noise = np.random.default_rng(0).integers(0, 256, (997, 70, 3), np.uint8)
bicubic = Image.Resampling.BICUBIC
tall = Image.fromarray(noise)
wide = Image.fromarray(np.ascontiguousarray(noise.swapaxes(0, 1)))
two = tall.resize((70, 911), bicubic).resize((64, 911), bicubic)
np.savez(
    sys.argv[1],
    tall=np.asarray(tall.resize((64, 911), bicubic)),
    wide=np.asarray(wide.resize((911, 64), bicubic)),
    height_first=np.asarray(two),
)
PYTHON
done
"$work/13.0.0/bin/python" - "$work" <<'PYTHON'
import sys

import numpy as np

old, new = (np.load(f"{sys.argv[1]}/{version}.npz") for version in ("12.1.0", "13.0.0"))
distance = np.abs(old["tall"].astype(int) - new["tall"])
share, largest = (distance > 1).mean(), distance.max()
print(f"70 x 997: {100 * share:.1f}% of the values differ by more than 1, the largest by {largest}")
same = np.array_equal(old["wide"], new["wide"])
print(f"997 x 70: {'the same' if same else 'other'} values")
alike = {
    name: np.array_equal(values["tall"], values["height_first"])
    for name, values in (("12.1.0", old), ("13.0.0", new))
}
print(f"equal to height first: {alike}")
assert largest > 10 and same, "Pillow's order of passes is no longer as described"
assert alike == {"12.1.0": False, "13.0.0": True}
PYTHON
