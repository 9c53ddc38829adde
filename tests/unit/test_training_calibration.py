"""Isotonic curves stay near what was fitted, and are nowhere steeper than float32 allows."""

from __future__ import annotations

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from mlops.training.calibration import ROUNDINGS, bound_slopes, exact, steepest
from mlops.training.tracking import trusted_types

TOLERANCE = 1e-5


def staircase() -> tuple[np.ndarray, np.ndarray]:
    """Scores and answers of which an isotonic fit is nearly a staircase."""
    random = np.random.default_rng(3)
    scores = random.random(2000)
    return scores, (random.random(2000) < scores).astype(float)


@settings(deadline=None, max_examples=60)
@given(
    x=st_numpy.arrays(
        float, st.integers(2, 30), elements=st.floats(-5, 5, width=32), unique=True
    ).map(np.sort),
    rises=st.lists(st.floats(0, 1), min_size=30, max_size=30),
    slope=st.floats(1e-3, 1e3),
)
def test_a_bounded_curve_rises_is_no_steeper_and_stays_within_the_values(
    x: np.ndarray, rises: list[float], slope: float
) -> None:
    y = np.cumsum(rises[: len(x)])
    knots, values = bound_slopes(x, y, slope)
    assert (np.diff(knots) > 0).all()
    assert (np.diff(values) >= 0).all()
    assert (np.diff(values) <= slope * np.diff(knots) * (1 + 1e-9) + 1e-9).all()
    assert (knots[0], knots[-1]) == (x[0], x[-1])
    assert y[0] - 1e-12 <= values[0]
    assert values[-1] <= y[-1] + 1e-12


def test_a_curve_that_is_flat_enough_stays_as_it_is() -> None:
    x, y = np.array([0.0, 0.2, 0.5, 1.0]), np.array([0.1, 0.2, 0.2, 0.9])
    knots, values = bound_slopes(x, y, 2.0)
    grid = np.linspace(0, 1, 1001)
    assert np.interp(grid, knots, values) == pytest.approx(np.interp(grid, x, y), abs=1e-12)


def test_a_step_becomes_a_ramp_round_its_middle_and_the_rest_stays() -> None:
    x, y = np.array([0.0, 0.5, 0.5 + 1e-7, 1.0]), np.array([0.2, 0.2, 0.4, 0.4])
    knots, values = bound_slopes(x, y, 2.0)
    found = np.interp([0.3, 0.5, 0.7], knots, values)
    assert found == pytest.approx([0.2, 0.3, 0.4], abs=1e-6)


def test_the_last_digits_of_a_score_do_not_move_an_answer_by_more_than_the_tolerance() -> None:
    scores, answers = staircase()
    free = IsotonicRegression(out_of_bounds="clip").fit(scores, answers)
    calibrated = CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=3, ensemble=False)
    calibrated.fit(scores.reshape(-1, 1), answers)
    [curve] = calibrated.calibrated_classifiers_[0].calibrators
    exact(calibrated, TOLERANCE)
    largest = np.abs(curve.X_thresholds_).max()
    off = ROUNDINGS * 2.0**-24 * largest

    def moved(each: IsotonicRegression) -> float:
        at = np.linspace(each.X_min_, each.X_max_, 200_001)
        return float((each.predict(at + off) - each.predict(at)).max())

    assert moved(curve) <= TOLERANCE / 2 * (1 + 1e-6)
    assert moved(free) > 10 * TOLERANCE, "nothing had to be bounded"
    assert np.ptp(curve.y_thresholds_) > 0.5, "a constant would do, too"
    assert steepest(curve.X_thresholds_, TOLERANCE) == pytest.approx(2.62 / largest, rel=0.01)


def test_a_bounded_calibration_is_stored_and_loaded_as_what_it_is() -> None:
    scores, answers = staircase()
    calibrated = CalibratedClassifierCV(LogisticRegression(), method="isotonic", ensemble=False)
    exact(calibrated.fit(scores.reshape(-1, 1), answers), TOLERANCE)
    content = skops.io.dumps(calibrated)
    loaded = skops.io.loads(content, trusted=trusted_types(content))
    assert type(loaded.calibrated_classifiers_[0].calibrators[0]) is IsotonicRegression
    at = np.linspace(-1, 2, 500).reshape(-1, 1)
    np.testing.assert_array_equal(loaded.predict_proba(at), calibrated.predict_proba(at))


def test_a_curve_of_one_knot_and_other_classifiers_are_left() -> None:
    scores = np.linspace(0, 1, 60).reshape(-1, 1)
    sigmoid = CalibratedClassifierCV(GaussianNB(), method="sigmoid", ensemble=False)
    for classifier in (GaussianNB(), sigmoid):
        classifier.fit(scores, np.arange(60) % 2)
        before = classifier.predict_proba(scores)
        assert exact(classifier, TOLERANCE) is classifier
        np.testing.assert_array_equal(classifier.predict_proba(scores), before)
    constant = CalibratedClassifierCV(LogisticRegression(), method="isotonic", ensemble=False)
    constant.fit(np.zeros((60, 1)), np.arange(60) % 2)
    assert exact(constant, TOLERANCE).predict_proba(scores)[:, 1] == pytest.approx(0.5)
