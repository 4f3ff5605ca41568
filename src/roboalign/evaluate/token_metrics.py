"""Compute metrics with intervals from the records of an MLLM's answers, and compare two MLLMs in
pairs.

A record is one answer to one held-out sample, as `evaluate.tokens` writes it. All have "id" (the
sample), "task", "probe" and "mode" (direct or think). If each sample was answered once, answers are
independent and a share gets a Wilson interval. If several training seeds ("run_seed") answered the
same sample, whole samples are resampled.

- probe "vqa" and "vqa-shuffled" (another episode's image): "kind", "type", "score" (0 or 1), "answered" (bool), and
  "chance", "prior" and "text_prior": the scores of guessing, of the type's most frequent training answer, and of the
  most frequent training answer to the same question text.
- probe "action": "well_formed", "reasoned", "has_action", "decoded" (bool), "reason", "length" and "target_length"
  (action tokens), "prefix" (prefix accuracy), "l1" (None if undecoded), "l1_mean_action",
  "l1_zero": mean absolute error of the chunk in normalized units, [-1, 1] per dimension.
- probes "kept", "emptied", "swapped": "prefix", after a reasoning that was forced on the model.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from roboalign.evaluate.statistics import Estimate, mean_interval, paired_difference, proportion

_Record = Mapping[str, Any]
_MODES = ("direct", "think")


def summarize(records: Sequence[_Record]) -> dict[str, Any]:
    """Return all metrics of one MLLM, ready for JSON; every estimate is {value, low, high, n} with
    a 95% interval.

    {"vqa": {mode: ...}, "image_shuffle": ..., "actions": {mode: ...}, "baselines": {mean_action_l1,
    zero_l1}, "think_minus_direct": {prefix, l1}, "reasoning": {kept, emptied, swapped,
    emptied_minus_kept, swapped_minus_kept}}; a probe without records is None.
    """
    actions = _select(records, "action")
    # The baselines do not depend on the answer, so count each sample once.
    targets = list({r["id"]: r for r in actions}.values())
    return {
        "vqa": {mode: vqa_metrics(_select(records, "vqa", mode)) for mode in _MODES},
        "image_shuffle": shuffle_metrics(records),
        "actions": {mode: action_metrics(_select(records, "action", mode)) for mode in _MODES},
        "baselines": {
            "mean_action_l1": _mean(targets, "l1_mean_action"),
            "zero_l1": _mean(targets, "l1_zero"),
        },
        "think_minus_direct": reasoned_minus_direct(actions),
        "reasoning": reasoning_metrics(records),
    }


def vqa_metrics(rows: Sequence[_Record]) -> dict[str, Any] | None:
    """Return accuracy overall, by kind and by type, with chance and the two language priors. None
    without records."""
    if not rows:
        return None
    return {
        **_accuracy(rows),
        "answered": _share(rows, lambda r: r["answered"]),
        "by_kind": {kind: _accuracy(group) for kind, group in _group(rows, "kind").items()},
        "by_type": {kind: _accuracy(group) for kind, group in _group(rows, "type").items()},
    }


def shuffle_metrics(records: Sequence[_Record]) -> dict[str, Any] | None:
    """Return the image-shuffle control: the same direct questions with another episode's image.
    None without records.

    A model that uses the image falls to the language prior; "drop" (shuffled minus kept, paired)
    near zero means that it does not.
    """
    shuffled = _select(records, "vqa-shuffled", "direct")
    if not shuffled:
        return None
    ids = {r["id"] for r in shuffled}
    kept = [r for r in _select(records, "vqa", "direct") if r["id"] in ids]
    return {
        "accuracy": _share(shuffled, lambda r: r["score"]),
        "unshuffled": _share(kept, lambda r: r["score"]),
        "prior": _share(shuffled, lambda r: r["prior"]),
        "text_prior": _share(shuffled, lambda r: r["text_prior"]),
        "drop": asdict(_paired(kept, shuffled, "score")),
    }


def action_metrics(rows: Sequence[_Record]) -> dict[str, Any] | None:
    """Return metrics of the action answers of one mode; None without records.

    - prefix: over all answers, 0 without a usable action block; prefix_well_formed: over the well-formed ones.
    - format: share that is well formed; reasoned: share with non-empty reasoning before the answer.
    - no_action: share without exactly one action block; wrong_length, decode_failure: shares of the answers with one.
    - l1_decoded: over decoded chunks; l1_all: over all, with the mean action in place of a chunk that does not exist;
      l1_all_minus_mean_action: paired, negative if the model beats the mean action.
    """
    if not rows:
        return None
    with_action = [r for r in rows if r["has_action"]]
    filled = [{**r, "l1": r["l1"] if r["decoded"] else r["l1_mean_action"]} for r in rows]
    gain = [{**r, "gain": r["l1"] - r["l1_mean_action"]} for r in filled]
    return {
        "prefix": _mean(rows, "prefix"),
        "prefix_well_formed": _mean([r for r in rows if r["well_formed"]], "prefix"),
        "format": _share(rows, lambda r: r["well_formed"]),
        "reasoned": _share(rows, lambda r: r["reasoned"]),
        "no_action": _share(rows, lambda r: not r["has_action"]),
        "wrong_length": _share(with_action, lambda r: r["length"] != r["target_length"]),
        "decode_failure": _share(with_action, lambda r: not r["decoded"]),
        "l1_decoded": _mean([r for r in rows if r["decoded"]], "l1"),
        "l1_all": _mean(filled, "l1"),
        "l1_all_minus_mean_action": _mean(gain, "gain"),
        "reasons": dict(Counter(r["reason"] for r in rows if r["reason"]).most_common()),
    }


def reasoned_minus_direct(actions: Sequence[_Record]) -> dict[str, Any] | None:
    """Return whether reasoning first gives better actions, paired over frames, all answers. None
    without records."""
    modes = {mode: [{**r, "mode": ""} for r in actions if r["mode"] == mode] for mode in _MODES}
    if not all(modes.values()):
        return None
    return {key: asdict(_paired(modes["direct"], modes["think"], key)) for key in ("prefix", "l1")}


def reasoning_metrics(records: Sequence[_Record]) -> dict[str, Any] | None:
    """Return prefix accuracy after the model's own, an empty and another sample's reasoning. None
    without records.

    Only samples on which the model reasoned on its own are used, the same ones in each condition.
    """
    probes = {probe: _select(records, probe) for probe in ("kept", "emptied", "swapped")}
    if not probes["kept"]:
        return None
    return {
        **{probe: _mean(rows, "prefix") for probe, rows in probes.items()},
        "emptied_minus_kept": asdict(_paired(probes["kept"], probes["emptied"], "prefix")),
        "swapped_minus_kept": asdict(_paired(probes["kept"], probes["swapped"], "prefix")),
    }


def compare_metrics(
    before: Sequence[_Record], after: Sequence[_Record]
) -> dict[str, dict[str, Any]]:
    """Return paired differences (after minus before) of two MLLMs on the samples both answered.

    {"vqa_direct", "vqa_think", "prefix_direct", "prefix_think", "format_think", "chunks_direct",
    "chunks_think", "l1_direct", "l1_think"} -> estimate; "chunks" is the share of answers that are
    chunks, and L1 is over all answers, with the mean action if nothing decodes. "prefix_formed" and
    "l1_formed" are prefix_think and l1_think on the answers that are well formed both before and
    after: the gain beyond the format. Several training seeds of a model are averaged within each
    sample first, and whole episodes are resampled, whose frames are alike: the interval is over
    episodes, not over trainings.
    """
    differences = {}
    for mode in _MODES:
        columns = {f"vqa_{mode}": ("vqa", "score"), f"prefix_{mode}": ("action", "prefix")}
        if mode == "think":
            columns["format_think"] = ("action", "well_formed")
        columns |= {f"chunks_{mode}": ("action", "decoded"), f"l1_{mode}": ("action", "l1")}
        for name, (probe, key) in columns.items():
            differences[name] = asdict(
                _paired(_select(before, probe, mode), _select(after, probe, mode), key)
            )
    reasoned = [
        [r for r in _select(records, "action", "think") if r["well_formed"]]
        for records in (before, after)
    ]
    keys = [{(r["id"], r.get("run_seed")) for r in rows} for rows in reasoned]
    first, second = (
        [r for r in rows if (r["id"], r.get("run_seed")) in keys[0] & keys[1]] for rows in reasoned
    )
    for key in ("prefix", "l1"):
        differences[f"{key}_formed"] = asdict(_paired(first, second, key))
    return differences


def _paired(before: Iterable[_Record], after: Iterable[_Record], key: str) -> Estimate:
    rows = list(before)
    first, second = _by_sample(rows, key), _by_sample(after, key)
    shared = [sample for sample in first if sample in second]
    # Records of earlier versions have no episode; each of their samples is one of its own.
    episodes: dict[Hashable, Hashable] = {
        (row["id"], row["mode"]): row.get("episode_id", row["id"]) for row in rows
    }
    return paired_difference(
        [first[s] for s in shared],
        [second[s] for s in shared],
        clusters=[episodes[s] for s in shared],
    )


def _by_sample(rows: Iterable[_Record], key: str) -> dict[Hashable, float]:
    """Return (id, mode) -> the value averaged over training seeds. An undecoded chunk gets the mean
    action's L1."""
    values: dict[Hashable, list[float]] = {}
    for row in rows:
        value = row["l1_mean_action"] if key == "l1" and not row["decoded"] else row[key]
        values.setdefault((row["id"], row["mode"]), []).append(float(value))
    return {sample: float(np.mean(group)) for sample, group in values.items()}


