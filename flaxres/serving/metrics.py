"""Counts of a server, in the text format of Prometheus."""

from __future__ import annotations

import collections
import threading

# Upper bounds of the histogram of durations, seconds.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts requests, images and batches; may be used by several threads.

    Examples:
      >>> metrics = Metrics()
      >>> metrics.count(200, 0.02)
      >>> 'flaxres_requests_total{status="200"} 1' in metrics.text(waiting=0)
      True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: collections.Counter[int] = collections.Counter()
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._images = self._batches = 0

    def count(self, status: int, seconds: float | None = None) -> None:
        """Counts a request.

        Args:
          status: of the response.
          seconds: how long it took; None leaves it out of the histogram.
        """
        with self._lock:
            self._requests[status] += 1
            if seconds is not None:
                self._seconds += seconds
                self._buckets[sum(seconds > bound for bound in BOUNDS)] += 1

    def ran(self, images: int) -> None:
        """Counts a batch."""
        with self._lock:
            self._images += images
            self._batches += 1

    def text(self, waiting: int) -> str:
        """Returns all metrics.

        Args:
          waiting: number of images and requests that wait.
        """
        with self._lock:
            requests, buckets = dict(sorted(self._requests.items())), list(self._buckets)
            seconds, images, batches = self._seconds, self._images, self._batches
        lines = ["# TYPE flaxres_requests_total counter"]
        for status, count in requests.items():
            lines.append(f'flaxres_requests_total{{status="{status}"}} {count}')
        for name, value in (("images", images), ("batches", batches)):
            lines += [f"# TYPE flaxres_{name}_total counter", f"flaxres_{name}_total {value}"]
        lines += ["# TYPE flaxres_waiting gauge", f"flaxres_waiting {waiting}"]
        lines.append("# TYPE flaxres_request_seconds histogram")
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
            total += count
            lines.append(f'flaxres_request_seconds_bucket{{le="{bound}"}} {total}')
        lines.append(f"flaxres_request_seconds_sum {seconds:.6f}")
        lines.append(f"flaxres_request_seconds_count {total}")
        return "\n".join(lines) + "\n"
