"""Find a prompt style by its name, and refuse data or a model of another one."""

from roboalign.conversations.styles.base import DEFAULT_STYLE, PromptStyle
from roboalign.conversations.styles.labelled import Labelled
from roboalign.conversations.styles.paper import Paper
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import Mllm

STYLES: dict[str, PromptStyle] = {style.name: style for style in (Labelled(), Paper())}


def style_of(name: str | None) -> PromptStyle:
    """Return the style of that name, of None the default. Raises RoboAlignError on another name."""
    if (name or DEFAULT_STYLE) not in STYLES:
        raise RoboAlignError(
            f"there is no prompt style `{name}`. Available: {', '.join(STYLES)}",
            fix="update roboalign, or set `prompts`",
        )
    return STYLES[name or DEFAULT_STYLE]


def require_style(found: str | None, wanted: str, *, what: str, where: str) -> None:
    """Raise RoboAlignError unless what was made in the style `found` (None: not said, so the
    default) is of the style `wanted`.

    A model that was trained on questions of one style does not know those of another.
    """
    if style_of(found).name != wanted:
        raise RoboAlignError(
            f"the {what} has prompts of the style `{style_of(found).name}`, not `{wanted}`",
            where=where,
            fix=f"set `prompts: {style_of(found).name}`, or make the {what} in the style `{wanted}`",
        )


def require_model_style(mllm: Mllm, wanted: str, *, where: str) -> None:
    """Raise RoboAlignError on a model that was trained in another style.

    A model that has no action tokens and names no style may be trained in any.
    """
    if mllm.prompts or mllm.vocabulary:
        require_style(mllm.prompts, wanted, what="model", where=where)
