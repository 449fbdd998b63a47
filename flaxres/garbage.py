"""Python's cyclic garbage collector, which can wait until a program has started.

Imports and tracing create a million objects that live as long as the process. The collector looks
at them again and again, which takes a tenth of a start with compiled programs in the cache.
"""

import gc

_delayed = False


def delay() -> None:
    """Turns the collector off until `resume`, unless it is off already.

    Examples:
      >>> delay()
      >>> gc.isenabled()
      False
      >>> resume()
      >>> gc.isenabled()
      True
    """
    global _delayed
    if gc.isenabled():
        gc.disable()
        _delayed = True


def resume() -> None:
    """Turns the collector on again if `delay` has turned it off."""
    global _delayed
    if _delayed:
        _delayed = False
        gc.freeze()  # they stay anyway
        gc.enable()
