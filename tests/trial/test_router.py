"""The router: the planned arm answers, no byte but the actions tells which, and faults sound alike."""

import dataclasses
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from serving import CONTRACT, request, seen, served
from trial_studies import locked, study
from websockets.sync.client import connect

from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.serve.contract import Contract
from roboalign.serve.wire import pack_message, unpack_message
from roboalign.trial.attempts import Outcome
from roboalign.trial.desk import Desk
from roboalign.trial.log import TrialLog
from roboalign.trial.plan import draw_plan
from roboalign.trial.router import BlindRouter, check_policies, open_arms, shared_contract
from roboalign.trial.session import routed

SUCCESS = Outcome(outcome="success")
VOID = Outcome(outcome="excluded", exclusion="the policy did not answer")


class Constant:
    """Answers one number, after some time; counts what it was asked."""

    def __init__(self, value, seconds=0.0):
        self.value, self.seconds, self.asked = value, seconds, []

    def act_batch(self, observations, noise_keys):
        self.asked += [seen.instruction for seen in observations]
        time.sleep(self.seconds)
        return np.full((len(observations), 3, 2), self.value, np.float32)


def named(model):
    return dataclasses.replace(CONTRACT, model=model)


@contextmanager
def session(tmp_path, policies, contracts=None, **changed):
    """(desk, key, port, servers by arm) of a running router over two served policies."""
    with ExitStack() as stack:
        contracts = contracts or {name: named(name) for name in policies}
        servers = {
            name: stack.enter_context(served(policy, contracts[name]))
            for name, policy in policies.items()
        }
        addresses = {name: f"ws://127.0.0.1:{server.port}" for name, server in servers.items()}
        _, plan, key = locked(tmp_path, arms=addresses, **changed)
        log = stack.enter_context(TrialLog(tmp_path / "log.jsonl", plan.sha256))
        desk = Desk(plan, log)
        arms = open_arms(plan, key.arms, stack, timeout=20.0)
        router = BlindRouter(desk, key, arms)
        check_policies(desk, arms)
        port = stack.enter_context(routed(router, port=0))
        yield desk, key, port, servers


def raw(port):
    return connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None)


def asked(number=0):
    """A request without an instruction: the plan's is taken."""
    return pack_message({k: v for k, v in request(number).items() if k != "prompt"})


def start(desk):
    trial = desk.view()["trial"]
    desk.start(trial["number"], trial["attempt"], "Ada")
    return trial


def end(desk, trial, result=SUCCESS):
    desk.end(trial["number"], trial["attempt"], "Ada", result)


def told(desk, trial):
    """An observation with the planned instruction."""
    look = seen()
    look.instruction = desk.plan.tasks[trial["task"]].instruction
    return look


def test_the_planned_arm_answers_and_nothing_but_the_actions_tells_which(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(2.0, seconds=0.03)}
    hellos, replies, answers = set(), set(), []
    with session(tmp_path, policies) as (desk, key, port, _):
        for arm in key.assignment:
            trial = start(desk)
            with raw(port) as client:
                hellos.add(client.recv())
                client.send(asked())
                reply = client.recv()
            decoded = unpack_message(reply)
            assert set(decoded) == {"actions"}
            answers.append((arm, float(decoded["actions"][0, 0])))
            replies.add(reply.replace(decoded["actions"].tobytes(), b"actions"))
            end(desk, trial)
        assert desk.trial() is None
    assert len(hellos) == len(replies) == 1
    assert set(answers) == {("base", 1.0), ("aligned", 2.0)}
    metadata = unpack_message(hellos.pop())
    assert metadata["model"] == f"toy {desk.plan.sha256[:12]}"
    for policy in policies.values():  # half of 16 trials each, all with the plan's instruction
        assert policy.asked.count("pick up the cube") == policy.asked.count("push the cube") == 4
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    assert all("base" not in line and "aligned" not in line for line in log[1:])


def test_two_arms_with_the_same_actions_send_the_same_bytes(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(1.0, seconds=0.03)}
    with session(tmp_path, policies, trials=1) as (desk, key, port, _), raw(port) as client:
        client.recv()
        replies = []
        for _ in key.assignment:
            trial = start(desk)
            for message in (asked(1), asked(2), pack_message({}), b"\xc1", pack_message({"a": 1})):
                client.send(message)
                replies.append(client.recv())
            end(desk, trial)
            client.send(asked(1))  # between trials
            replies.append(client.recv())
    assert sorted(set(key.assignment)) == ["aligned", "base"]
    assert len(replies) == 24 and replies == replies[:6] * 4


