"""Write the page of a run: one HTML file with everything in it (styles, plots, images, videos), for
any browser, offline."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_text
from roboalign.report import tables
from roboalign.report.caveats import caveats
from roboalign.report.open_loop import replay_view, replays_table
from roboalign.report.plots import interval_plot, line_plot
from roboalign.report.progress_text import progress_differences_table, progress_table
from roboalign.report.summary import Curve, RunSummary, Video
from roboalign.report.verdict import findings, headline, success_finding

_STAGES = {
    "base": "Base model",
    "language-sft": "Language-only SFT",
    "action-sft": "Action-only SFT",
    "sft": "SFT",
    "ecot": "SFT on reasoned actions of the RL subset",
    "extra-sft": "Extra SFT on the RL subset",
    "sft-visited": "Extra SFT on visited states",
    "head": "Action head",
    "online": "Online RL",
}
# Panels: the title, and the names under which the stages log its values.
TRAINING_PANELS = (
    ("Loss", ("loss", "train_loss")),
    ("Held-out loss", ("heldout_loss",)),
    ("Held-out L1", ("heldout_l1",)),
    ("Gradient norm", ("grad_norm",)),
    ("Success of the rollouts, exploring", ("success",)),
    ("Rollouts so far", ("episodes",)),
    ("Share of groups with both outcomes", ("mixed_share",)),
    ("Mean ratio", ("ratio",)),
    ("Clipped share", ("clipped",)),
    ("KL to the policy of the rollouts", ("kl",)),
)
GRPO_PANELS = (
    ("Reward", ("reward",)),
    ("Format reward (share well formed)", ("format",)),
    ("Action or answer reward", ("action", "score")),
    ("Prefix accuracy", ("prefix",)),
    ("Share of answers that decode", ("decoded",)),
    ("Decode failures a rollout", ("undecoded",)),
    ("Wrong length, answers a rollout", ("shorter", "longer")),
    ("L1 of decoded chunks", ("l1",)),
    ("KL to the SFT model", ("kl",)),
    ("Entropy, nats a token", ("entropy",)),
    ("Answer length, tokens", ("length_mean",)),
    ("Share of groups without signal", ("no_signal",)),
    ("Clipped share of tokens", ("clipped",)),
    ("Replay loss", ("replay_loss",)),
    ("Loss", ("loss",)),
    ("Gradient norm", ("grad_norm",)),
)


def write_report(run: RunSummary, out_html: str | Path) -> None:
    """Write the page of `run`. Raises RoboAlignError if a video or image that the run names cannot
    be read."""
    both = all(
        run.arm(name) for name in run.question
    )  # otherwise the page's first question has no answer
    environment = Environment(
        loader=PackageLoader("roboalign", "report"),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        run=run,
        css=Markup(environment.get_template("report.css").render()),
        headline=headline(run)
        if both
        else "RL on action accuracy was not run together with SFT: nothing to compare.",
        offline=bool(run.replays),
        findings=findings(run) if both else [],
        control=_control(run),
        arms=tables.arms_table(run),
        arm_plots=_arm_plots(run),
        token_differences=tables.token_differences_table(run),
        success_differences=tables.success_differences_table(run),
        chains=progress_table(run),
        chain_differences=progress_differences_table(run),
        tasks=tables.task_table(run),
        vqa=[table for mode in ("direct", "think") if (table := tables.vqa_table(run, mode))],
        reasoning=tables.reasoning_table(run),
        visited=tables.visited_table(run),
        visited_differences=tables.visited_differences_table(run),
        curves=_training_plots(run.curves),
        grpo=_panels([c for c in run.curves if c.stage == "rl"], GRPO_PANELS),
        rl_share=_rl_share(run.manifest),
        counts=tables.counts_table(run.manifest),
        samples=[
            {"sample": s, "image": _data_uri(s.image, "image/png") if s.image else ""}
            for s in run.samples
        ],
        videos=[{"video": v, "data": _data_uri(_read_video(v), "video/mp4")} for v in run.videos],
        replays=[(run.title(arm), replay_view(found)) for arm, found in run.replays.items()],
        replay_table=replays_table(run.replays, run.title) if run.replays else None,
        ledger=tables.ledger_table(run),
        caveats=caveats(run),
    )
    write_text(out_html, page)


def _control(run: RunSummary) -> Any:
    """Return success against the control that saw the same samples without RL; None if it was not
    measured."""
    finding = success_finding(run, "Success against extra SFT", "extra-sft", run.question[1])
    return None if finding.mark == "missing" else finding


def _arm_plots(run: RunSummary) -> list[Markup]:
    """Plot success and prefix accuracy of all arms with their intervals."""
    plots = []
    success = [
        (arm.title, tables.lookup(run.success, ("arms", arm.name, "overall"))) for arm in run.arms
    ]
    rows = [(title, {**row, "value": row["rate"]}) for title, row in success if row]
    if rows:
        plots.append(Markup(interval_plot("Success, %", rows, kind="percent")))
    for title, path in (
        ("Prefix accuracy, reasoned", ("actions", "think", "prefix")),
        ("VQA accuracy, direct, %", ("vqa", "direct", "accuracy")),
    ):
        found = [(arm.title, tables.lookup(arm.mllm, path)) for arm in run.arms]
        estimates = [(name, estimate) for name, estimate in found if estimate]
        if estimates:
            kind = "percent" if title.endswith("%") else "number"
            plots.append(Markup(interval_plot(title, estimates, kind=kind)))
    return plots


def _training_plots(curves: list[Curve]) -> list[tuple[str, list[Markup]]]:
    """Return (stage title, its plots) for each stage but RL that has a log."""
    found = []
    logged = {curve.stage for curve in curves} - {"rl"}
    for stage in [*_STAGES, *sorted(logged - set(_STAGES))]:
        plots = _panels([curve for curve in curves if curve.stage == stage], TRAINING_PANELS)
        if plots:
            found.append((_STAGES.get(stage, stage), plots))
    return found


def _panels(curves: list[Curve], panels: tuple[tuple[str, tuple[str, ...]], ...]) -> list[Markup]:
    """Draw one plot for each panel that any of the logs has, one line per log and quantity."""
    plots = []
    for title, keys in panels:
        lines = {}
        for curve in curves:
            logged = [key for key in keys if any(r.get(key) is not None for r in curve.records)]
            for key in logged:
                label = curve.label if len(logged) == 1 else f"{key}, {curve.label}"
                lines[label] = [
                    (r["step"], r[key]) for r in curve.records if r.get(key) is not None
                ]
        if lines:
            plots.append(Markup(line_plot(title, lines)))
    return plots


def _rl_share(manifest: Mapping[str, Any] | None) -> str:
    if not manifest:
        return ""
    samples, turns = manifest["counts"]["rl"]["turns"], manifest["counts"]["train"]["turns"]
    share = f"{100 * samples / turns:.2f}%" if turns else "–"
    return f"The RL subset has {samples:,} prompts: {share} of the {turns:,} SFT samples (paper: 12.8K, 0.56%)."


def _read_video(video: Video) -> bytes:
    try:
        return video.path.read_bytes()
    except OSError as error:
        raise RoboAlignError(
            f"cannot read the rollout video ({error.strerror})",
            where=str(video.path),
            fix="evaluate the arm again, or leave the video out",
        ) from None


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
