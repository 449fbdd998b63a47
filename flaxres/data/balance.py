"""The share of each class in an epoch: balanced sampling."""

import dataclasses

import numpy as np
from jaxtyping import Integer, UInt32


@dataclasses.dataclass(frozen=True, eq=False)
class Balance:
    """Records by class, and the number of samples that each class has in an epoch.

    Classes without records are left out.

    Attributes:
      records: all record numbers, class by class.
      counts: the number of records of each class.
      firsts: the place in `records` of the first of each class.
      shares: the number of samples of each class in an epoch; their sum is the number of records.
      ends: the sums of `shares` up to and with each class.
      half_bits: `half_bits` of `counts`.

    Examples:
      >>> Balance.of(np.array([0] * 90 + [1] * 10), power=0.5).shares.tolist()
      [75, 25]
    """

    records: UInt32[np.ndarray, " n"]
    counts: UInt32[np.ndarray, " k"]
    firsts: UInt32[np.ndarray, " k"]
    shares: UInt32[np.ndarray, " k"]
    ends: UInt32[np.ndarray, " k"]
    half_bits: UInt32[np.ndarray, " k"]

    @classmethod
    def of(cls, labels: Integer[np.ndarray, " n"], power: float) -> "Balance":
        """Divides an epoch among classes.

        A class of n_c records has a share of the samples in proportion to n_c^(1 - power) (Kang et
        al. 2020, "Decoupling representation and classifier for long-tailed recognition", section
        4.1): a power of 1 gives every class the same number of samples, 0.5 is the square root.

        Args:
          labels: the label of each record.
          power: in [0, 1].
        """
        counts = np.bincount(labels)
        counts = counts[counts > 0]
        wanted = counts ** (1.0 - power)
        shares = _rounded(wanted * (len(labels) / wanted.sum()), len(labels))
        tables: list[np.ndarray] = [
            np.argsort(labels, kind="stable"),
            counts,
            np.cumsum(counts) - counts,
            shares,
            np.cumsum(shares),
            np.asarray([half_bits(int(count)) for count in counts]),
        ]
        return cls(*(table.astype(np.uint32) for table in tables))


def half_bits(size: int) -> int:
    """Returns half the bits of the numbers below `size`, rounded up; at least 1."""
    return (max(size - 1, 1).bit_length() + 1) // 2


def _rounded(shares: np.ndarray, total: int) -> np.ndarray:
    """Returns whole numbers nearest to `shares` whose sum is `total`: the largest remainders."""
    whole: np.ndarray = np.floor(shares).astype(np.int64)
    order = np.argsort(whole - shares, kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole
