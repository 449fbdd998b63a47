"""Claims that experiments test, with one seed and with several."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement that an experiment tests, and the outcome with one seed.

    Attributes:
      sentence: the statement.
      measure: the measured quantity and its unit.
      plain, residual: its value for plain and for residual networks; None if there is none.
      holds: whether the values support the statement.
      powers: the quantity spans powers of ten, so that means over seeds are geometric.

    Examples:
      >>> Claim("Residual networks fit better", "training error, %", 40.0, 1.5, 1.5 < 40.0).holds
      True
    """

    sentence: str
    measure: str
    plain: float | None
    residual: float | None
    holds: bool
    powers: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A claim with all seeds.

    Attributes:
      sentence, measure, powers: those of the claims.
      plain, residual: values by seed; None if there are none.
      holds: the outcomes by seed.

    Examples:
      >>> claims = [Claim("It is small", "size", 1.0, size, size < 2.5) for size in (1.0, 2.0, 3.0)]
      >>> outcome = Outcome.of(claims)
      >>> outcome.verdict, text(outcome.plain), text(outcome.residual)
      ('2 of 3', '1', '2 ± 1')
    """

    sentence: str
    measure: str
    plain: tuple[float, ...] | None
    residual: tuple[float, ...] | None
    holds: tuple[bool, ...]
    powers: bool

    @classmethod
    def of(cls, claims: Sequence[Claim]) -> "Outcome":
        """Returns the outcome of the same claim with several seeds."""
        first = claims[0]

        def by_seed(values: Sequence[float | None]) -> tuple[float, ...] | None:
            given = tuple(value for value in values if value is not None)
            return given or None

        return cls(
            first.sentence,
            first.measure,
            by_seed([claim.plain for claim in claims]),
            by_seed([claim.residual for claim in claims]),
            tuple(claim.holds for claim in claims),
            first.powers,
        )

    @property
    def verdict(self) -> str:
        """'yes' or 'no' for one seed, '4 of 5' for several."""
        if len(self.holds) == 1:
            return "yes" if self.holds[0] else "no"
        return f"{sum(self.holds)} of {len(self.holds)}"


def text(values: Sequence[float | None] | None, powers: bool = False) -> str:
    """Returns the mean and the sample's standard deviation of the values of all seeds.

    Args:
      values: one a seed; None, as in JSON, is not finite.
      powers: give the geometric mean, and the factor that its logarithm's deviation is. Values that
        are not positive have neither.

    Examples:
      >>> text([1.0, 3.0]), text([1e-9, 1e-7], powers=True), text([5.0])
      ('2 ± 1.4', '1e-08 (factor 26)', '5')
    """
    if values is None:
        return ""
    array = np.array([np.nan if value is None else value for value in values], float)
    if lost := int((~np.isfinite(array)).sum()):
        return "not finite" if lost == len(array) else f"not finite in {lost} of {len(array)}"
    if len(set(values)) == 1:
        return f"{array[0]:.3g}"
    if powers and (array > 0).all():
        logarithms = np.log(array)
        return f"{np.exp(logarithms.mean()):.3g} (factor {np.exp(logarithms.std(ddof=1)):.2g})"
    return f"{array.mean():.3g} ± {array.std(ddof=1):.2g}"