def test_a_lost_arm_sounds_alike_makes_the_attempt_void_and_may_come_back(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(2.0)}
    said = {}
    with session(tmp_path, policies, trials=2) as (desk, key, port, servers), ExitStack() as stack:
        client = RemotePolicy(port=port)
        for arm in ("base", "aligned"):
            while key.assignment[desk.view()["trial"]["number"] - 1] != arm:
                trial = start(desk)
                look = told(desk, trial)
                client.act(look)
                end(desk, trial)
            trial = start(desk)
            look = told(desk, trial)
            before = client.act(look)
            servers[arm].stop()
            while servers[arm]._loop.is_running():
                time.sleep(0.01)
            with pytest.raises(RoboAlignError) as error:
                client.act(look)
            said[arm] = error.value.problem
            with pytest.raises(RoboAlignError, match="so this attempt is void"):
                end(desk, trial)
            end(desk, trial, VOID)
            stack.enter_context(served(policies[arm], named(arm), port=servers[arm].port))
            again = start(desk)
            assert (again["number"], again["attempt"]) == (trial["number"], 2)
            np.testing.assert_array_equal(client.act(look), before)
            end(desk, again)
        client.close()
    assert (
        said["base"] == said["aligned"] and "does not answer: this attempt is void" in said["base"]
    )
    assert "127.0.0.1" not in said["base"]
    voided = [attempt for attempt in desk.attempts() if attempt.is_void]
    assert [(a.requests, a.unanswered) for a in voided] == [(2, 1), (2, 1)]


def test_a_policy_put_in_the_place_of_another_does_not_answer(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(2.0)}
    with session(tmp_path, policies) as (desk, key, port, servers), raw(port) as client:
        client.recv()
        arm = key.assignment[0]
        servers[arm].stop()
        while servers[arm]._loop.is_running():
            time.sleep(0.01)
        with served(Constant(9.0), named("stranger"), port=servers[arm].port):
            trial = start(desk)
            client.send(asked())
            assert "does not answer" in client.recv()
            end(desk, trial, VOID)


def test_faults_of_a_policy_are_counted_and_left_to_the_operator(tmp_path):
    class Broken(Constant):
        def act_batch(self, observations, noise_keys):
            chunk = super().act_batch(observations, noise_keys)
            return chunk * (np.nan if "warm up" not in self.asked[-1] else 1.0)

    policies = {"base": Broken(1.0), "aligned": Broken(2.0)}
    with session(tmp_path, policies) as (desk, _, port, _), raw(port) as client:
        client.recv()
        trial = start(desk)
        client.send(asked())
        assert client.recv().startswith("trial: the policy answered with a fault")
        end(desk, trial, Outcome(outcome="failure", failure="no motion or oscillation"))
        (attempt,) = desk.attempts()
        assert (attempt.requests, attempt.faults, attempt.unanswered) == (1, 1, 0)


def test_requests_out_of_place_are_refused(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(2.0)}
    with session(tmp_path, policies, seconds=600) as (desk, _, port, _), raw(port) as client:
        client.recv()
        client.send(asked())
        assert "no trial is under way" in client.recv()
        trial = start(desk)
        client.send(pack_message(request()))
        assert "prompt: the plan says 'pick up the cube', this is 'task 0'" in client.recv()
        client.send(pack_message(request() | {"prompt": "pick up the cube"}))
        assert isinstance(client.recv(), bytes)
        desk.running().began -= 600
        client.send(asked())
        assert "the 600 seconds of this trial are over" in client.recv()
        end(desk, trial, Outcome(outcome="failure", failure="out of time"))
        assert desk.attempts()[0].requests == 1
        assert sum(len(p.asked) - p.asked.count("warm up") for p in policies.values()) == 1


def test_an_answer_that_comes_after_its_trial_is_not_given(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(2.0)}
    with session(tmp_path, policies) as (desk, key, port, _), raw(port) as client:
        client.recv()
        trial = start(desk)
        client.send(asked())
        client.recv()
        policy = policies[key.assignment[0]]
        policy.seconds = 1.5
        client.send(asked())
        while len(policy.asked) < 4:  # twice to warm up, and the second request
            time.sleep(0.01)
        end(desk, trial)
        start(desk)
        assert "this trial ended meanwhile" in client.recv()
        assert desk.running().requests == 0


