"""The section of docs/explanation/prompts.md that shows prompts as the models read them.

python -m tools.prompt_page writes it into the page.

The chat templates are Qwen's own, from the package TRL (an extra for development).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

from roboalign.conversations.conversation import Conversation, Turn, messages
from roboalign.conversations.prompts import ACTIONS, Mode, action_answer
from roboalign.conversations.styles.base import PromptStyle
from roboalign.conversations.styles.registry import STYLES

TEMPLATES = {"Qwen2.5-VL": "qwen2_5_vl.jinja", "Qwen3-VL": "qwen3_vl.jinja"}
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "prompts.md"
HEADING = """## Samples

Each text is exactly what the model reads, by the chat template that Qwen ships with it. `<|image_pad|>`
becomes as many tokens as the image has. The loss covers what comes after the last `assistant`, in RL
nothing. `python -m tools.prompt_page` writes this section; a test fails when it is out of date.
"""


@dataclass(frozen=True)
class Sample:
    """One turn in a style; without an answer the model is asked for it."""

    title: str
    question: str
    answer: str | None


def samples(style: PromptStyle) -> list[Sample]:
    """A sample of each kind."""
    holding = style.question("What is the man holding?", "direct", "answer")
    relation: tuple[Mode, str] = ("think", "side")
    asked = style.question("Is the cup left or right of the gripper?", *relation)
    fact = "The gripper is at 12 20. The cup is at 5 18. The cup is left of the gripper."
    block = action_answer([17, 4, 203])
    plain = style.action_question("open the drawer", "direct")
    return [
        Sample(
            "General question of a source", holding, style.reply("Umbrella", "direct", "answer")
        ),
        Sample("Reasoning", asked, style.reply("left", *relation, fact)),
        Sample("Action", plain, style.reply(block, "direct", ACTIONS)),
        Sample("RL prompt", style.asked(plain, "think", ACTIONS), None),
    ]


def rendered(sample: Sample, template: str) -> str:
    """The text that the model reads, by one of TEMPLATES."""
    turn = Turn("", "", "", sample.question, sample.answer or "", "")
    asked, answered = messages(Conversation(sample.title, "", 0, "", (b"",), (turn,)))
    shown = [asked] if sample.answer is None else [asked, answered]
    source = (files("trl") / "chat_templates" / TEMPLATES[template]).read_text()
    (text,), _ = render_jinja_template(
        conversations=[shown],
        chat_template=source,
        add_generation_prompt=sample.answer is None,
    )
    return str(text)


def page() -> str:
    """The whole page as Markdown: what is written by hand, and the samples."""
    written = PAGE.read_text().split(HEADING.splitlines()[0])[0]
    return "\n".join([written + HEADING, *_sections()])


def _sections() -> Iterator[str]:
    for name in ("paper", "labelled"):
        for template in TEMPLATES:
            yield f"### `{name}`, {template}\n"
            for sample in samples(STYLES[name]):
                yield f"{sample.title}:\n\n```text\n{rendered(sample, template).rstrip()}\n```\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
