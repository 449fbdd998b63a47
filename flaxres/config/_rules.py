"""Rules of settings: a sentence for people and a test for programs, declared at the field."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value whose type has been checked before.

    Attributes:
      text: the condition in words, as messages quote it.
      holds: returns whether a value satisfies it.
    """

    text: str
    holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Everything that the trainer knows about a setting beyond its type and default.

    Attributes:
      rule: the condition on its value, or None.
      choices: the allowed names where they are not part of the type; None allows any.
      parse: raises InputError for text that does not parse.
      resume: a resumed run may change the setting, since it does not change the result.
      local: processes of one run may have different values.
      measure: the setting only says how a trained model is measured.
      length: a resumed run may change the setting with `train.extend`.
    """

    rule: Rule | None = None
    choices: Iterable[str] | None = None
    parse: Callable[[str], Any] | None = None
    resume: bool = False
    local: bool = False
    measure: bool = False
    length: bool = False


FACTS = "flaxres"


def setting(default: Any, rule: Rule | None = None, **facts: Any) -> Any:
    """Declares a field of a config section; its docstring is the help text.

    Args:
      default: the default value.
      rule: the condition on the value, None for any value of the type.
      **facts: attributes of `Facts`.

    Returns:
      A dataclass field.
    """
    return dataclasses.field(default=default, metadata={FACTS: Facts(rule, **facts)})


def optional(rule: Rule) -> Rule:
    """Returns the rule that also allows None."""
    return Rule(f"{rule.text} or None", lambda v: v is None or rule.holds(v))


def _ascending(sizes: tuple[tuple[float, int], ...]) -> bool:
    epochs = [epoch for epoch, _ in sizes]
    return (
        epochs == sorted(set(epochs))
        and min((*epochs, 0)) >= 0
        and all(side > 0 for _, side in sizes)
    )


POSITIVE = Rule("> 0", lambda v: v > 0)
NOT_NEGATIVE = Rule(">= 0", lambda v: v >= 0)
SHARE = Rule("in [0, 1]", lambda v: 0 <= v <= 1)
BELOW_ONE = Rule("in [0, 1)", lambda v: 0 <= v < 1)
UP_TO_ONE = Rule("in (0, 1]", lambda v: 0 < v <= 1)
SEED = Rule("in [0, 2**31)", lambda v: 0 <= v < 2**31)
SHARES = Rule("each in [0, 1]", lambda v: 0 <= min(v) <= max(v) <= 1)
ALL_POSITIVE = Rule("> 0", lambda v: min(v) > 0)
SOME_POSITIVE = Rule("all > 0, at least one, or None", lambda v: v is None or min(v, default=0) > 0)
RANGE = Rule("0 < low <= high", lambda v: 0 < v[0] <= v[1])
RANGE_UP_TO_ONE = Rule("0 < low <= high <= 1", lambda v: 0 < v[0] <= v[1] <= 1)
RANGE_BELOW_ONE = Rule("0 < low <= high < 1", lambda v: 0 < v[0] <= v[1] < 1)
JITTER = Rule("four numbers >= 0, the last at most 0.5", lambda v: min(v) >= 0 and v[3] <= 0.5)
MILESTONES = Rule(
    "> 0, ascending, each once", lambda v: list(v) == sorted(set(v)) and min((*v, 1)) > 0
)
SIZES = Rule("epochs >= 0, ascending, each once, and sides > 0", _ascending)
TRACE = Rule("two steps, 0 < first <= last,", lambda v: 0 < v[0] <= v[1])
