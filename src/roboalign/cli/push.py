"""The verb `push`: upload a policy, or the aligned model of a run, to the Hugging Face Hub, with a
model card."""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, write_json
from roboalign.core.hub import LOG_IN, MB, HubId, hub_id, resolve
from roboalign.report.card import CardFacts, License, model_card
from roboalign.run.arms import ARMS
from roboalign.run.folder import backbone_folder, mixture_folder, policy_folder
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import stage_key
from roboalign.vla.policy import policy_files

UPLOADED = {".safetensors", ".json", ".jinja", ".txt", ".md"}
OWN_LICENSE = License("apache-2.0")
"""License of models that were trained from scratch here."""


@dataclass(frozen=True)
class Upload:
    """A folder to upload, and the run that it belongs to, if any."""

    what: str
    folder: Path
    run: Path | None = None
    arm: str = ""
    seed: int | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what to upload and where."""
    add = parser.add_argument
    add("folder", metavar="RUN_OR_POLICY", help="a run's folder, or a policy's; it is only read")
    add("--to", required=True, metavar="USER/NAME", help="the Hub repository to make")
    add(
        "--what",
        choices=("policy", "model"),
        help="of a run: the policy, also where this is left out, or the aligned model",
    )
    add("--arm", help="of a run: this arm; without it roboalign")
    add("--seed", type=int, metavar="N", help="of a run: this training seed; without it the first")
    add("--private", action="store_true", help="make the repository private")
    add("--update", action="store_true", help="add to a repository that exists")
    add("--dry-run", action="store_true", help="print the card and the files, upload nothing")


def main(options: argparse.Namespace) -> int:
    """Upload, and print the address."""
    print(_push(options))
    return 0


def _push(options: argparse.Namespace) -> str:
    """Upload what the options name; return its address, or for a dry run the card and the files.

    Raises RoboAlignError if there is nothing to upload, no token, no permission, or the repository
    exists.
    """
    target = HubId.parse(options.to)
    if target is None or target.revision:
        raise RoboAlignError(
            "not a name of the Hub", where=f"--to {options.to}", fix="give USER/NAME"
        )
    chosen = chosen_upload(options.folder, options.what, options.arm, options.seed)
    card = model_card(card_facts(chosen, str(target)))
    with staged(chosen, card) as folder:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        listed = [f"{path.relative_to(folder)}  {path.stat().st_size:,} bytes" for path in files]
        if options.dry_run:
            return "\n".join([card, f"Would upload {len(files)} files to {target}:", *listed])
        size = sum(path.stat().st_size for path in files)
        print(f"[push] {len(files)} files, {-(-size // MB)} MB, to {target}", flush=True)
        return upload(folder, target.repository, private=options.private, update=options.update)


def chosen_upload(given: str, what: str | None, arm: str | None, seed: int | None) -> Upload:
    """Return what is asked for, in a policy's folder or a run's. Raises RoboAlignError if it is not
    there."""
    folder = Path(given).expanduser().resolve()
    if (folder / "policy.json").is_file():
        if what == "model" or arm or seed is not None:
            raise RoboAlignError(
                "--what model, --arm and --seed choose within a run, and this is a policy",
                where=given,
                fix="leave them out, or give the run's folder",
            )
        return _of_policy(folder)
    if not (folder / "recipe.yaml").is_file():
        raise RoboAlignError(
            "neither a run nor a policy: no recipe.yaml and no policy.json",
            where=given,
            fix="give a run's folder, or a policy/ folder in it",
        )
    recipe = load_recipe(folder / "recipe.yaml")
    arm, seed = arm or "roboalign", recipe.seeds[0] if seed is None else seed
    if arm not in recipe.arms or seed not in recipe.seeds:
        raise RoboAlignError(
            f"the run has no arm {arm} of seed {seed}",
            where=given,
            fix=f"arms: {', '.join(recipe.arms)}; seeds: {', '.join(map(str, recipe.seeds))}",
        )
    what = what or "policy"
    found = {
        "policy": policy_folder(folder, seed, arm),
        "model": backbone_folder(folder, seed, arm),
    }[what]
    if not found.is_dir():
        raise RoboAlignError(
            f"the run has no {what} of arm {arm} yet",
            where=str(found),
            fix=f"run its recipe to the end: `roboalign run {folder / 'recipe.yaml'} --out {folder}`",
        )
    return Upload(what, found, folder, arm, seed)


def _of_policy(folder: Path) -> Upload:
    """Return a policy, and the run of which it is `seed-N/head/ARM/policy`, or below `token-policy` or
    `online`."""
    arm, head, seed = folder.parent, folder.parent.parent, folder.parent.parent.parent
    number = seed.name.removeprefix("seed-")
    if (
        head.name in ("head", "token-policy", "online")
        and number.isdigit()
        and (seed.parent / "recipe.yaml").is_file()
    ):
        return Upload("policy", folder, seed.parent, arm.name, int(number))
    return Upload("policy", folder)


def card_facts(chosen: Upload, name: str) -> CardFacts:
    """Return what the run knows of the upload."""
    if chosen.run is None:
        return CardFacts(name, chosen.what, unmeasured="the folder belongs to no run")
    run, recipe = chosen.run, load_recipe(chosen.run / "recipe.yaml")
    backbone, base_model, license = _backbone(recipe)
    report = run / "report" / "summary.json"
    current = report.is_file() and is_current(run, "report")
    protocol = run / f"seed-{chosen.seed}" / "eval" / "rollouts" / chosen.arm / "protocol.json"
    return CardFacts(
        name,
        chosen.what,
        arm=chosen.arm,
        arm_means=ARMS[chosen.arm].description,
        seed=chosen.seed,
        backbone=backbone,
        base_model=base_model,
        license=license,
        data=_data(run, recipe),
        summary=read_json(report) if current else None,
        unmeasured="the run's report is of other weights than these"
        if report.is_file()
        else "the run has no report yet",
        protocol=read_json(protocol) if chosen.what == "policy" and protocol.is_file() else None,
    )


def is_current(run: Path, name: str) -> bool:
    """Return whether a stage and all before it are done, each with the latest results of the stages
    it needs."""
    path = run / name / "stage.json"
    if not path.is_file():
        return False
    row = read_json(path)
    needs = [run / need / "stage.json" for need in row["needs"]]
    if not all(need.is_file() for need in needs):
        return False
    keys = [read_json(need)["key"] for need in needs]
    same = row["key"] == stage_key(row["stage"], row["settings"], keys)
    return same and all(is_current(run, need) for need in row["needs"])


def _backbone(recipe: Recipe) -> tuple[str, str, License]:
    """Return where the backbone came from in words, its Hub id or "", and its license."""
    source = recipe.backbone.source
    if source == "builtin":
        return "the tiny model that RoboAlign ships, trained from nothing", "", OWN_LICENSE
    if source == "train":
        return "a tiny model that this run trained from nothing", "", OWN_LICENSE
    identity = hub_id(source)
    named = (
        f"[{identity.repository}](https://huggingface.co/{identity.repository})" if identity else ""
    )
    folder = resolve(source, "model", where="backbone.source")
    metadata = _metadata_of(folder / "README.md")
    license = License(
        *(str(metadata.get(key, "")) for key in ("license", "license_name", "license_link"))
    )
    return named or f"the folder `{folder.name}`", identity.repository if identity else "", license


def _metadata_of(readme: Path) -> Mapping[str, Any]:
    """Read the metadata of a model's own card; {} if it has none that can be read."""
    if not readme.is_file():
        return {}
    _, _, rest = readme.read_text(errors="replace").partition("---\n")
    try:
        found = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _data(run: Path, recipe: Recipe) -> list[str]:
    """Return lines that say what the run was trained on."""
    collect = recipe.collect
    own = {part: recipe.demos.of(part) for part in ("align", "downstream")}
    if own["align"] and recipe.mixture is None:
        lines = [f"alignment: recorded demonstrations ({', '.join(s.name for s in own['align'])})"]
    elif recipe.mixture is None:
        tasks = len(collect.align_names())
        lines = [
            f"alignment: demonstrations of {tasks} tasks of `{collect.align_benchmark}` by scripted experts"
        ]
    else:
        lines = [f"alignment: the mixture `{Path(recipe.mixture).name}`"]
    manifest = mixture_folder(run) / "manifest.json"
    if manifest.is_file():
        counts = read_json(manifest)["counts"]
        lines += [
            f"{split}: {row['conversations']:,} conversations" for split, row in counts.items()
        ]
    if own["downstream"]:
        names = ", ".join(one.name for one in own["downstream"])
        return [*lines, f"head: recorded demonstrations ({names})"]
    tasks_of_head = ", ".join(f"`{task}`" for task in collect.downstream_names())
    return [*lines, f"head: demonstrations on `{collect.benchmark}` of {tasks_of_head}"]