def test_a_server_that_records_gets_an_episode_for_each_trial(tmp_path):
    """A recorder is told `end` between the trials of its arm, though the connection stays."""

    class Recorder:
        def __init__(self):
            self.said = []

        def keep(self, connection, query, answer, seconds):
            self.said.append("keep")

        def end(self, connection):
            self.said.append("end")

        def close(self):
            pass

    policies = {"base": Constant(1.0), "aligned": Constant(2.0)}
    with session(tmp_path, policies, trials=1) as (desk, _, port, servers), raw(port) as client:
        client.recv()
        for server in servers.values():
            server.recorder = Recorder()
        while desk.trial() is not None:
            trial = start(desk)
            for _ in range(2):
                client.send(asked())
                client.recv()
            end(desk, trial)
        for server in servers.values():
            assert server.recorder.said == ["end", "keep", "keep"] * 2


def test_unmodified_openpi_client(tmp_path):
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    policies = {"base": Constant(1.0), "aligned": Constant(2.0)}
    with session(tmp_path, policies) as (desk, key, port, _):
        policy = client.WebsocketClientPolicy("127.0.0.1", port)
        start(desk)
        reply = policy.infer({k: v for k, v in request().items() if k != "prompt"})
        assert reply["actions"][0, 0] == policies[key.assignment[0]].value
        policy._ws.close()


def test_answers_of_a_fast_arm_can_be_held(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(2.0, seconds=0.05)}
    spent = {}
    with (
        session(tmp_path, policies, answer_after=0.25) as (desk, key, port, _),
        raw(port) as client,
    ):
        client.recv()
        for arm in key.assignment[:4]:
            trial = start(desk)
            began = time.monotonic()
            client.send(asked())
            client.recv()
            spent.setdefault(arm, []).append(time.monotonic() - began)
            end(desk, trial)
    assert min(min(spent["base"]), min(spent["aligned"])) >= 0.25


def test_a_study_goes_on_with_the_policies_that_it_began_with(tmp_path):
    policies = {"base": Constant(1.0), "aligned": Constant(2.0)}
    with session(tmp_path, policies) as (desk, key, port, _):
        with RemotePolicy(port=port) as client:
            trial = start(desk)
            client.act(told(desk, trial))
            end(desk, trial)
        models = desk.log.rows[0]["arms"]
        assert models == {"base": "base", "aligned": "aligned"}
    plan, log = desk.plan, tmp_path / "log.jsonl"
    for model, problem in (
        ("other", "serves other now and served base"),
        ("aligned", "same policy"),
    ):
        with ExitStack() as stack:
            now = {
                name: stack.enter_context(served(Constant(0.0), named(one)))
                for name, one in (("base", model), ("aligned", "aligned"))
            }
            addresses = {name: f"ws://127.0.0.1:{server.port}" for name, server in now.items()}
            arms = open_arms(plan, addresses, stack)
            again = Desk(plan, stack.enter_context(TrialLog(log, plan.sha256)))
            with pytest.raises(RoboAlignError, match=problem):
                check_policies(again, arms)
    with ExitStack() as stack, pytest.raises(RoboAlignError, match="arm base: no policy can be"):
        open_arms(plan, key.arms, stack)


@pytest.mark.parametrize("changed", [{"horizon": 4}, {"fps": 5.0}, {"state_names": ("x",) * 4}])
def test_arms_that_a_client_could_know_apart_are_refused(changed):
    plan, _ = draw_plan(study())
    with ExitStack() as stack:
        contracts = [named("a"), dataclasses.replace(named("b"), **changed)]
        servers = [stack.enter_context(served(Shaped(c), c)) for c in contracts]
        arms = {
            name: stack.enter_context(RemotePolicy(port=server.port))
            for name, server in zip(plan.arms, servers)
        }
        with pytest.raises(RoboAlignError, match=f"`{next(iter(changed))}` is") as error:
            shared_contract(plan, arms)
        assert "base" in str(error.value) and "aligned" in str(error.value)


class Shaped:
    def __init__(self, contract):
        self.shape = contract.horizon, contract.action_dim

    def act_batch(self, observations, noise_keys):
        return np.zeros((len(observations), *self.shape), np.float32)


@pytest.mark.parametrize(
    "contract",
    [
        CONTRACT,
        dataclasses.replace(CONTRACT, cameras={"a": None, "b": (4, 5)}, keys={"b": "image"}),
        dataclasses.replace(
            CONTRACT, state_dim=None, needs_state=False, fps=None, guided=True, max_batch=3
        ),
        dataclasses.replace(CONTRACT, action_space={"control": "joint"}, state_names=()),
    ],
)
def test_a_contract_comes_back_from_its_metadata(contract):
    told = unpack_message(pack_message(contract.metadata()))
    assert Contract.from_metadata(told, "here") == contract
    del told["action"]
    with pytest.raises(RoboAlignError, match="here: its metadata are not those"):
        Contract.from_metadata(told, "here")
