"""The recipe reference, from the settings classes.

python -m tools.reference > docs/reference/recipe.md
"""

import json
from typing import Any

from roboalign.run.recipe import Recipe

PREFACE = """# Recipe reference

Every key of a recipe file, with its type, default and meaning. `python -m tools.reference` generates this page from the
settings classes in `src/roboalign/`, and a test fails when it is out of date. Change the classes, not this file. A
recipe with a key that is not listed here is refused.

Override any key on the command line by its dotted name, with a YAML value:
`roboalign run recipes/quickstart.yaml --set sft.max_steps=100 --set 'arms=[base, sft]'`. The stages under `seed-N/`
use N, from `seeds`, in place of `sft.seed` and `rl.seed`. The defaults shown for `head` are those of the preset `tiny`.
With another preset, keys that you leave out take that preset's values.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
Node = dict[str, Any]


def reference() -> str:
    """The whole page as Markdown."""
    schema = Recipe.model_json_schema()
    return "\n".join([PREFACE, *_section("", schema, {}, schema["$defs"])]) + "\n"


def _section(path: str, node: Node, defaults: Node, definitions: dict[str, Node]) -> list[str]:
    """The table of one settings class, then a section for each class below it; `defaults` win over the class's own."""
    lines = [f"## `{path}`" if path else "## Top level", "", _paragraph(node["description"]), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    below: list[str] = []
    for name, field in node["properties"].items():
        key = f"{path}.{name}" if path else name
        default = defaults.get(name, field.get("default"))
        named = _class_of(field) or _class_of(field.get("items", {}))
        inline = field if "properties" in field else None  # a benchmark's section
        if not named and not inline:
            required = "default" not in field
            lines.append(_row(key, field, "required" if required else f"`{json.dumps(default)}`"))
            continue
        settings = inline or definitions[named.rsplit("/", 1)[-1]]
        meaning = _paragraph(field.get("description") or settings["description"].split("\n\n")[0])
        kind = "section |" if "$ref" in field or inline else "section or null | `null`"
        if "items" in field:
            kind, key = f"list of sections | `{json.dumps(default)}`", f"{key}[]"
        lines.append(f"| `{key.removesuffix('[]')}` | {kind} | {meaning} |")
        below += _section(key, settings, {} if "items" in field else default or {}, definitions)
    return [*lines, "", *below]


def _class_of(field: Node) -> str:
    """The reference to a settings class, for a section that may be left out too; "" for a plain value."""
    return str(
        next((option["$ref"] for option in field.get("anyOf", [field]) if "$ref" in option), "")
    )


def _row(key: str, field: Node, default: str) -> str:
    return f"| `{key}` | {_type(field)} | {default} | {_paragraph(field.get('description', ''))} |"


def _type(field: Node) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        values = field["additionalProperties"]
        return f"mapping of string to {'any value' if values is True else _type(values)}"
    bounds = [f" {sign} {field[name]:.12g}" for name, sign in BOUNDS.items() if name in field]
    return field["type"] + ",".join(bounds)


def _paragraph(text: str) -> str:
    """One line, safe in a table."""
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    print(reference(), end="")
