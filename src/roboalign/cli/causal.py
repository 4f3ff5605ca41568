"""The verb `causal`: whether a policy acts by what its reasoning says."""

import argparse
from pathlib import Path

from roboalign.cli.options import add_settings
from roboalign.cli.think_curve import add_policy, policy_of_run
from roboalign.core.config import validated
from roboalign.run.causal import CausalSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the policy, the folder, and the fields of `CausalSettings`."""
    add_policy(parser, "causal")
    add_settings(parser, CausalSettings, *CausalSettings.model_fields)


def main(options: argparse.Namespace) -> int:
    """Measure, and print the table."""
    from roboalign.report.think_curve import causal_text
    from roboalign.run.causal import causal
    from roboalign.run.load import load_recipe

    given = {name: getattr(options, name) for name in CausalSettings.model_fields}
    settings: CausalSettings = validated(CausalSettings, given, where="roboalign causal")
    run, folder = policy_of_run(options)
    result = causal(run, load_recipe(run / "recipe.yaml"), folder, settings, Path(options.out))
    print(causal_text(result))
    return 0
