"""Write the model card (README.md) of what `roboalign push` uploads, in Markdown with the Hub's
metadata on top."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from roboalign.report.tables import ARM_COLUMNS, lookup
from roboalign.report.text import count_text, interval, percent, value

LOAD = {
    "policy": (
        "from roboalign.vla.policy import Policy\n\n"
        'policy = Policy.load("{name}")\n'
        "actions = policy.act(observation)  # images, state, instruction -> [steps, dimensions]\n"
    ),
    "model": (
        "from roboalign.core.hub import resolve\n"
        "from roboalign.mllm.load import load_mllm\n\n"
        'mllm = load_mllm(resolve("{name}", "model"))\n'
    ),
}
WHAT = {
    "policy": "A robot policy: a multimodal LLM, aligned with actions, and a flow-matching head that turns its hidden "
    "states into a chunk of continuous actions.",
    "model": "A multimodal LLM with FAST action tokens in its vocabulary.",
}


@dataclass(frozen=True)
class License:
    """The license of the backbone, as its own card states it; empty if unknown."""

    id: str = ""
    name: str = ""
    link: str = ""

    def metadata(self) -> dict[str, str]:
        """Return the entries for a card's metadata."""
        named = {"license_name": self.name, "license_link": self.link}
        return {
            "license": self.id or "unknown",
            **{key: text for key, text in named.items() if text},
        }


@dataclass(frozen=True)
class CardFacts:
    """All facts that a card states."""

    name: str
    """The repository, owner/name."""
    what: str
    """`policy` or `model`."""
    arm: str = ""
    """The arm of the run; "" if the upload belongs to no known run."""
    arm_means: str = ""
    """One sentence: how the arm was trained."""
    seed: int | None = None
    """The training seed of these weights."""
    backbone: str = ""
    """Where the backbone came from, in words; a Hub id if it has one."""
    base_model: str = ""
    """The backbone's Hub id, for the metadata; "" if it has none."""
    license: License = field(default_factory=License)
    data: Sequence[str] = ()
    """Lines about the training data."""
    summary: Mapping[str, Any] | None = None
    """The run's summary.json."""
    unmeasured: str = ""
    """Why there are no numbers, if there are none."""
    protocol: Mapping[str, Any] | None = None
    """How success was measured: the run's protocol.json."""


def model_card(facts: CardFacts) -> str:
    """Return README.md of the upload."""
    parts = [
        f"---\n{yaml.safe_dump(_metadata(facts), sort_keys=False)}---",
        f"# {facts.name.split('/')[1]}",
        WHAT[facts.what] + (f" Arm `{facts.arm}`: {facts.arm_means}." if facts.arm else ""),
        "## Load it",
        f"```python\n{LOAD[facts.what].format(name=facts.name)}```",
        "## Trained on",
        "\n".join(f"- {line}" for line in facts.data) or "Not recorded with this folder.",
        "## Measured",
        _measured(facts),
        "## License",
        _license(facts),
        "Made with RoboAlign, after the method of [arXiv 2603.21341](https://arxiv.org/abs/2603.21341).",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(facts: CardFacts) -> dict[str, Any]:
    task = {"policy": "robotics", "model": "image-text-to-text"}[facts.what]
    return {
        **facts.license.metadata(),
        "library_name": "roboalign",
        "pipeline_tag": task,
        "tags": ["robotics", "vision-language-action", "roboalign"],
        **({"base_model": facts.base_model} if facts.base_model else {}),
    }


def _measured(facts: CardFacts) -> str:
    rows = [*_success_rows(facts), *_token_rows(facts)]
    if not rows:
        return f"Not measured: {facts.unmeasured or 'the run has no numbers of this arm'}."
    head = "| measure | value | 95% interval | n |\n|---|---|---|---|"
    table = "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])
    environment = (facts.summary or {}).get("environment") or {}
    seeds = str(environment.get("training seeds", ""))
    note = (
        f"Over the training seeds {seeds}; the weights here are of seed {facts.seed}."
        if "," in seeds
        else ""
    )
    tested = "; ".join(
        f"{key}: {environment[key]}" for key in ("date", "commit", "versions") if key in environment
    )
    return "\n\n".join(part for part in (table, note, _protocol(facts.protocol), tested) if part)


def _success_rows(facts: CardFacts) -> list[tuple[str, str, str, str]]:
    """Return the arm's success rate over all tasks and on each task; none for a model without a
    head."""
    found = lookup(facts.summary, ("success", "arms", facts.arm))
    if not found or facts.what != "policy":
        return []
    named = [("Success, all tasks", found["overall"])]
    named += [(f"Success, `{task}`", row) for task, row in sorted(found["tasks"].items())]
    return [
        (title, percent(row["rate"]), interval(row, "percent"), _episodes(row))
        for title, row in named
        if row["n"] or row["crashes"]
    ]


def _episodes(row: Mapping[str, Any]) -> str:
    crashed = f", {row['crashes']} crashed" if row["crashes"] else ""
    return f"{count_text(row['n'])} episodes{crashed}"


def _token_rows(facts: CardFacts) -> list[tuple[str, str, str, str]]:
    """Return the arm's metrics as a language model, on held-out frames."""
    metrics = lookup(facts.summary, ("arms", facts.arm))
    found = ((title, lookup(metrics, path), kind) for title, path, kind in ARM_COLUMNS)
    return [
        (title, value(row, kind), interval(row, kind), count_text(row["n"]))
        for title, row, kind in found
        if row
    ]


def _protocol(protocol: Mapping[str, Any] | None) -> str:
    if protocol is None:
        return ""
    return f"How success was measured:\n\n```json\n{json.dumps(protocol, indent=2)}\n```"


def _license(facts: CardFacts) -> str:
    come = (
        f"The backbone is {facts.backbone}."
        if facts.backbone
        else "The backbone's origin is not recorded."
    )
    if not facts.license.id:
        return (
            f"{come} Its license is not known here: find it before you use or share these weights."
        )
    shown = facts.license.name or facts.license.id
    link = f" ([text]({facts.license.link}))" if facts.license.link else ""
    return f"{come} Its license is `{shown}`{link}, and holds for these weights too."