@contextmanager
def staged(chosen: Upload, card: str) -> Iterator[Path]:
    """Yield a temporary folder with the card and links to the files, laid out as the repository
    will be."""
    with tempfile.TemporaryDirectory(prefix="roboalign-push-") as made:
        root = Path(made)
        if chosen.what == "policy":
            _stage_policy(chosen.folder, root)
        else:
            _link(chosen.folder, root)
        (root / "README.md").write_text(card)
        yield root


def _stage_policy(folder: Path, root: Path) -> None:
    """Stage the policy at the top and its backbone in `backbone/`; point policy.json to it."""
    policy_files(folder)  # raises if something is missing or broken
    record = read_json(folder / "policy.json")
    backbone = (folder / record["backbone"]["path"]).resolve()
    _link(folder, root)
    _link(backbone, root / "backbone")
    (root / "policy.json").unlink()
    record["backbone"]["path"] = "backbone"
    write_json(root / "policy.json", record)


def _link(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in UPLOADED:
            (target / path.name).symlink_to(path.resolve())


def upload(folder: Path, repository: str, *, private: bool, update: bool) -> str:
    """Create the repository and upload the folder in one commit; return its address."""
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    where = f"--to {repository}"
    if huggingface_hub.constants.is_offline_mode():
        raise RoboAlignError(
            "HF_HUB_OFFLINE forbids uploads", where=where, fix="unset HF_HUB_OFFLINE"
        )
    if huggingface_hub.get_token() is None:
        raise RoboAlignError(
            "no token of the Hub", where=where, fix=f"{LOG_IN}, with a token that may write"
        )
    api = huggingface_hub.HfApi()
    huggingface_hub.logging.set_verbosity_error()
    huggingface_hub.utils.disable_progress_bars()
    try:
        made = api.create_repo(repository, private=private, exist_ok=update)
        message = "Upload by roboalign push"
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        raise _refused(error, where) from None
    except (httpx2.HTTPError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        fix = "check the network, then run the same command with --update"
        raise RoboAlignError(f"the upload failed ({said})", where=where, fix=fix) from None
    return f"uploaded: {made}"


def _refused(error: Any, where: str) -> RoboAlignError:
    status = error.response.status_code
    if status == 401:
        return RoboAlignError("the Hub does not accept the token", where=where, fix=LOG_IN)
    if status == 403:
        fix = (
            f"use your own name or an organization that lets you write, or {LOG_IN} as one who may"
        )
        return RoboAlignError("the token may not write there", where=where, fix=fix)
    if status == 409:
        fix = "give another name, or add to it with --update"
        return RoboAlignError("the repository exists", where=where, fix=fix)
    said = error.server_message or " ".join(str(error).split())[:200]
    fix = "try again; with --update if the repository was made"
    return RoboAlignError(f"the Hub refused the upload ({status}: {said})", where=where, fix=fix)
