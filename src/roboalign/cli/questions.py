"""`roboalign data questions`: question-answering data from robot episodes, computed or written by a
teacher."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from roboalign.actions.axes import KNOWN_AXES, parse_axes
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_output
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.robot_data import RobotData
from roboalign.questions.base import QuestionConfig, look
from roboalign.questions.computed import StateQuestions
from roboalign.questions.facts.motion import NO_AXES, NO_POSITION, NO_SPACE, NOT_WHOLE, Motion
from roboalign.questions.registry import QUESTION_TYPES
from roboalign.questions.teacher.cache import AnswerCache
from roboalign.questions.teacher.client import ChatClient, Endpoint
from roboalign.questions.teacher.questions import TeacherQuestions, estimate, price, teacher_prompt
from roboalign.questions.write import MOST_FAULTS, Plan, make_plan, read_work, write_questions

Checked = TypeVar("Checked", bound=Config)
Prices = tuple[float | None, float | None]
LOOKED_AT = 20
"""Number of parts of the plan that are searched for a frame to estimate the cost from."""
MENDED = {
    NO_SPACE.reason: "--space NAME",
    NO_AXES.reason: "--axes X,Y,Z",
    NO_POSITION.reason: "--position COLUMN",
    NOT_WHOLE.reason: "--whole",
}
"""Reason for which a question was not asked -> the option that fixes it."""


def question_data(data: RobotData, options: Mapping[str, Any]) -> str:
    """Write the folder `options["out"]`, or with `dry_run` say what it would cost; return the text
    to print.

    `options` are those of the command line, by name. Raises RoboAlignError on one that does not
    fit.
    """
    config, count, out = question_config(options), options["count"], Path(options["out"])
    if count < 1:
        raise RoboAlignError(f"--count is {count}", where="count", fix="give 1 or more")
    check_output(out, sources=[data.path] if data.path else [])
    settings = {
        "source": source_of(data, options),
        "by": options["by"],
        **config.model_dump(mode="json"),
    }
    if options["by"] == "teacher":
        return ask_teacher(data, options, config, settings)
    unused = [name for name in ("endpoint", "model", "key_env", "dry_run") if options[name]]
    if unused:
        raise RoboAlignError(
            f"--{unused[0].replace('_', '-')} belongs to a teacher",
            where="--by states",
            fix="leave it out, or add --by teacher",
        )
    manifest = write_questions(
        data,
        StateQuestions(config),
        out,
        count=count,
        seed=config.seed,
        settings=settings,
        each=config.frames,
    )
    return summary_text(manifest, out)


def ask_teacher(
    data: RobotData, options: Mapping[str, Any], config: QuestionConfig, settings: dict[str, Any]
) -> str:
    """Print the expected cost, ask the teacher, and print the actual cost."""
    endpoint, prices, out = endpoint_of(options), prices_of(options), Path(options["out"])
    if not options["model"]:
        raise RoboAlignError(
            "--model is missing", where="--by teacher", fix="name the model at the endpoint"
        )
    if options["dry_run"]:
        plan = make_plan(data, options["count"], config.seed, config.frames)
        return cost_ahead(data, plan, config, out / "answers.jsonl", prices)

    def planned(plan: Plan) -> None:
        print(cost_ahead(data, plan, config, out / "answers.jsonl", prices), flush=True)

    cache, client = AnswerCache(out / "answers.jsonl"), ChatClient(endpoint)
    before = cache.prompt_tokens, cache.completion_tokens
    try:
        manifest = write_questions(
            data,
            TeacherQuestions(config, options["model"], client, cache),
            out,
            count=options["count"],
            seed=config.seed,
            settings={**settings, "model": options["model"]},
            each=config.frames,
            planned=planned,
        )
    finally:  # the cost is reported after a failure too
        client.stop.set()
        client.close()
        cache.close()
        print(cost_after(cache, before, prices), flush=True)
    return summary_text(manifest, out)


def cost_ahead(
    data: RobotData, plan: Plan, config: QuestionConfig, answers: Path, prices: Prices
) -> str:
    """Estimate the cost from the first frame that can be shown: `100 requests, .. 60,000 tokens in
    and 40,000 out, ..`."""
    kept = answers.read_bytes().count(b"\n") if answers.is_file() else 0
    for work in islice(read_work(data, plan, 0), LOOKED_AT):
        frame = look(work.episode, config.camera, work.frames[0])
        try:
            prompt = teacher_prompt(Motion(work.episode, config), work.frames[0])
        except RoboAlignError:  # this episode will be reported as a fault
            continue
        if not isinstance(frame, Refused | Fault):
            break
    else:
        return f"{plan.count:,} requests at most; none of the first frames can be shown, so no tokens are estimated"
    found = estimate(plan.count, kept, prompt, (frame.shape[1], frame.shape[0]), config.questions)
    told = (
        price(found.prompt_tokens, found.completion_tokens, *prices)
        or ", price not known (--price-in, --price-out)"
    )
    return (
        f"{found.requests:,} requests, {found.kept:,} of them answered before; the rest takes about "
        f"{found.prompt_tokens:,} tokens in and {found.completion_tokens:,} out{told}"
    )


def cost_after(cache: AnswerCache, before: tuple[int, int], prices: Prices) -> str:
    """Return the tokens of this run and of all runs, as the endpoint counted them."""
    total = cache.prompt_tokens, cache.completion_tokens
    spent = total[0] - before[0], total[1] - before[1]
    told = f"counted by the endpoint: {spent[0]:,} tokens in and {spent[1]:,} out{price(*spent, *prices)}"
    if total == spent:
        return told
    return (
        f"{told}; with earlier calls {total[0]:,} in and {total[1]:,} out{price(*total, *prices)}"
    )


def question_config(options: Mapping[str, Any]) -> QuestionConfig:
    """Return the settings of the questions; the axes are the given ones, else those known for the
    action space."""
    axes = (
        parse_axes(options["axes"]) if options["axes"] else KNOWN_AXES.get(options["space"] or "")
    )
    names = (
        "position",
        "camera",
        "frames",
        "questions",
        "horizon",
        "think_share",
        "prompts",
        "grid",
        "whole",
        "seed",
    )
    return _checked(QuestionConfig, axes=axes, **{name: options[name] for name in names})


def endpoint_of(options: Mapping[str, Any]) -> Endpoint:
    """Return where the teacher is. Raises RoboAlignError if a key was named but is not set."""
    if not options["endpoint"]:
        raise RoboAlignError(
            "--endpoint is missing",
            where="--by teacher",
            fix="give the base URL of an OpenAI-compatible endpoint, for example http://127.0.0.1:8000/v1",
        )
    named = options["key_env"]
    if named and not os.environ.get(named, "").strip():
        raise RoboAlignError(
            f"the environment variable {named} is not set",
            where="--key-env",
            fix="put the key in it",
        )
    key = {"key_env": named} if named else {}
    asked = {name: options[name] for name in ("concurrency", "timeout", "retries")}
    return _checked(Endpoint, url=options["endpoint"], **asked, **key)


def prices_of(options: Mapping[str, Any]) -> Prices:
    """Return the prices of a million tokens in and out."""
    prices = options["price_in"], options["price_out"]
    if any(given is not None and not (math.isfinite(given) and given >= 0) for given in prices):
        raise RoboAlignError(
            f"prices {prices}", where="--price-in, --price-out", fix="give numbers from 0 on"
        )
    return prices


def _checked(kind: type[Checked], **values: Any) -> Checked:
    """Check the settings; raise the first fault as a RoboAlignError that names the option."""
    try:
        return kind(**values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0]).replace("_", "-").replace("url", "endpoint")
        message = fault["msg"].removeprefix("Value error, ")
        raise RoboAlignError(message, where=f"--{name}", fix=f"correct --{name}") from None


def source_of(data: RobotData, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the episodes are read from, and how."""
    path = str(Path(options["path"]).resolve())
    return {
        "path": path,
        "format": data.format,
        "read": sorted(options["read"]),
        "space": options["space"],
    }


