"""Many subshells, too many of them, and nothing left behind, seen from outside the process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import zmq

from trio_subshells.kernel._limits import DESCRIPTORS, RESERVE

from ._client import PATIENCE, Client, Kernel, Request, run_kernel

#: What a kernel, its clients, and the reserve need besides.
MARGIN = 200

needs_descriptors = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no limit on descriptors that one could meet"
)

#: Leaves the kernel's process with some descriptors; how many, `left` then says.
LOWER_THE_LIMIT = """
import os, resource
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
used = [int(name) for name in os.listdir("/dev/fd")]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 100, limits[1]))
left = max(used) + 100 - (len(used) - 1)  # one of these was the listing's own
"""

TAKE_ALL_DESCRIPTORS = """
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    print(f"took {len(taken)}")
"""

GIVE_THEM_BACK = """
while taken:
    os.close(taken.pop())
"""


@contextmanager
def soft_limit(descriptors: int) -> Iterator[None]:
    """Processes started within this block start under this soft limit on descriptors."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask_to_create(client: Client, count: int) -> list[Request]:
    return [client.request("create_subshell_request", channel="control") for _ in range(count)]


def create_until_refused(client: Client) -> tuple[list[str], str]:
    """Create subshells; return their ids, and why there were no more."""
    created: list[str] = []
    while True:
        content = client.request("create_subshell_request", channel="control").finished()
        if content["status"] == "error":
            assert content["ename"] == "TooManySubshells"
            return created, content["evalue"]
        created.append(content["subshell_id"])


def check_that_a_delete_makes_room(client: Client, created: list[str]) -> None:
    client.delete_subshell(created.pop()).ok()
    while True:  # the answer comes when its thread is joined, its last socket is closed soon after
        content = client.request("create_subshell_request", channel="control").finished()
        if content["status"] == "ok":
            break
    created.append(content["subshell_id"])
    assert client.execute("6 * 7", subshell=created[-1]).result() == "42"


@needs_descriptors
def test_a_thousand_subshells_at_once(start_kernel: Callable[[], Kernel]) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1000 * DESCRIPTORS + MARGIN:
        pytest.skip(f"this machine allows a process no more than {hard} descriptors")
    with soft_limit(1024):
        kernel = start_kernel()
    client = kernel.connect()
    created: list[str] = []
    for _ in range(4):  # the control channel serves no more than 1,000 requests at once
        requests = ask_to_create(client, 250)
        created += [str(request.reply()["subshell_id"]) for request in requests]
    assert len(set(created)) == 1000
    names = "[each.name for each in __import__('threading').enumerate()]"
    threads = f"sum('/subshell ' in name for name in {names})"
    assert int(client.evaluate(threads)) == 1000
    assert client.list_subshells() == created
    for subshell in (created[0], created[500], created[-1]):
        assert client.execute("6 * 7", subshell=subshell).result() == "42"
    client.delete_subshell(created[0]).ok()
    # The others end with the kernel, which the fixture sees to.


@needs_descriptors
def test_as_many_as_fit_and_then_a_clear_error(client: Client, kernel: Kernel) -> None:
    client.delete_subshell(client.create_subshell()).ok()  # what is made on first use exists now
    client.execute(LOWER_THE_LIMIT).ok()
    room = (int(client.evaluate("left")) - RESERVE) // DESCRIPTORS
    created, reason = create_until_refused(client)
    assert "file descriptors" in reason
    assert "ulimit -n" in reason
    assert room - 1 <= len(created) <= room + 1
    assert client.list_subshells() == created
    for subshell in (created[0], created[-1]):
        assert client.execute("6 * 7", subshell=subshell).result() == "42"
    kernel.connect().execute("6 * 7").ok()  # another client finds room
    client.delete_subshell(created.pop()).ok()  # what that has taken of it
    check_that_a_delete_makes_room(client, created)


@needs_descriptors
def test_cells_may_take_every_descriptor_there_is(client: Client, kernel: Kernel) -> None:
    neighbour = client.create_subshell()
    client.execute(LOWER_THE_LIMIT).ok()
    assert "took" in client.execute(TAKE_ALL_DESCRIPTORS).stream()
    refused = client.request("create_subshell_request", channel="control").error()
    assert refused["ename"] == "TooManySubshells"
    assert client.execute("6 * 7", subshell=neighbour).result() == "42"
    # Who connects now is let in as soon as there is room for the connection.
    session = kernel.new_session()
    with kernel.context.socket(zmq.DEALER) as late:
        late.linger = 0
        late.connect(kernel.url("control"))
        session.send(late, "kernel_info_request")
        client.request("kernel_info_request", channel="control").ok()
        assert not late.poll(0)
        client.execute(GIVE_THEM_BACK).ok()
        assert late.poll(PATIENCE * 1000)
        _, frames = session.feed_identities(late.recv_multipart())
        assert session.deserialize(frames)["content"]["status"] == "ok"
    client.create_subshell()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_no_memory_for_more_threads(client: Client) -> None:
    client.execute(
        "import psutil, resource\n"
        "used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)"
    ).ok()
    created, reason = create_until_refused(client)
    assert "thread" in reason or "memory" in reason
    assert "ulimit -v" in reason
    assert client.list_subshells() == created
    assert client.execute("6 * 7").result() == "42"
    check_that_a_delete_makes_room(client, created)


def test_the_command_line_sets_a_maximum(tmp_path: Path) -> None:
    arguments = ["--max-subshells", "2"]
    with run_kernel("trio-python", tmp_path / "kernel.log", arguments=arguments) as kernel:
        client = kernel.connect()
        created, reason = create_until_refused(client)
        assert len(created) == 2
        assert "--max-subshells" in reason
        check_that_a_delete_makes_room(client, created)


def test_subshells_leave_nothing_behind(client: Client, kernel: Kernel) -> None:
    """The short form of benchmarks/soak.py."""
    process = psutil.Process(kernel.process.pid)

    def rounds(count: int) -> None:
        for _ in range(count):
            subshell = client.create_subshell()
            client.execute("pass", subshell=subshell).ok()
            client.delete_subshell(subshell).ok()
            client.memory.clear()

    rounds(150)  # what the first ones bring stays
    threads, descriptors = process.num_threads(), kernel.descriptors()
    memory = process.memory_info().rss
    rounds(200)
    assert process.num_threads() <= threads  # one that was idle may have ended
    kernel.wait_for_descriptors(descriptors)
    # 10 kB each would be twice 1 MB; the allocator's own steps are about as large as that.
    assert process.memory_info().rss - memory < 4_000_000
