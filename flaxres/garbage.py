"""Python's cyclic garbage collector, which can wait until a program has started.

Imports and tracing create some 300,000 objects that live as long as the process. The collector
looks at them again and again, which takes a seventh of a start with compiled programs in the cache.
"""

import gc
import threading

SECONDS = 30.0

_timer: threading.Timer | None = None


def delay() -> None:
    """Turns the collector off until `resume`, or for `SECONDS`, unless it is off already.

    Examples:
      >>> delay()
      >>> gc.isenabled()
      False
      >>> resume()
      >>> gc.isenabled()
      True
    """
    global _timer
    if gc.isenabled():
        gc.disable()
        _timer = threading.Timer(SECONDS, gc.enable)
        _timer.daemon = True
        _timer.start()


def resume() -> None:
    """Turns the collector on again if `delay` has turned it off."""
    global _timer
    if _timer is not None:
        _timer.cancel()
        _timer = None
        gc.enable()
