"""List what in a data set needs attention before training on it, one sentence each, from its survey
alone."""

from collections.abc import Iterator

from roboalign.episodes.survey.measures import Dimension
from roboalign.episodes.survey.statistics import Survey
from roboalign.report.text import count_text, percent

SATURATED = 0.05  # share of rows at the limits from which it is reported


def attention(survey: Survey) -> list[str]:
    """Return every finding, those that cost data first; [] if there are none."""
    rules = (
        _faults,
        _near_constant,
        _sparse,
        _cameras,
        _instructions,
        _repeats,
        _outliers,
        _saturated,
        _mixed,
        _lengths,
        _tokens,
        _meaning,
    )
    return [sentence for rule in rules for sentence in rule(survey)]


def _faults(survey: Survey) -> Iterator[str]:
    if survey.faults:
        first = survey.first_faults[0]
        yield (
            f"{_some(survey.faults, 'fault')}, {_some(survey.left_out, 'episode')} left out of all numbers. "
            f"The first: {first.where}: {first.problem}."
        )


def _near_constant(survey: Survey) -> Iterator[str]:
    for vector, found in _vectors(survey):
        if names := [d.name for d in found if d.near_constant]:
            yield (
                f"{vector} hardly changes in {_list(names)}: there is little to learn, and scaling to −1 to 1 would "
                "blow up what noise there is."
            )


def _sparse(survey: Survey) -> Iterator[str]:
    for note in survey.sparse:
        yield f"{note}."


def _cameras(survey: Survey) -> Iterator[str]:
    for camera in survey.cameras:
        if camera.looked_at and not camera.frames:
            yield f"Camera {camera.name}: none of the frames looked at could be read."
        for what, found in (("black", camera.black), ("one flat color", camera.flat)):
            if found:
                share = "all" if found == camera.frames else f"{found:,} of"
                yield f"Camera {camera.name} is {what} in {share} {camera.frames:,} frames looked at."
        if camera.frozen:
            yield (
                f"Camera {camera.name} shows the same frame from beginning to end in {camera.frozen:,} of "
                f"{camera.looked_at:,} episodes looked at."
            )
        if camera.episodes < survey.episodes:
            yield f"Camera {camera.name} is missing in {_some(survey.episodes - camera.episodes, 'episode')}."
        if len(camera.sizes) > 1:
            yield f"Camera {camera.name} has frames of several sizes: {_list(camera.sizes)}."


def _instructions(survey: Survey) -> Iterator[str]:
    if survey.without_instruction:
        yield (
            f"{_some(survey.without_instruction, 'episode')} of {survey.episodes:,} "
            f"({percent(survey.without_instruction / survey.episodes)}) without an instruction."
        )


def _repeats(survey: Survey) -> Iterator[str]:
    for found, what in ((survey.same_actions, "the actions"), (survey.same_frames, "a frame")):
        if found.contents:
            yield (
                f"{_some(found.copies, 'time')} {what} of one episode came again, equal, in another; "
                f"for example {_list(found.examples[0])}. A split by episodes would leak."
            )


def _outliers(survey: Survey) -> Iterator[str]:
    for vector, found in _vectors(survey):
        beyond = sorted((d for d in found if d.worst), key=lambda d: -d.outliers)
        if beyond:
            names = [f"{d.name} ({_rare(d.outliers, survey)} of rows)" for d in beyond]
            episodes = list(dict.fromkeys(episode for d in beyond for episode in d.worst))
            yield (
                f"{vector} has values far outside the rest in {_list(names)}; look first at "
                f"{_list(episodes[:3])}."
            )


def _saturated(survey: Survey) -> Iterator[str]:
    names = [
        f"{d.name} ({percent(d.at_extremes)})"
        for d in survey.action
        if d.at_extremes >= SATURATED and not d.discrete and not d.near_constant
    ]
    if names:
        yield f"Action is often at its minimum or maximum, as if clipped, in {_list(names)}."


def _mixed(survey: Survey) -> Iterator[str]:
    for what, found in (
        ("frame rates", survey.fps),
        ("meanings of the action", survey.action_spaces),
    ):
        if len(found) > 1:
            yield f"Several {what}: {_list([f'{name} ({n:,} episodes)' for name, n in found.items()])}."


def _lengths(survey: Survey) -> Iterator[str]:
    if survey.length_median < survey.horizon:
        yield (
            f"At least half of the episodes are shorter than a chunk of {survey.horizon} steps "
            f"(median {survey.length_median:g}): the last action is repeated to fill it."
        )


def _tokens(survey: Survey) -> Iterator[str]:
    tokens = survey.tokens
    if tokens is None:
        yield f"Action tokens were not measured: {survey.tokens_problem}."
    elif tokens.undecodable:
        yield f"{tokens.undecodable:,} of {tokens.chunks:,} chunks do not decode from their action tokens."


def _meaning(survey: Survey) -> Iterator[str]:
    if survey.doubt:
        yield f"{survey.doubt}."
    if survey.action_spaces == {"not stated": survey.episodes}:
        yield "What the numbers of an action mean is not stated: frame, units, form of rotation and the gripper's sign."


def _vectors(survey: Survey) -> list[tuple[str, list[Dimension]]]:
    return [("Action", survey.action), ("State", survey.state)]


def _rare(share: float, survey: Survey) -> str:
    return f"{100 * share:.2f}%" if share else f"fewer than 1 in {count_text(survey.rows)}"


def _some(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _list(names: list[str], at_most: int = 8) -> str:
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")