def _select(records: Iterable[_Record], probe: str, mode: str | None = None) -> list[_Record]:
    return [r for r in records if r["probe"] == probe and mode in (None, r["mode"])]


def _group(rows: Iterable[_Record], key: str) -> dict[str, list[_Record]]:
    groups: dict[str, list[_Record]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return dict(sorted(groups.items()))


def _accuracy(rows: Sequence[_Record]) -> dict[str, Any]:
    return {
        "accuracy": _share(rows, lambda r: r["score"]),
        "chance": float(np.mean([r["chance"] for r in rows])),
        "prior": _share(rows, lambda r: r["prior"]),
        "text_prior": _share(rows, lambda r: r["text_prior"]),
    }


def _share(rows: Sequence[_Record], outcome: Callable[[_Record], Any]) -> dict[str, Any]:
    values, ids = [float(outcome(r)) for r in rows], [r["id"] for r in rows]
    if len(set(ids)) == len(ids):
        return asdict(proportion(values))
    return asdict(mean_interval(values, clusters=ids))


def _mean(rows: Sequence[_Record], key: str) -> dict[str, Any]:
    values, ids = [float(r[key]) for r in rows], [r["id"] for r in rows]
    return asdict(mean_interval(values, clusters=None if len(set(ids)) == len(ids) else ids))
