"""Scores of a classifier's predictions, in NumPy and float64.

Each function takes arrays with an entry for each image. Scores without a value, such as the
precision of a class that was never predicted, are NaN.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Integer

BINS = 15


def top_k(rank: Integer[np.ndarray, " n"], k: int) -> float:
    """Returns the share of images whose label is among the `k` likeliest classes.

    Args:
      rank: the number of classes that are at least as likely as the label, without the label.
      k: the number of classes.

    Examples:
      >>> top_k(np.array([0, 1, 4, 0]), 2)
      0.75
    """
    return float((rank < k).mean())


def confusion(
    labels: Integer[np.ndarray, " n"], predicted: Integer[np.ndarray, " n"]
) -> Integer[np.ndarray, "pairs 3"]:
    """Returns the entries of the confusion matrix that are not zero.

    Only these entries are stored, because the matrix of many classes is almost empty.

    Args:
      labels: the label of each image.
      predicted: the predicted class of each image.

    Returns:
      A row of label, predicted class and count for each pair that occurs, in ascending order.

    Examples:
      >>> confusion(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])).tolist()
      [[0, 0, 1], [0, 1, 1], [1, 1, 2]]
    """
    pairs, counts = np.unique(np.stack([labels, predicted], 1), axis=0, return_counts=True)
    return np.column_stack([pairs, counts]).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Scores of each class against all others.

    With the true positives TP, false positives FP and false negatives FN of a class, precision is
    TP / (TP + FP), recall TP / (TP + FN), and F1 = 2 TP / (2 TP + FP + FN) their harmonic mean (van
    Rijsbergen 1979, chapter 7). Recall is also the accuracy on the images of the class.

    Attributes:
      images: the number of images of each class.
      predicted: the number of images for which each class was predicted.
      correct: the number of images of each class for which it was predicted.

    Examples:
      >>> scores = class_scores(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
      >>> scores.precision.round(3).tolist(), scores.recall.tolist(), scores.f1.round(3).tolist()
      ([1.0, 0.667], [0.5, 1.0], [0.667, 0.8])
    """

    images: Integer[np.ndarray, " k"]
    predicted: Integer[np.ndarray, " k"]
    correct: Integer[np.ndarray, " k"]

    @property
    def precision(self) -> Float[np.ndarray, " k"]:
        """Precision of each class; NaN for a class that was never predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> Float[np.ndarray, " k"]:
        """Recall of each class; NaN for a class without images."""
        return _ratio(self.correct, self.images)

    @property
    def f1(self) -> Float[np.ndarray, " k"]:
        """F1 of each class; NaN for a class without images that was never predicted."""
        return _ratio(2 * self.correct, self.images + self.predicted)


def class_scores(
    labels: Integer[np.ndarray, " n"], predicted: Integer[np.ndarray, " n"], classes: int
) -> ClassScores:
    """Counts the images, predictions and hits of each class.

    Args:
      labels: the label of each image.
      predicted: the predicted class of each image.
      classes: the number of classes.

    Examples:
      >>> class_scores(np.array([0, 0, 1]), np.array([0, 1, 1]), 3).images.tolist()
      [2, 1, 0]
    """
    return ClassScores(
        images=np.bincount(labels, minlength=classes),
        predicted=np.bincount(predicted, minlength=classes),
        correct=np.bincount(labels[labels == predicted], minlength=classes),
    )


def macro(values: Float[np.ndarray, " k"], images: Integer[np.ndarray, " k"]) -> float:
    """Returns the mean of a score over the classes that have images.

    A score without a value, the precision of a class that was never predicted, counts as 0. The
    mean of the recalls is the balanced accuracy.

    Args:
      values: a score of each class.
      images: the number of images of each class.

    Examples:
      >>> macro(np.array([1.0, 0.5, np.nan]), np.array([3, 1, 0]))
      0.75
    """
    return float(np.nan_to_num(values[images > 0]).mean())


def average_precision(right: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Returns the average precision of a class against all others.

    AP = sum over i of (R_i - R_(i-1)) P_i, where P_i and R_i are precision and recall at the i-th
    highest of the distinct scores as threshold. It is the area below the curve of precision over
    recall without interpolation, as scikit-learn's `average_precision_score` defines it; for
    scores that are all different, it is the mean of the precisions at each hit (Manning,
    Raghavan, Schütze 2008, section 8.4).

    Args:
      right: the images of the class.
      scores: the probability of the class for each image.

    Returns:
      A number in (0, 1]; NaN for a class without images.

    Examples:
      >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.3])).__round__(4)
      0.8333
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # Images of one score pass a threshold together.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(right[order], dtype=np.int64)[last]
    if not hits[-1]:
        return float("nan")
    steps = np.diff(hits, prepend=0) / hits[-1]
    return float((steps * hits / (last + 1)).sum())


def average_precisions(
    labels: Bool[np.ndarray, "n k"], probabilities: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """Returns the average precision of each class.

    Args:
      labels: the classes of each image.
      probabilities: the probability of each class for each image.

    Examples:
      >>> average_precisions(np.eye(2, dtype=bool), np.array([[0.9, 0.1], [0.2, 0.1]])).tolist()
      [1.0, 0.5]
    """
    pairs = zip(labels.T, probabilities.T, strict=True)
    return np.asarray([average_precision(right, of_class) for right, of_class in pairs])


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A reliability diagram: the images in bins of equal width by the confidence.

    Attributes:
      edges: the edges of the bins, one more than bins.
      counts: the number of images in each bin.
      confidence: the mean confidence in each bin; NaN where it is empty.
      accuracy: the accuracy in each bin; NaN where it is empty.

    Examples:
      >>> diagram = calibration(np.array([0.55, 0.95, 0.85]), np.array([True, True, False]), 2)
      >>> diagram.counts.tolist(), diagram.accuracy.round(3).tolist(), round(diagram.ece, 4)
      ([0, 3], [nan, 0.667], 0.1167)
    """

    edges: Float[np.ndarray, " bins+1"]
    counts: Integer[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]

    @property
    def gaps(self) -> Float[np.ndarray, " bins"]:
        """Distance of accuracy and confidence in each bin; 0 where it is empty."""
        return np.asarray(np.nan_to_num(np.abs(self.accuracy - self.confidence)))

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean of the gaps, each by its number of images."""
        return float((self.gaps * self.counts).sum() / self.counts.sum())

    @property
    def mce(self) -> float:
        """The maximum calibration error: the largest gap."""
        return float(self.gaps.max())

    def to_json(self) -> dict[str, list[float]]:
        """Returns the bins by name."""
        return {
            field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)
        }


def calibration(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS
) -> Calibration:
    """Compares the confidence of predictions with their accuracy.

    The confidence is the probability of the predicted class. Bin m of M holds the images whose
    confidence is in ((m - 1) / M, m / M] (Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of
    Modern Neural Networks", section 2, which uses 15 bins).

    Args:
      confidence: the confidence of each prediction, in (0, 1].
      right: the predictions that are right.
      bins: the number of bins.

    Examples:
      >>> calibration(np.array([0.5, 1.0]), np.array([True, True]), bins=2).ece
      0.25
    """
    edges = np.linspace(0, 1, bins + 1)
    confidence = confidence.astype(np.float64)
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    counts = np.bincount(index, minlength=bins)
    return Calibration(
        edges=edges,
        counts=counts,
        confidence=_ratio(np.bincount(index, confidence, bins), counts),
        accuracy=_ratio(np.bincount(index, right, bins), counts),
    )


def brier(
    probabilities: Float[np.ndarray, "n k"], labels: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Returns the Brier score of each image: sum over classes of (p - y)^2, in [0, 2].

    `p` is the probability of a class and `y` 1 for the label, else 0 (Brier 1950).

    Args:
      probabilities: of each image and class.
      labels: the label of each image.

    Examples:
      >>> brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0])).tolist()
      [0.5, 0.0]
    """
    of_label = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0].astype(np.float64)
    # Squares are summed in float64 without a copy of all probabilities in float64.
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return np.asarray(squares - 2 * of_label + 1)


def _ratio(
    above: Float[np.ndarray, " k"] | Integer[np.ndarray, " k"], below: Integer[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Returns the quotients; NaN where the denominator is 0."""
    quotients = np.full(len(below), np.nan)
    np.divide(above, below, out=quotients, where=below > 0)
    return quotients
