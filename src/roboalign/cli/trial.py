"""`roboalign trial plan` and `trial run`: blind trials of several policies on one robot."""

import argparse
import getpass
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from roboalign.cli.serve import api_key, require_serving
from roboalign.cli.trial_text import format_plan
from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import say
from roboalign.trial.pictures import read_pictures
from roboalign.trial.plan import (
    LOG_ENDING,
    PLAN_ENDING,
    draw_plan,
    key_path,
    lock_plan,
    number_of_trials,
    read_key,
    read_plan,
    read_study,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add one parser for each action."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    plan = actions.add_parser(
        "plan", help="compute the number of trials, draw their order and arms, and lock both"
    )
    plan.add_argument("study", metavar="STUDY", help="a YAML file: arms, tasks, conditions, number")
    plan.add_argument(
        "--out", metavar="PLAN", help=f"file to write; without it STUDY's name with {PLAN_ENDING}"
    )
    plan.add_argument(
        "--dry-run", action="store_true", help="print the numbers only, and lock nothing"
    )
    run = actions.add_parser(
        "run",
        help="route a robot's requests to the arm of each trial, blind, and note the outcomes",
    )
    _add_run(run)


def _add_run(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("plan", metavar="PLAN", help=f"a locked plan, {PLAN_ENDING}, with its key next to it")
    add("--log", metavar="FILE", help=f"log to continue; without it PLAN's name with {LOG_ENDING}")
    add(
        "--host", default="127.0.0.1", help="address for the robot; beyond loopback with a key only"
    )
    add(
        "--port", type=int, default=8000, metavar="N", help="port for the robot; 0 takes a free one"
    )
    add(
        "--api-key-env",
        metavar="NAME",
        help="ask robot and page for the key that this environment variable holds",
    )
    add(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="where an arm is served now, if it moved; may be repeated",
    )
    add("--arms-key-env", metavar="NAME", help="variable with the key that the arms' servers ask")
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="longest wait for an arm")
    add("--page-host", default="127.0.0.1", help="address of the page; beyond loopback with a key")
    add("--page-port", type=int, default=8080, metavar="N", help="port of the page; 0: a free one")
    add("--operator", metavar="NAME", help="who notes in the terminal; without it the login name")


def main(options: argparse.Namespace) -> int:
    """Do the action."""
    return {"plan": _plan, "run": _run}[options.action](options)


def _plan(options: argparse.Namespace) -> int:
    source = Path(options.study)
    study = read_study(source)
    trials, sized = number_of_trials(study)
    out = Path(options.out) if options.out else source.with_name(source.stem + PLAN_ENDING)
    if not options.dry_run and out.resolve() == source.resolve():
        raise RoboAlignError("the plan would replace its study", where=str(out), fix="pass --out")
    pictures, locked = read_pictures(study, source.parent), None
    if not options.dry_run:
        locked, key = draw_plan(study, pictures)
        lock_plan(out, locked, key)
    print(format_plan(study, trials, sized, locked, out), end="")
    return 0


def _run(options: argparse.Namespace) -> int:
    require_serving("roboalign trial run")
    from roboalign.serve.server import check_reach
    from roboalign.trial.desk import Desk
    from roboalign.trial.log import TrialLog
    from roboalign.trial.page import paged
    from roboalign.trial.router import BlindRouter, check_policies, open_arms
    from roboalign.trial.session import routed
    from roboalign.trial.terminal import Terminal

    key = api_key(options.api_key_env)
    for host in (options.host, options.page_host):
        check_reach(host, key)
    plan, secret = read_plan(options.plan), read_key(options.plan)
    addresses = secret.arms | _moved(options.arm, plan.arms)
    with ExitStack() as stack:
        log = stack.enter_context(TrialLog(log_path(options), plan.sha256))
        desk = Desk(plan, log)
        say(f"plan {plan.sha256[:12]}, log {log.path}", "trial")
        arms = open_arms(
            plan,
            addresses,
            stack,
            api_key=api_key(options.arms_key_env),
            timeout=options.timeout,
        )
        router = BlindRouter(desk, secret, arms)
        check_policies(desk, arms)
        port = stack.enter_context(routed(router, options.host, options.port, key))
        say(f"the robot connects to ws://{options.host}:{port}", "trial")
        page = stack.enter_context(paged(desk, options.page_host, options.page_port, key))
        say(f"the operator's page is http://{options.page_host}:{page}/", "trial")
        if sys.stdin.isatty():
            Terminal(desk, options.operator or getpass.getuser()).work()
        else:
            threading.Event().wait()
    return 0


def log_path(options: argparse.Namespace) -> Path:
    """Return the log of a plan: what is given, or the file of the plan's name."""
    if options.log:
        return Path(options.log)
    plan = Path(options.plan)
    key_path(plan)  # refuses a name that is no plan's
    return plan.with_name(plan.name.removesuffix(PLAN_ENDING) + LOG_ENDING)


def _moved(given: list[str], arms: tuple[str, ...]) -> dict[str, str]:
    """Return `NAME=ADDRESS` options as a map. Raises RoboAlignError for an unknown arm."""
    moved = {}
    for option in given:
        name, _, address = option.partition("=")
        if name not in arms or not address.startswith(("ws://", "wss://")):
            raise RoboAlignError(
                f"the arms are {', '.join(arms)}",
                where=f"--arm {option}",
                fix=f"for example --arm {arms[0]}=ws://127.0.0.1:8001",
            )
        moved[name] = address
    return moved
