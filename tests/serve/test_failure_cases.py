"""What robot and operator see where serving fails: the messages of docs/how-to/when-serving-fails.md."""

import re
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.serve.watch import MOST_TEXTS, REPEAT_SECONDS, Watch
from tools.failure_cases import CASES, run
from tools.failure_page import HEADING, PAGE, section

MEASURED = re.compile(
    r"^(request|observe|send|jump at|limited)\b.*|(?<=reached )\(.*?\)|\d+(\.\d+)?"
)
"""Times and counts, and what a socket says that is killed earlier or later."""


def messages(text: str) -> set[str]:
    """The lines of a section, without what was measured."""
    return {MEASURED.sub("N", line) for line in text.splitlines()}


def test_each_case_gives_the_messages_of_the_page():
    shown = dict(
        part.split("\n", 1) for part in PAGE.read_text().split(HEADING)[1].split("\n### ")[1:]
    )
    assert list(shown) == list(CASES), "run: python -m tools.failure_page"
    with ThreadPoolExecutor(5) as pool:  # they wait most of the time
        stages = dict(zip(CASES, pool.map(run, CASES.values())))
    for title, case in CASES.items():
        seen = messages(section(title, case, stages[title]))
        missing = messages(shown[title]) - seen
        assert not missing, f"{title}: run python -m tools.failure_page, and read what changed"


def test_a_connection_that_breaks_while_it_opens_is_one_error():
    """A server that is killed just then resets it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def reset() -> None:
            for _ in range(20):
                taken, _address = listening.accept()
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                taken.close()

        thread = threading.Thread(target=reset, daemon=True)
        thread.start()
        for _ in range(20):
            with pytest.raises(RoboAlignError, match="no policy can be reached"):
                RemotePolicy(port=listening.getsockname()[1])
        thread.join()


def test_repeated_refusals_are_counted_and_not_printed():
    lines, now = [], [0.0]
    watch = Watch(lines.append, lambda: now[0])
    watch.came(1, "here")
    for number in range(40):
        watch.refused(1, f"fault {number % 8}")
    assert lines[1:] == [f"client 1 refused: fault {n}" for n in range(MOST_TEXTS)]
    now[0] += REPEAT_SECONDS
    watch.refused(1, "fault 0")
    watch.refused(1, "fault 0")
    assert lines[-1] == "client 1 refused: fault 0 (35 more refused)"
    watch.left(1, None, waiting=True)
    assert lines[-1] == "client 1 left before its answer (1 more refused)"
