"""CALVIN itself, where ROBOALIGN_CALVIN names a checkout and its packages are installed."""

import os
import re

import numpy as np
import pytest

from roboalign.sim.calvin.chains import (
    PUBLISHED,
    chain_start,
    chains_hash,
    measured_chains,
    start_seed,
)
from roboalign.sim.calvin.checkout import open_checkout
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.world import Simulation
from roboalign.sim.registry import find_benchmark

pytestmark = pytest.mark.skipif(
    not os.environ.get("ROBOALIGN_CALVIN"), reason="ROBOALIGN_CALVIN names no checkout"
)


def test_the_chains_are_the_published_ones(real):
    drawn = measured_chains(open_checkout(real))
    assert chains_hash(drawn) == PUBLISHED
    first = drawn[0]
    assert start_seed(dict(first.state)) == 2138410836
    # The order of an action is right, and so is the place of each thing: read off the public list.
    assert first.tasks[0].startswith("rotate") and first.tasks[-1].endswith("lightbulb")
    assert len({chain.tasks for chain in drawn}) == 997


def test_two_simulations_in_a_process_are_each_as_alone(real):
    config = CalvinConfig(checkout=real, render="tiny", image_size=64)
    checkout = open_checkout(real)
    chains, poses = measured_chains(checkout), checkout.initial_poses()

    def episode(world, number):
        random = np.random.default_rng(0)
        world.begin(chain_start(dict(chains[number].state), poses))
        for _ in range(20):
            world.step(random.uniform(-1, 1, 7))
        return world.robot(), world.images()["static"]

    first, second = (Simulation(checkout, "D", config) for _ in range(2))
    alone = episode(first, 0)
    other = episode(second, 1)
    assert not np.array_equal(other[1], alone[1])
    for one, again in zip(episode(second, 0), alone, strict=True):
        assert np.array_equal(one, again)
    for world in (first, second):
        world.close()


def test_what_the_doctor_says(real):
    lines = find_benchmark("calvin").examine(CalvinConfig(checkout=real, render="tiny"))
    assert re.fullmatch(r"calvin [0-9a-f]{40}\S*, calvin_env [0-9a-f]{40}\S*", lines[0])
    assert lines[1:] == (f"1000 chains, sha256 {PUBLISHED}, as published", "drawn by TinyRenderer")
