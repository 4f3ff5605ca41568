"""Whether a command's end on a damaged file is right, by what its format lets one know."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz_commands import Digest, Done
    from fuzz_mutate import Mutation

FAULTS = ("traceback", "crash", "hang", "unclear", "silent")
OUTCOMES = ("same", "refused", "in part", "different", *FAULTS)
LEFT_OUT = ("left out", "faults", "outdated", "moved", "fault")
"""One of these words is in what a command prints where it leaves something out or does it again."""
BYTES = ("bit flipped", "bits flipped", "block zeroed", "length field", "bytes appended")
ROWS = ("row removed", "row doubled", "rows reordered")
TYPES = ("value of another type", "null in a column", "column as text", "column removed")
ROBOT = ("lerobot-v2.0", "lerobot-v2.1", "lerobot-v3.0", "rlds", "robomimic", "libero", "calvin")


def judged(
    name: str, command: str, mutation: "Mutation", sound: "Done", done: "Done", root: Path
) -> tuple[str, str]:
    """(outcome, what is behind it)."""
    if done.status:
        return refusal(done, mutation, root)
    new, lost = differing(sound.digest, done.digest, every=name.startswith("qa-"))
    if not new and not lost:
        return "same", ""
    detail = f"changed: {', '.join(new) or 'none'}; missing: {', '.join(lost) or 'none'}"
    said = any(word in done.output + done.error for word in LEFT_OUT)
    if not new and said:
        return "in part", detail
    return ("silent" if knowable(name, command, mutation) else "different"), detail


def refusal(done: "Done", mutation: "Mutation", root: Path) -> tuple[str, str]:
    """A refusal is exit status 2 and one message (`error: WHERE: PROBLEM.`, a fix) that names a place of the input."""
    message = done.error[done.error.find("error: ") :]
    parts = (str(root), Path(mutation.file).name, *mutation.key)
    place = message.removeprefix("error: ").split(": ")[0]
    # A path in a file that was cut may be a folder above.
    above = mutation.kind == "file cut" and place.startswith("/") and str(root).startswith(place)
    named = above or any(part in message for part in parts if len(part) > 2)
    one = message.startswith("error: ") and message.count("error: /") <= 1
    if done.status != 2 or not one or not named or "Traceback" in done.error:
        return "unclear", f"exit status {done.status}: {done.error[-400:]}"
    return "refused", message


def differing(sound: "Digest", found: "Digest", *, every: bool) -> tuple[list[str], list[str]]:
    """Values that are others or new, and those that are missing; `every`: a part of them is all that was asked."""
    new = sorted(key for key in found if sound.get(key) != found[key])
    return new, [] if every else sorted(set(sound) - set(found))


def knowable(name: str, command: str, mutation: "Mutation") -> bool:
    """Whether the format lets one know that its files were damaged in this way.

    Where it does not, other values are nobody's fault: a bit of a number without a checksum is another number.
    """
    file, kind = mutation.file, mutation.kind
    if name.startswith("lerobot"):
        return _lerobot(name, file, kind, mutation.key)
    if name == "rlds":
        # Each record has two CRCs, and dataset_info.json the number of records of each shard.
        return "tfrecord" in file or kind in TYPES
    if name == "calvin":
        # Members of a .npz have a CRC. A .npy has none; of both, the number of bytes is known.
        return file.endswith(".npz") or kind not in BYTES
    if name in ("robomimic", "libero"):
        # HDF5 has no checksums unless the writer asks for them; what is known is that lengths agree.
        return kind not in (*BYTES, "file cut")
    if name.startswith("qa-"):
        # Nobody counts records, and no text has a checksum. A value's type is known, and so is a cut picture.
        return kind == "value of another type" or (file.endswith(".jpg") and kind == "file cut")
    if name == "model":
        # safetensors has no checksum; its header says how many bytes there are. Settings are read by transformers.
        return file.endswith(".safetensors") and kind not in BYTES
    if name == "run":
        return _run(command, file, kind)
    return False  # a recipe with another value is another recipe


def _lerobot(name: str, file: str, kind: str, key: tuple[str, ...]) -> bool:
    """Rows are counted and numbered (length, total_episodes, frame_index, timestamp), and types are declared.

    Nothing has a checksum. `meta/roboalign.json` is our own addition, `names` and notes are for people, and a camera
    that info.json does not have is none.
    """
    if file.endswith("roboalign.json"):
        return kind in ("value of another type", "file cut", "file is a folder")
    if file.endswith(".mp4"):
        return kind not in BYTES and kind != "file cut"
    if kind == "key removed":
        return False
    return kind not in BYTES


def _run(command: str, file: str, kind: str) -> bool:
    """A policy has hashes of its weights and its backbone's, a finished stage those of its files; the recipe says how
    many episodes there are of each task."""
    if command == "policy":
        return "/head/roboalign/policy/" in f"/{file}" or file.endswith(
            "rl/model/model.safetensors"
        )
    if command in ("table", "compare"):
        return file.endswith("episodes.jsonl") and kind not in BYTES
    if command in ("export", "report", "again"):
        return file.endswith((".safetensors", ".parquet", "episodes.jsonl"))
    return False
