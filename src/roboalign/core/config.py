"""The base of every settings object: frozen, typed, unknown keys refused."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """One stage's settings. Immutable; an unknown key or a wrong type is an error that names the key.

    Each field is followed by a string that says what it means and in which unit; `roboalign doctor` does not
    repeat it, the recipe reference in docs/reference/recipe.md is generated from it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after results had been made. At its default such a field says what was the case before."""

    def identity(self) -> dict[str, Any]:
        """The settings as JSON values, by which a result is known; fields of `ADDED` only where they are not default.

        So what was made before a field existed is still known by the same settings.
        """
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.ADDED and value == field.default:
                del values[name]
            elif isinstance(value, Config):
                values[name] = value.identity()
        return values
