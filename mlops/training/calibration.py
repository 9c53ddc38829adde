"""Keep a fitted isotonic calibration exact in float32, as ONNX has to answer it; never fits one.

Isotonic regression is nearly a staircase: between two rows whose scores differ in the last digit it
may rise by 0.2, and a server that computes scores in float32 would answer by the other step. So the
slopes of the fitted curve are bounded, by which it keeps its values everywhere but at such steps.

The bound. Scores in float32 differ from sklearn's by a few roundings of the largest that occurs, R,
each 2^-24 R: at most 10 of them were measured (XGBoost's 200 trees, in probability; linear models,
support vectors, neural networks and forests 2 to 8), and `ROUNDINGS` are allowed for. An answer may
move by half of the parity tolerance on that account, the other half is for whatever follows. Slopes
of `tolerance / 2 / (ROUNDINGS 2^-24 R)` at most hold that: 2.6 / R at the default of 1e-5, with
which a curve may still rise from 0 to 1 within two fifths of R.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression

ROUNDINGS = 32
"""Roundings of 2^-24 of the largest score by which a float32 score may be off."""


def exact(classifier: BaseEstimator, tolerance: float) -> BaseEstimator:
    """Return the fitted `classifier`, its isotonic curves made such that ONNX answers alike.

    Changed in place: slopes of each curve of a CalibratedClassifierCV are bounded, by what
    `tolerance` (of a probability, `parity_tolerance`) allows. Types stay, and so does every other
    classifier. To be called once, after the fit.
    """
    if isinstance(classifier, CalibratedClassifierCV):
        for calibrated in classifier.calibrated_classifiers_:
            for calibrator in calibrated.calibrators:
                if isinstance(calibrator, IsotonicRegression):
                    _bound(calibrator, tolerance)
    return classifier


def steepest(scores: NDArray[np.floating], tolerance: float) -> float:
    """Return the largest slope that a curve over these scores (its knots) may have."""
    largest = max(float(np.abs(scores).max()), float(np.finfo(np.float32).tiny))
    return tolerance / 2 / (ROUNDINGS * 2.0**-24 * largest)


def bound_slopes(
    x: NDArray[np.float64], y: NDArray[np.float64], slope: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the knots of a rising curve that is near that of `x`, `y`, and nowhere over `slope`.

    It is the mean of the largest such curve below and the smallest above (Pasch-Hausdorff
    envelopes; McShane 1934): equal to the given one wherever that has been flat enough for a
    while, a ramp round the middle of a step. `x` and `y` rise; between knots the curve is linear.
    """
    below_x, below_y = _largest_below(x, y, slope)
    above_x, above_y = _largest_below(-x[::-1], -y[::-1], slope)
    above_x, above_y = -above_x[::-1], -above_y[::-1]
    knots = np.unique(np.concatenate([below_x, above_x]))
    values = (np.interp(knots, below_x, below_y) + np.interp(knots, above_x, above_y)) / 2
    return knots, np.maximum.accumulate(values)


def _largest_below(
    x: NDArray[np.float64], y: NDArray[np.float64], slope: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the knots of the largest curve that is nowhere above and nowhere steeper.

    From the left, a ramp begins where the curve is too steep, and ends where it meets it again.
    """
    knots, values = [x[0]], [y[0]]
    for left, right, low, high in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True):
        ramp = values[-1] + slope * (right - left)
        rise = (high - low) / (right - left)
        if values[-1] < low and ramp > high:
            # 0 < meets < right - left, as the ramp is below at one end and above at the other.
            meets = (low - values[-1]) / (slope - rise)
            knots.append(left + meets)
            values.append(low + rise * meets)
        knots.append(right)
        values.append(min(ramp, high))
    return np.array(knots), np.array(values)


def _bound(curve: IsotonicRegression, tolerance: float) -> None:
    x = np.asarray(curve.X_thresholds_, dtype=np.float64)
    y = np.asarray(curve.y_thresholds_, dtype=np.float64)
    if len(x) > 1:
        x, y = bound_slopes(x, y, steepest(x, tolerance))
    # As a stored one is restored: the function between the knots is built from these.
    state = curve.__getstate__() | {
        "X_thresholds_": x,
        "y_thresholds_": y,
        "X_min_": x[0],
        "X_max_": x[-1],
    }
    curve.__setstate__(state)
