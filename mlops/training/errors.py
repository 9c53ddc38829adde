"""What can go wrong in a training."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """A training cannot be started, or gave no model at all: the champion stays."""


class CandidateError(TrainingError):
    """One candidate could not be fitted; `candidate` names it. The others are not touched."""

    def __init__(self, candidate: str, reason: str) -> None:
        super().__init__(f"candidate {candidate}: {reason}")
        self.candidate = candidate
        self.reason = reason
