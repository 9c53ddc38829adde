"""What a training tries: classifiers, their parameters and search spaces, from YAML; never fits.

A file of candidates names classes, and naming one means importing it: only classes of the packages
in `ALLOWED_PACKAGES` are accepted.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from sklearn.base import BaseEstimator, ClassifierMixin

ALLOWED_PACKAGES = ("sklearn", "xgboost", "lightgbm")
"""Packages that a candidate's class may come from, and a stored model may be rebuilt from."""

ENSEMBLE = "Ensemble"
"""The mean of the best ones (`mlops.training.ensemble`): no entry of a file may be called so."""


ClassWeight = Literal["none", "balanced"]
Calibration = Literal["none", "sigmoid", "isotonic"]

_OF_EVERY_CLASS = {"class_weight": get_args(ClassWeight), "calibration": get_args(Calibration)}
"""What is searched of every class, as fields of the entry, and what each may be."""


_KEYS = "class, params, scale, max_rows, class_weight, calibration, search"


class CandidatesError(ValueError):
    """The file of candidates says something that cannot be used."""


class Choices(BaseModel):
    """A parameter that is one of a list; any value that YAML can write."""

    model_config = ConfigDict(frozen=True)

    values: list[Any]


class Range(BaseModel):
    """A parameter between two numbers, both included; whole numbers if both bounds are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: int | float
    high: int | float
    log: bool = Field(False, description="Drawn by its logarithm: for what spans powers of ten.")
    step: int | float | None = Field(None, gt=0, description="Drawn in steps of it, from low on.")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step or 1))

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"found low {self.low} and high {self.high}, expected low < high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: expected a low above 0, and no step")
        return self


def _dimension(value: Any) -> Choices | Range:
    """Return what stands at a parameter of `search`; raises ValueError, which says what may."""
    if isinstance(value, list):
        if not value:
            raise ValueError("found an empty list, expected the choices")
        if any(value.count(each) > 1 for each in value):
            raise ValueError(f"found a choice twice in {value!r}")
        return Choices(values=value)
    if isinstance(value, dict):
        try:
            return Range.model_validate(value)
        except ValidationError as error:
            faults = [
                ": ".join([*map(str, each["loc"][:1]), each["msg"].removeprefix("Value error, ")])
                for each in error.errors()
            ]
            # A number that fits neither int nor float is told once, not twice.
            raise ValueError(
                f"found {value!r}, expected {{low, high}} with log or step if need be "
                f"({'; '.join(dict.fromkeys(faults))})"
            ) from None
    raise ValueError(
        f"found {value!r}, expected a list of choices, as in [0.1, 1], or a range, as in "
        "{low: 0.1, high: 10, log: true}"
    )


class Candidate(BaseModel):
    """One entry of the file: a classifier, how it is made, and what it is fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$")
    class_path: str = Field(alias="class", description="Module and class, by dots.")
    params: dict[str, Any] = Field({}, description="Arguments of the constructor.")
    scale: bool = Field(False, description="Whether numbers are standardised first.")
    max_rows: int | None = Field(None, ge=100, description="Fit on a sample of so many rows.")
    class_weight: ClassWeight = Field(
        "none", description="balanced: both answers weigh the same, by the weights of the rows."
    )
    calibration: Calibration = Field(
        "none", description="Fitted out of fold on top of the classifier."
    )
    search: dict[str, Annotated[Choices | Range, BeforeValidator(_dimension)]] | None = Field(
        None, description="What is tried of each parameter; None: the entry is not searched."
    )

    @field_validator("class_path")
    @classmethod
    def _of_an_allowed_package(cls, path: str) -> str:
        package, _, rest = path.partition(".")
        if package not in ALLOWED_PACKAGES or not rest:
            raise ValueError(
                f"found {path!r}, expected a class of {', '.join(ALLOWED_PACKAGES)}, as in "
                "sklearn.linear_model.LogisticRegression"
            )
        return path

    @model_validator(mode="after")
    def _searched_as_allowed(self) -> Candidate:
        for name, allowed in _OF_EVERY_CLASS.items():
            tried = (self.search or {}).get(name)
            if tried is None:
                continue
            if not isinstance(tried, Choices) or not set(map(str, tried.values)) <= set(allowed):
                raise ValueError(f"search.{name}: expected choices of {', '.join(allowed)}")
        return self

    def with_values(self, values: dict[str, Any]) -> Candidate:
        """Return this candidate with other values of what `search` names.

        `class_weight` is then that of the entry, in place of the classifier's own parameter: the
        two would multiply.
        """
        own = {name: values[name] for name in _OF_EVERY_CLASS if name in values}
        params = {
            **{name: value for name, value in self.params.items() if name not in own},
            **{name: value for name, value in values.items() if name not in own},
        }
        return self.model_copy(update={"params": params, **own})


