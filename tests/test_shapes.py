"""The annotated shapes are enforced in tests (`shape_checks.py`), and nowhere else."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shape_checks
import torch
from jaxtyping import TypeCheckError

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.align.grpo.loss import clipped_loss, group_advantages, kl_k3
from roboalign.align.rewards.actions import decoded_reward
from roboalign.conversations.blocks import Parsed
from roboalign.vla.dit import sinusoid
from roboalign.vla.frames import Frames
from roboalign.vla.guidance import Guide
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape

SOURCE = Path(__file__).parents[1] / "src" / "roboalign"
ROOMS = ("actions", "align", "vla")


def small_head() -> FlowMatchingHead:
    config = HeadConfig(width=8, heads=2, layers=2, hidden_width=8, vlm_heads=2, vlm_inner_width=8)
    return FlowMatchingHead(config, HeadShape(vlm_width=6, action_dim=3, state_dim=0, horizon=4))


def head_inputs(**changed: torch.Tensor) -> dict:
    inputs = {
        "vlm": torch.randn(2, 5, 6),
        "vlm_mask": torch.ones(2, 5, dtype=torch.bool),
        "state": None,
        "actions": torch.randn(2, 4, 3),
        "noise": torch.randn(4, 4, 3),
        "t": torch.rand(4),
    }
    return inputs | changed


def test_a_wrong_number_of_axes_or_kind_of_number_is_refused():
    with pytest.raises(TypeCheckError, match="chunks"):
        FastTokenizer.fit(np.zeros((8, 4)), scale=10, vocab_size=64)
    with pytest.raises(TypeCheckError, match="rewards"):
        group_advantages(torch.zeros(2, 2), 2)
    with pytest.raises(TypeCheckError, match="rewards"):
        group_advantages(torch.zeros(4, dtype=torch.int64), 2)
    with pytest.raises(TypeCheckError, match="vlm_mask"):
        small_head().loss(**head_inputs(vlm_mask=torch.ones(2, 5)))
    with pytest.raises(TypeCheckError, match="weights"):
        Guide(torch.zeros(2, 4, 3), torch.zeros(2, 4))


def test_axes_of_one_name_agree_between_arguments():
    two, three = torch.zeros(2, 5), torch.zeros(2, 3)
    clipped_loss(two, two, torch.zeros(2), torch.ones(2, 5))
    # PyTorch would broadcast each of these without a word.
    with pytest.raises(TypeCheckError, match="old_logp"):
        clipped_loss(two, torch.zeros(2, 1), torch.zeros(2), torch.ones(2, 5))
    with pytest.raises(TypeCheckError, match="advantages"):
        clipped_loss(two, two, torch.zeros(1), torch.ones(2, 5))
    with pytest.raises(TypeCheckError, match="ref_logp"):
        kl_k3(three, torch.zeros(1, 3))
    small_head().loss(**head_inputs())
    with pytest.raises(TypeCheckError, match="vlm_mask"):
        small_head().loss(**head_inputs(vlm_mask=torch.ones(1, 5, dtype=torch.bool)))
    with pytest.raises(TypeCheckError, match=r"parameter 't'"):
        small_head().loss(**head_inputs(t=torch.rand(1)))
    parsed = Parsed(action_ids=[1], well_formed=True, reason="ok")
    with pytest.raises(TypeCheckError, match="target_chunk"):
        decoded_reward(parsed, [1], np.zeros((4, 3)), np.zeros((1, 3)))


def test_fields_of_a_dataclass_agree():
    ones = np.ones(3)
    arrays = dict.fromkeys(("q01", "q99", "mean", "std", "minimum", "maximum"), ones)
    ActionStats(**arrays, count=1)
    with pytest.raises(TypeCheckError, match="std"):
        ActionStats(**arrays | {"std": np.ones(2)}, count=1)
    with pytest.raises(TypeCheckError, match="state"):
        Frames(None, torch.zeros(2, 4, 3), torch.zeros(1, 5))  # type: ignore[arg-type]


def test_a_result_has_the_shape_that_is_annotated():
    assert sinusoid(torch.zeros(2, 3), 8).shape == (2, 3, 8)
    with pytest.raises(TypeCheckError, match="return value"):
        sinusoid(torch.zeros(2, 3), 7)  # an odd width gives 6 numbers


def test_every_module_with_annotated_shapes_is_checked():
    annotated = []
    for path in sorted(path for room in ROOMS for path in (SOURCE / room).rglob("*.py")):
        imports = (
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        )
        if any(node.module == "jaxtyping" for node in imports):
            name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
            annotated.append(name)
            loader = importlib.import_module(name).__spec__.loader
            assert type(loader).__module__.startswith("jaxtyping"), f"{name} was imported unchecked"
    assert set(annotated) <= set(shape_checks.MODULES)


def test_outside_the_tests_nothing_is_checked_or_imported_early():
    code = (
        "import sys, roboalign\n"
        "assert not {'torch', 'numpy', 'jaxtyping'} & set(sys.modules)\n"
        "import torch\n"
        "from roboalign.align.grpo.loss import kl_k3\n"
        "print(tuple(kl_k3(torch.zeros(2, 3), torch.zeros(1, 3)).shape), 'beartype' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(2, 3) False"
