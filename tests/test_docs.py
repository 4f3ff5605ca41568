"""What README and docs/ say is true of this clone: commands parse, links resolve, files exist, Python runs."""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_on_path import write_metadata

from roboalign.actions.normalize import ActionStats
from roboalign.cli.main import _parser as parser
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import load_mllm
from roboalign.mllm.shipped import pretrained_folder
from roboalign.run.graph import plan_stages
from roboalign.run.load import load_recipe
from roboalign.vla.features import View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy
from tools import cli_reference, prompt_page

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts),
]
COMMAND = re.compile(r"(?:(?:\S*/)?python3? (?:-m |[\w/]+\.py)|roboalign |make |.* -m roboalign )")
DATE = re.compile(
    r"\b20\d\d-\d\d-\d\d\b|\b\d{1,2} (?:January|February|March|April|May|June|July|August|"
    r"September|October|November|December) 20\d\d\b"
)
FILE = re.compile(
    r"\b(?:recipes|tests|benchmarks|tools|studies|launch)/[\w/.-]+\.(?:yaml|py|sh|sbatch)\b"
)
LINK = re.compile(r"(?<!\w)!?\[[^\]]*\]\(([^)\s]+)\)")
STAGES = {
    part
    for stage in plan_stages(load_recipe(ROOT / "recipes/quickstart.yaml"))
    for part in stage.name.split("/")
}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module", autouse=True)
def toy_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package that a page installs, so that what follows can be checked."""
    with pytest.MonkeyPatch.context() as patch:
        for entry in write_metadata(tmp_path_factory.mktemp("site")):
            patch.syspath_prepend(entry)
        yield


def fences(text: str) -> list[tuple[str, str]]:
    """(language, body) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def code_lines(text: str) -> Iterator[str]:
    """The lines of indented blocks, continued ones joined, without a leading prompt."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in prose.replace("\\\n", " ").splitlines():
        if line.startswith("    ") and not line.lstrip().startswith(("|", "-")):
            yield " ".join(line.strip().removeprefix("$ ").split())


def spans(text: str) -> list[str]:
    """Inline code, line breaks inside it joined."""
    prose = re.sub(r"^```.*?^```$|^    .*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> list[tuple[str, bool]]:
    """(command line, whether it is whole) of a page; one in a sentence may leave arguments out."""
    found = [(part.strip(), True) for line in code_lines(text) for part in line.split("&&")]
    found += [(span, False) for span in spans(text)]
    return [(line, whole) for line, whole in found if COMMAND.match(_bare(line))]


def _bare(line: str) -> str:
    """A command without the variables set in front of it."""
    return re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)


def check(line: str, whole: bool = True) -> None:
    """Raise ValueError where a command line cannot work as it is written."""
    words = shlex.split(_bare(line), comments=True)
    if words[0] == "make":
        targets = [w for w in words[1:] if "=" not in w and w not in ("-C", "PATH", "...")]
        if unknown := set(targets) - TARGETS:
            raise ValueError(f"the Makefile has no target {unknown}")
    elif "roboalign" in words[:1] or (
        "-m" in words and words[words.index("-m") + 1] == "roboalign"
    ):
        _check_verb(words[words.index("roboalign") + 1 :], whole)
    elif words[1] == "-m":
        own = any((ROOT / "plugins").glob(f"*/src/{words[2]}/__main__.py"))
        if not own and importlib.util.find_spec(words[2]) is None:
            raise ValueError(f"there is no module {words[2]}")
    elif not (ROOT / words[1]).is_file():
        raise ValueError(f"there is no file {words[1]}")


def _check_verb(words: list[str], whole: bool) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = parser().parse_args(words)
    except SystemExit as error:
        if error.code and (whole or "arguments are required" not in said.getvalue()):
            raise ValueError(said.getvalue()) from None
        return
    if (until := getattr(options, "until", None)) and until not in STAGES:
        raise ValueError(f"there is no stage {until}")
    recipe = getattr(options, "recipe", None)
    if recipe and (ROOT / recipe).is_file():
        load_recipe(ROOT / recipe, tuple(options.set))


def slugs(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    lines = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", lines, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@by_page
def test_every_command_parses(page: Path) -> None:
    if page.name == "cli.md":
        return  # generated from the parser, with usage lines
    faults = []
    for line, whole in commands(page.read_text()):
        try:
            check(line, whole)
        except (ValueError, RoboAlignError) as error:
            faults.append(f"{line}\n    {error}")
    assert not faults, "\n".join(faults)


@by_page
def test_every_link_resolves(page: Path) -> None:
    faults = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in slugs(target):
            faults.append(f"{link}: no such heading")
    assert not faults, "\n".join(faults)


@by_page
def test_every_file_named_exists(page: Path) -> None:
    text = page.read_text()
    made = set(re.findall(r"cp \S+ (\S+)", text))
    missing = {name for name in FILE.findall(text) if not (ROOT / name).exists()} - made
    assert not missing


@by_page
def test_dates_stand_in_evidence_alone(page: Path) -> None:
    if "evidence" not in page.parts:
        assert DATE.findall(page.read_text()) == []


@by_page
def test_imports_of_python_blocks_exist(page: Path) -> None:
    for language, body in fences(page.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module and "roboalign" in node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def small_policy(folder: Path) -> None:
    """A policy as a run of the quickstart leaves one: the shipped model, and a head that is not trained."""
    mllm = load_mllm(pretrained_folder())
    width = mllm.model.config.get_text_config().hidden_size
    config = HeadConfig(width=32, heads=2, layers=2, vlm_inner_width=32, vlm_heads=2)
    head = FlowMatchingHead(
        config, HeadShape(vlm_width=width, action_dim=4, state_dim=4, horizon=8)
    )
    stats = ActionStats.fit(np.random.default_rng(0).uniform(-1, 1, (50, 4)))
    HeadPolicy(mllm, head, View(layer=2, cameras=("workspace",)), stats, None).save(folder)


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [b for name, b in fences((ROOT / "README.md").read_text()) if name == "python"]
    monkeypatch.chdir(tmp_path)
    small_policy(tmp_path / "runs/quickstart/seed-0/head/roboalign/policy")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["action"].shape == (4,) and names["solved"] in (True, False)


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/index.md"
    linked = {
        (index.parent / link.split("#")[0]).resolve() for link in LINK.findall(index.read_text())
    }
    assert set(PAGES) - linked == {index, ROOT / "README.md"}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_prompts_are_shown_as_the_models_read_them() -> None:
    assert prompt_page.PAGE.read_text() == prompt_page.page(), "run: python -m tools.prompt_page"


def test_command_reference_is_up_to_date() -> None:
    page = ROOT / "docs/reference/cli.md"
    assert page.read_text() == cli_reference.reference(), (
        "run: python -m tools.cli_reference > docs/reference/cli.md"
    )


@pytest.mark.parametrize(
    "line",
    [
        "roboalign run recipes/quickstart.yaml --unheard-of",
        "roboalign run recipes/quickstart.yaml --set sft.unheard_of=1",
        "roboalign run recipes/quickstart.yaml --until unheard_of",
        "roboalign fly recipes/quickstart.yaml",
        "make dinner",
        "python -m tools.unheard_of",
        "python benchmarks/unheard_of.py",
        "torchrun --nproc-per-node 8 -m roboalign fly RECIPE",
    ],
)
def test_a_command_that_cannot_work_is_found(line: str) -> None:
    assert commands(f"    {line}\n") == [(line, True)]
    assert commands(f"a `{line}` b") == [(line, False)]
    for whole in (True, False):
        with pytest.raises((ValueError, RoboAlignError)):
            check(line, whole)


def test_only_a_sentence_may_leave_arguments_out() -> None:
    check("roboalign export verl", whole=False)
    with pytest.raises(ValueError, match="arguments are required"):
        check("roboalign export verl")


def test_headings_become_githubs_anchors(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# The paper's table\n\n## `rl.vllm`: on, or off\n```\n# no\n```\n"
    )
    assert slugs(tmp_path / "a.md") == {"the-papers-table", "rlvllm-on-or-off"}
