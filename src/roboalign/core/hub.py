"""Resolve names of models, tokenizers, data sets and policies: a local folder or a Hub repository.

An id of the Hugging Face Hub is `owner/name` or `owner/name@revision`; a revision is a branch, a
tag or a commit. Files come through `huggingface_hub`, so its cache, token (`hf auth login`,
HF_TOKEN), mirror (HF_ENDPOINT) and offline mode (HF_HUB_OFFLINE) apply. Only weights in
safetensors, settings and data are fetched: no pickle and no code.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree, no_room
from roboalign.core.progress import Progress

Kind = Literal["model", "settings", "tokenizer", "data set", "policy"]
"""What a name refers to; `settings` is a model without its weights."""
_TEXT = ("*.json", "*.jinja", "*.txt")
WANTED: dict[Kind, tuple[str, ...]] = {
    "model": ("*.safetensors", *_TEXT, "README.md"),  # its card names its license
    "settings": _TEXT,
    "tokenizer": ("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    "data set": (
        "meta/*.json",
        "meta/*.jsonl",
        "meta/*.parquet",
        "data/*.parquet",
        "videos/*.mp4",
    ),
    "policy": ("*.safetensors", *_TEXT),
}
"""Patterns of the files to fetch; `*` matches `/` too."""
UNWANTED: dict[Kind, tuple[str, ...]] = {
    # A model's own files are at the top level. Folders and `consolidated` files hold the same
    # weights in other formats.
    "model": ("*/*", "consolidated*"),
    "settings": ("*/*",),
}
REQUIRED: dict[Kind, tuple[str, str]] = {
    "model": ("config.json", "a Hugging Face model"),
    "settings": ("config.json", "a Hugging Face model"),
    "tokenizer": ("processor_config.json", "a FAST tokenizer like physical-intelligence/fast"),
    "data set": ("meta/info.json", "a LeRobot data set"),
    "policy": ("policy.json", "a policy that `roboalign push` wrote"),
}
"""The file that identifies a repository of each kind, and what the user should name instead."""
FORM = "give a folder, or a Hub id: owner/name or owner/name@revision"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
MB = 1_000_000


@dataclass(frozen=True)
class HubId:
    """A repository of the Hub at a revision; None means its main branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> "HubId | None":
        """Return the id that `name` spells; None for a path, a URL or a single word."""
        found = re.fullmatch(rf"({PART}/{PART})(?:@([\w.][\w./-]*))?", name)
        if found is None or "--" in found[1] or ".." in name or found[1].endswith((".git", ".")):
            return None
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def resolve(name: str | Path, kind: Kind, *, where: str = "") -> Path:
    """Return the folder (or file) that `name` refers to, fetching it from the Hub if needed.

    An existing path is returned as it is. `where` names the setting that contains the name, for
    messages. Raises RoboAlignError if the name is neither a path nor an id. Also raises it if the
    repository is missing, private, gated, not of this kind or unreachable, or lacks the revision.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    identity = hub_id(name)
    if identity is None:
        raise RoboAlignError("no such file or folder", where=_place(where, name), fix=FORM)
    folder = _fetched(identity, kind, where)
    required, kind_name = REQUIRED[kind]
    if not (folder / required).is_file():
        raise RoboAlignError(
            f"the repository has no {required}", where=_place(where, name), fix=f"name {kind_name}"
        )
    if kind == "model" and not any(folder.glob("*.safetensors")):
        raise RoboAlignError(
            "the repository has no weights in safetensors",
            where=_place(where, name),
            fix="name a repository or revision with *.safetensors; pickled weights are never read",
        )
    return folder


def resolve_files(name: str | Path, patterns: Sequence[str], *, where: str = "") -> Path:
    """Return the folder or file that `name` refers to; of a data set of the Hub only the files
    `patterns` are fetched. Raises RoboAlignError as `resolve` does."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    identity = hub_id(name)
    if identity is None:
        raise RoboAlignError("no such file or folder", where=_place(where, name), fix=FORM)
    return _fetched(identity, "data set", where, tuple(patterns))


def hub_id(name: str | Path) -> HubId | None:
    """Return the Hub id that `name` spells; None if it is an existing path or not an id."""
    return None if Path(name).expanduser().exists() else HubId.parse(str(name))


def pinned(name: str, kind: Kind, *, where: str = "") -> str:
    """Return `owner/name@commit` for a Hub id; any other name is returned unchanged.

    The branch of an id may move during a run. Raises RoboAlignError as `resolve` does.
    """
    identity = hub_id(name)
    if identity is None:
        return name
    return str(HubId(identity.repository, resolve(name, kind, where=where).name))


