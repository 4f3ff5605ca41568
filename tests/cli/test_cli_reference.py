"""docs/reference/recipe.md is what the settings classes say, and says something about every key."""

from pathlib import Path

from roboalign.run.recipe import Recipe
from tools.reference import reference

PAGE = Path(__file__).parents[2] / "docs/reference/recipe.md"


def keys(values: dict, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a dumped recipe; `mix.weights` and `distill.groups` are one each, a mapping."""
    found = []
    for name, value in values.items():
        below = isinstance(value, dict) and name not in ("weights", "groups")
        found += keys(value, f"{prefix}{name}.") if below else [prefix + name]
    return found


def test_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), (
        "run: python -m tools.reference > docs/reference/recipe.md"
    )


def test_every_key_has_a_row_with_a_meaning() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    meanings = {
        row[0].removeprefix("| ").strip("`"): row[-1].removesuffix(" |").strip() for row in rows
    }
    wanted = keys(Recipe(name="x").model_dump(mode="json"))
    assert len(wanted) > 100 and set(wanted) <= meanings.keys()
    assert [key for key in wanted if not meanings[key]] == []


def test_defaults_shown_are_the_defaults() -> None:
    page = reference()
    assert "| `rl.dual_clip` | number > 1 | `3.0` |" in page
    assert "| `name` | string | required |" in page
    assert "| `sft.max_steps` | integer ≥ 1 or null | `null` |" in page
