"""Scores against their definitions, and against scikit-learn and torchmetrics where installed."""

import importlib.util

import numpy as np
import pytest

from benchmarks.peers import torch_and_torchmetrics
from flaxres.training import scores

K = 7


def sample(seed: int = 0, n: int = 400, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities in float32 and labels; classes 5 and 6 have no image, 6 no score."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K - 2, n)
    logits = rng.normal(size=(n, K)) + 1.5 * np.eye(K)[labels]
    logits[:, 6] = -30
    if ties:
        logits = np.round(logits)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return (exp / exp.sum(1, keepdims=True)).astype(np.float32), labels


def precision_by_threshold(right: np.ndarray, values: np.ndarray) -> float:
    """Average precision as the sum over all thresholds, without sorting the images."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(values.tolist()), reverse=True):
        chosen = values >= threshold
        recall = right[chosen].sum() / right.sum()
        total += (recall - before) * right[chosen].mean()
        before = recall
    return total


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_its_definition(ties: bool) -> None:
    probabilities, labels = sample(ties=ties)
    for i in range(5):
        ours = scores.average_precision(labels == i, probabilities[:, i])
        assert ours == pytest.approx(
            precision_by_threshold(labels == i, probabilities[:, i]), abs=1e-12
        )
    assert np.isnan(scores.average_precision(labels == 5, probabilities[:, 5]))


def test_average_precision_of_cases_by_hand() -> None:
    """Hits at ranks 1 and 3: (1/1 + 2/3) / 2; all scores equal: the share of the class."""
    assert scores.average_precision(
        np.array([1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.1])
    ) == pytest.approx(5 / 6, abs=1e-15)
    for right in ([1, 0, 0, 0], [0, 0, 0, 1]):
        assert scores.average_precision(np.array(right, bool), np.full(4, 0.5)) == 0.25


def test_calibration_is_its_definition() -> None:
    probabilities, labels = sample()
    predicted, confidence = probabilities.argmax(1), probabilities.max(1).astype(np.float64)
    right = predicted == labels
    ece, worst = 0.0, 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            ece, worst = ece + inside.mean() * gap, max(worst, gap)
    diagram = scores.calibration(confidence, right)
    assert diagram.counts.sum() == len(labels)
    assert diagram.ece == pytest.approx(ece, abs=1e-12)
    assert diagram.mce == pytest.approx(worst, abs=1e-12)
    assert 0.01 < ece < worst


def test_the_upper_edge_of_a_bin_belongs_to_it() -> None:
    diagram = scores.calibration(np.array([0.25, 0.5, 0.75, 1.0]), np.ones(4, bool), 4)
    assert diagram.counts.tolist() == [1, 1, 1, 1]
    assert np.isnan(scores.calibration(np.array([1.0]), np.ones(1, bool), 4).accuracy[:3]).all()


def test_counts_of_classes_are_their_definitions() -> None:
    probabilities, labels = sample()
    predicted = probabilities.argmax(1)
    pairs = {(a, b): n for a, b, n in scores.confusion(labels, predicted).tolist()}
    for a in range(K):
        for b in range(K):
            assert pairs.get((a, b), 0) == ((labels == a) & (predicted == b)).sum()
    ours = scores.class_scores(labels, predicted, K)
    for i in range(5):
        hits = ((labels == i) & (predicted == i)).sum()
        precision, recall = hits / (predicted == i).sum(), hits / (labels == i).sum()
        assert ours.precision[i] == pytest.approx(precision, abs=1e-15)
        assert ours.recall[i] == pytest.approx(recall, abs=1e-15)
        assert ours.f1[i] == pytest.approx(2 / (1 / precision + 1 / recall), abs=1e-15)
    assert np.isnan(ours.recall[5])
    assert np.isnan([ours.precision[6], ours.recall[6], ours.f1[6]]).all()
    assert scores.macro(ours.recall, ours.images) == pytest.approx(ours.recall[:5].mean())


def test_the_brier_score_is_the_squared_distance_from_the_label() -> None:
    probabilities, labels = sample()
    squares = ((probabilities.astype(np.float64) - np.eye(K)[labels]) ** 2).sum(1)
    np.testing.assert_allclose(scores.brier(probabilities, labels), squares, atol=1e-12)


@pytest.mark.extra
@pytest.mark.parametrize("ties", [False, True])
def test_scores_agree_with_scikit_learn(ties: bool) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    probabilities, labels = sample(1, 2000, ties)
    predicted = probabilities.argmax(1)
    for i in range(5):
        theirs = sklearn.average_precision_score(labels == i, probabilities[:, i])
        assert abs(scores.average_precision(labels == i, probabilities[:, i]) - theirs) < 1e-6
    ours = scores.class_scores(labels, predicted, K)
    theirs = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=range(K), zero_division=np.nan
    )
    for mine, other in zip((ours.precision, ours.recall), theirs, strict=False):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    np.testing.assert_allclose(ours.f1[:5], theirs[2][:5], atol=1e-12)
    dense = np.zeros((K, K), int)
    for label, other, count in scores.confusion(labels, predicted).tolist():
        dense[label, other] = count
    np.testing.assert_array_equal(
        dense, sklearn.confusion_matrix(labels, predicted, labels=range(K))
    )


@pytest.mark.extra
def test_calibration_agrees_with_torchmetrics() -> None:
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics is not installed: the extra `references`")
    torch, torchmetrics = torch_and_torchmetrics()
    probabilities, labels = sample(2, 2000)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    diagram = scores.calibration(confidence, predicted == labels)
    tensors = torch.from_numpy(probabilities), torch.from_numpy(labels)
    for norm, ours in (("l1", diagram.ece), ("max", diagram.mce)):
        metric = torchmetrics.MulticlassCalibrationError(K, n_bins=15, norm=norm)
        assert abs(float(metric(*tensors)) - ours) < 1e-6
    precision = torchmetrics.MulticlassAveragePrecision(K, average=None)(*tensors)
    for i in range(5):
        ours = scores.average_precision(labels == i, probabilities[:, i])
        assert abs(float(precision[i]) - ours) < 1e-6