def content_key(name: str, kind: Kind, *, where: str = "") -> str:
    """Return what identifies the contents: a Hub id's commit, or the sha256 over a folder.

    The sha256 covers the names and bytes of the files. Raises RoboAlignError as `resolve` does.
    """
    folder = resolve(name, kind, where=where)
    return folder.name if hub_id(name) else hash_tree(folder)


def _place(where: str, name: str | Path) -> str:
    return f"{where}, {name}" if where else str(name)


@lru_cache(maxsize=64)
def _fetched(
    identity: HubId, kind: Kind, where: str, wanted: tuple[str, ...] | None = None
) -> Path:
    """Return the cached snapshot, complete for this kind or with the files `wanted`; each process
    looks it up once."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # what it would warn about is an error here
    with _explained(identity, kind, where), _bar_class(f"fetch {identity}") as bar:
        folder = huggingface_hub.snapshot_download(
            identity.repository,
            repo_type="dataset" if kind == "data set" else "model",
            revision=identity.revision,
            allow_patterns=list(wanted or WANTED[kind]),
            ignore_patterns=list(UNWANTED.get(kind, ())),
            tqdm_class=bar,
        )
    return Path(folder)


@contextmanager
def _bar_class(label: str) -> Iterator[Any]:
    """Yield a bar class for `huggingface_hub`: bytes on disk become Progress lines, in MB."""
    from tqdm import tqdm

    progress: list[Progress] = []

    class Lines(tqdm):
        monitor_interval = 0  # disables tqdm's monitor thread

        def __init__(self, *arguments: Any, **options: Any) -> None:
            # Of its three bars, this one counts bytes on disk; the others count requests and files.
            self.counts = str(options.get("desc", "")).startswith("Reconstructing")
            super().__init__(*arguments, **{**options, "disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.counts and n:
                if not progress:
                    progress.append(Progress(label, total=0).__enter__())
                progress[0].total = math.ceil((self.total or 0) / MB)
                progress[0].advance(math.ceil(self.n / MB) - progress[0].done, note="MB")
            return shown

    error: BaseException | None = None
    try:
        yield Lines
    except BaseException as raised:
        error = raised
        raise
    finally:
        if progress:
            progress[0].__exit__(type(error) if error else None, error, None)


@contextmanager
def _explained(identity: HubId, kind: Kind, where: str) -> Iterator[None]:
    """Turn errors of `huggingface_hub` into one RoboAlignError; a full disk remains an OSError."""
    import httpx2
    from huggingface_hub import constants, errors

    where = _place(where, str(identity))
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'data set' else ''}{identity.repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise RoboAlignError(
            "the Hub gives this repository only to those who accepted its terms",
            where=where,
            fix=f"accept them at {page}, then {LOG_IN}",
        ) from None
    except errors.RepositoryNotFoundError:
        raise RoboAlignError(
            f"no such folder, and the Hub shows no such {'data set' if kind == 'data set' else 'model'}",
            where=where,
            fix=f"correct the name; if the repository is private, {LOG_IN}",
        ) from None
    except errors.RevisionNotFoundError:
        raise RoboAlignError(
            f"the repository has no revision `{identity.revision or 'main'}`",
            where=where,
            fix=f"name a branch, tag or commit of {page}",
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise _unreached(error, where) from None
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        if no_room(error):
            raise
        raise _failed(error, where) from None


def _unreached(error: Exception, where: str) -> RoboAlignError:
    """Return the error for files that are not cached and cannot be fetched (offline, network)."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        return RoboAlignError(
            "no such folder, the Hub's cache does not hold it, and HF_HUB_OFFLINE forbids fetching it",
            where=where,
            fix="unset HF_HUB_OFFLINE, or fetch it once on a machine with the same cache (HF_HOME)",
        )
    if isinstance(error.__cause__, HfHubHTTPError):
        return _failed(error.__cause__, where)
    return RoboAlignError(
        f"no such folder, and the Hub at {constants.ENDPOINT} cannot be reached",
        where=where,
        fix="check the network and HF_ENDPOINT; what was fetched is kept, and the same command continues",
    )


def _failed(error: Exception, where: str) -> RoboAlignError:
    """Return the error for a Hub response that nothing else explains."""
    from huggingface_hub import constants

    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return RoboAlignError(
            f"the Hub refuses the token ({response.status_code})",
            where=where,
            fix=f"{LOG_IN}, with a token that may read it",
        )
    said = " ".join(str(error).split())[:200]
    return RoboAlignError(
        f"fetching from {constants.ENDPOINT} failed ({said})",
        where=where,
        fix="try again; what was fetched is kept",
    )
