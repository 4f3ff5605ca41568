"""Define the base of every settings object, and turn its errors into one message.

Settings are frozen and typed, and unknown keys are refused.
"""

import difflib
import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from roboalign.core.errors import RoboAlignError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every library accepts: those of numpy and transformers are 32 bits wide."""
Weight = Annotated[float, Field(ge=0, le=1e12)]
"""A weight relative to the other weights."""
LARGEST_WHOLE = 2**32 - 1
LARGEST = 1e30
"""No setting has a meaning beyond these limits; arithmetic on larger numbers overflows."""


class Config(BaseModel):
    """One group of settings. Immutable; an unknown key or a wrong type is an error naming the key.

    Numbers are finite and at most LARGEST, and `true` is not a number. Each field is followed by a
    string that gives its meaning and unit; the recipe reference is generated from these strings.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _sane_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse booleans and very large numbers in number fields.

        YAML's `yes` and `on` are true, which pydantic would accept as 1.
        """
        field = cls.model_fields[info.field_name or ""]
        if not _takes(field.annotation, int, float) or _takes(field.annotation, bool):
            return value
        for number in _scalars(value):
            if isinstance(number, bool):
                raise ValueError("true and false are no numbers")
            if isinstance(number, int) and abs(number) > LARGEST_WHOLE:
                raise ValueError(f"a whole number here is at most {LARGEST_WHOLE}")
            if isinstance(number, float) and LARGEST < abs(number) < math.inf:
                raise ValueError(f"a number here is at most {LARGEST:g}")
        return value


def _scalars(value: Any) -> Iterator[Any]:
    """Yield the values inside lists and mappings, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _takes(annotation: Any, *kinds: type) -> bool:
    """Return whether an annotation such as `tuple[int, ...] | None` contains one of these types."""
    if annotation in kinds or annotation is Any:
        return True
    return any(_takes(part, *kinds) for part in get_args(annotation))


def validated(kind: Any, values: Any, where: str, at: str = "", fix: str = "") -> Any:
    """Return `values` as a `kind`: a settings class or any pydantic type.

    Raises RoboAlignError; see `_explain`.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise _explain(error, kind, where, at, fix) from None


def _explain(
    error: ValidationError, kind: Any, where: str, at: str = "", fix: str = ""
) -> RoboAlignError:
    """Return the first validation error as one message that names the key.

    For an unknown key it suggests the nearest known one. `at` is the key in the file that contains
    the values. `fix` is used if the error itself suggests none; `{key}` in it is replaced.
    """
    fault = error.errors()[0]
    # pydantic adds the union member it tried, such as `tuple[str, ...]`, which is not a key.
    location = [part for part in fault["loc"] if "[" not in str(part)]
    key = ".".join([*([at] if at else []), *map(str, location)])
    count = error.error_count() - 1
    more = f" ({count} more faults after this one)" if count else ""
    if fault["type"] == "extra_forbidden":
        known = _fields_at(kind, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return RoboAlignError(f"unknown key `{key}`{more}", where=where, fix=fix)
    message = fault["msg"].removeprefix("Value error, ")
    if not key:  # a conflict between two settings, both of which the message names
        return RoboAlignError(f"{message}{more}", where=where, fix="correct one of them")
    given = "" if isinstance(fault["input"], dict) else f", got {_short(fault['input'])}"
    fix = (fix or "correct `{key}` there").replace("{key}", _settable(key))
    return RoboAlignError(f"`{key}`: {message}{given}{more}", where=where, fix=fix)


def _settable(key: str) -> str:
    """Return the key of the whole list if `key` names an item, which cannot be set alone."""
    return re.sub(r"\.\d+(\..*)?$", "", key)


def _short(value: Any) -> str:
    """Return a value as text of at most about 200 characters, however deeply nested it is."""
    short = reprlib.Repr()
    short.maxlevel = 2
    short.maxstring = short.maxother = 120
    short.maxlong = 40
    return short.repr(value)[:200]


def _fields_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """Return the keys of the settings class at a location inside `kind`."""
    model: Any = kind
    for part in location:
        if isinstance(part, int) or "[" in part:
            continue
        if part in _sections(model):
            model = _sections(model)[part]
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = _class_in(field.annotation) if field is not None else None
    return [*getattr(model, "model_fields", {}), *_sections(model)]


def _sections(model: Any) -> dict[str, type[Config]]:
    """Return the groups of settings that are not fields of the class: key -> class."""
    sections: dict[str, type[Config]] = getattr(model, "sections", dict)()
    return sections


def _class_in(annotation: Any) -> Any:
    """Return the settings class in an annotation such as `tuple[Source, ...] | None`, or None."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next(filter(None, map(_class_in, get_args(annotation))), None)