def summary_text(manifest: Mapping[str, Any], out: Path) -> str:
    """Format the counts of a manifest, one per line."""
    lines = [
        f"{manifest['conversations']:,} conversations with {manifest['questions']:,} questions from "
        f"{len(manifest['episodes']):,} episodes in {out.resolve()}"
    ]
    for name, modes in manifest["types"].items():
        lines.append(f"  {name}: {', '.join(f'{times:,} {mode}' for mode, times in modes.items())}")
    if manifest["refused"]:
        lines += ["not asked:", *refused_lines(manifest["refused"])]
    faults = manifest["faults"]
    if faults["count"]:
        listed = (
            f", the first {MOST_FAULTS} in manifest.json" if faults["count"] > MOST_FAULTS else ""
        )
        lines.append(f"{faults['count']:,} left out{listed}:")
        lines += [f"  {fault['where']}: {fault['problem']}" for fault in faults["listed"][:10]]
    return "\n".join(lines)


def refused_lines(refused: Mapping[str, int]) -> list[str]:
    """Format one line per reason, most frequent first, with the affected types and what would fix
    it."""
    types: dict[str, list[str]] = {}
    times: Counter[str] = Counter()
    for name, count in refused.items():
        type_, colon, reason = name.partition(": ")
        known = colon and type_ in QUESTION_TYPES
        reason = reason if known else name
        times[reason] += count
        types.setdefault(reason, []).extend([type_] if known else [])
    lines = []
    for reason, count in times.most_common():
        mended = f" ({MENDED[reason]})" if reason in MENDED else ""
        of = f": {', '.join(types[reason])}" if types[reason] else ""
        lines.append(f"  {count:,} x {reason}{mended}{of}")
    return lines