def load_candidates(path: Path) -> dict[str, Candidate]:
    """Return the candidates of a file by name, in its order.

    Raises CandidatesError, which names the file and every entry and key that is wrong. Classes are
    not imported: `make_classifier` does that.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        raise CandidatesError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise CandidatesError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise CandidatesError(f"{path}: found no candidate, expected one entry for each")
    candidates, mistakes = {}, []
    for name, entry in content.items():
        if not isinstance(entry, dict):
            mistakes.append(f"{name}: found {entry!r}, expected keys: {_KEYS}")
            continue
        if name == ENSEMBLE:
            mistakes.append(f"{name}: the mean of the best candidates is called so: rename it")
            continue
        try:
            candidates[str(name)] = Candidate.model_validate({**entry, "name": str(name)})
        except ValidationError as error:
            for problem in error.errors():
                key = ".".join(str(step) for step in problem["loc"])
                mistakes.append(f"{name}.{key}: {problem['msg'].removeprefix('Value error, ')}")
    if mistakes:
        raise CandidatesError("\n  ".join([f"{path} cannot be used:", *mistakes]))
    return candidates


def get_candidate(name: str, path: Path) -> Candidate:
    """Return the candidate `name` of a file. Raises CandidatesError, naming those there are."""
    candidates = load_candidates(path)
    if name not in candidates:
        raise CandidatesError(f"{path}: no candidate {name!r}: {_known(name, list(candidates))}")
    return candidates[name]


def make_classifier(candidate: Candidate, seed: int, threads: int = 1) -> BaseEstimator:
    """Return the unfitted classifier of a candidate.

    `seed` and `threads` become `random_state` and `n_jobs` where the class knows these and the
    entry does not set them. Raises CandidatesError if the class does not exist, is no classifier or
    does not know a parameter; a value that is wrong is found when it is fitted.
    """
    classifier_class = _import_class(candidate)
    known = classifier_class().get_params()
    searched = [name for name in candidate.search or {} if name not in _OF_EVERY_CLASS]
    for key, names in (("params", candidate.params), ("search", searched)):
        for name in names:
            # XGBoost would take any name, and only warn in the middle of the fit.
            if name not in known:
                raise CandidatesError(
                    f"{candidate.name}.{key}: {candidate.class_path} has no parameter {name!r}: "
                    f"{_known(name, list(known))}"
                )
    values = {"random_state": seed, "n_jobs": threads, **candidate.params}
    return classifier_class(**{name: value for name, value in values.items() if name in known})


def _import_class(candidate: Candidate) -> type[BaseEstimator]:
    where = f"{candidate.name}.class"
    module_name, _, class_name = candidate.class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        package = module_name.partition(".")[0]
        raise CandidatesError(
            f"{where}: {module_name} cannot be imported ({error}): if {package} is not installed, "
            "add it to the group `orchestrator` of pyproject.toml and run `make setup`"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        classes = [name for name in dir(module) if name[:1].isupper()]
        raise CandidatesError(
            f"{where}: {module_name} has no class {class_name!r}: {_known(class_name, classes)}"
        )
    if not (isinstance(found, type) and issubclass(found, ClassifierMixin)):
        raise CandidatesError(f"{where}: {candidate.class_path} is no classifier")
    return found


def _known(name: str, names: list[str]) -> str:
    """Return a hint: the names that look like `name`, else all."""
    close = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


class _UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence: a candidate would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found {key!r} twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)
