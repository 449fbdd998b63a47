"""Widths of pruned ResNets (Aflalo et al. 2020, "Knapsack pruning with inner distillation").

They are those of timm's `models/_pruned/ecaresnet50d_pruned.txt` and `ecaresnet101d_pruned.txt`.
"""


def _widths(*stages: tuple[int, str]) -> tuple[int, ...]:
    """Returns the widths of all convolutions in order.

    Args:
      *stages: the width of a stage's output, and those of the first two convolutions of its blocks.
    """
    result: list[int] = []
    for output, text in stages:
        inner = list(map(int, text.split()))
        for first, second in zip(inner[::2], inner[1::2], strict=True):
            result += [first, second, output]
    return tuple(result)


ECA_RESNET_50D = _widths(
    (19, "47 18  52 22  64 35"),
    (171, "85 37  107 80  120 85  125 87"),
    (818, "198 126  255 232  256 233  253 235  256 225  256 239"),
    (2022, "492 237  512 500  512 490"),
)
ECA_RESNET_101D = _widths(
    (26, "45 25  53 20  60 27"),
    (142, "81 24  93 49  102 54  122 78"),
    (
        278,
        "101 25  239 160  234 156  250 176  253 191  251 175  230 128  244 154  244 159  238 97  "
        "244 149  253 181  245 119  255 216  256 201  253 149  254 141  256 190  256 217  255 156  "
        "256 155  256 232  256 214",
    ),
    (2042, "499 289  512 512  512 502"),
)
