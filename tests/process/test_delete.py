"""Deleting a subshell at work: all it owes is answered, it is joined, nobody else waits."""

from __future__ import annotations

import time

from ._cells import ENDLESS
from ._client import PATIENCE, Client, Kernel

#: Ours; trio keeps others for the next function that is to run in one.
THREADS = (
    "sorted(each.name for each in threading.enumerate() if each.name.startswith('trio kernel'))"
)


def test_a_busy_subshell_is_deleted_and_owes_nothing(client: Client, kernel: Kernel) -> None:
    client.execute("print('x' * 300_000)").ok()  # beyond some size, pyzmq has a thread of its own
    for what, code in ENDLESS.items():
        print("deleting a subshell whose cell is:", what)
        _delete_busy(client, kernel, code)


def _delete_busy(client: Client, kernel: Kernel, code: str) -> None:
    client.execute("import threading, trio; ran = []").ok()
    client.delete_subshell(client.create_subshell()).ok()  # what is made on first use exists now
    threads, descriptors = client.evaluate(THREADS), kernel.descriptors()
    subshell = client.create_subshell()
    running = client.execute(code, subshell=subshell)
    running.wait_published("stream", "in")
    queued = [
        client.execute("ran.append(1)", subshell=subshell),
        client.request("complete_request", {"code": "ra", "cursor_pos": 2}, subshell=subshell),
        client.execute("ran.append(2)", subshell=subshell),
    ]
    client.request("kernel_info_request").ok()  # the three have passed the shell channel
    client.delete_subshell(subshell).ok()
    # Nothing is owed once the deletion is answered; the three sockets may only be late.
    assert running.finished()["status"] in {"error", "aborted"}
    for request in queued:
        assert request.finished()["status"] in {"error", "aborted"}
    assert client.list_subshells() == []
    assert client.evaluate("ran") == "[]"
    assert client.evaluate(THREADS) == threads
    kernel.wait_for_descriptors(descriptors)


def test_a_deleted_subshell_takes_no_more_requests(client: Client) -> None:
    subshell = client.create_subshell()
    client.delete_subshell(subshell).ok()
    assert subshell in client.execute("never = 1", subshell=subshell).error()["evalue"]
    assert client.evaluate("'never' in globals()") == "False"


def test_a_pending_deletion_delays_nobody(client: Client) -> None:
    client.execute("import threading; gate = threading.Event()").ok()
    stuck, neighbour = client.create_subshells(2)
    # No interrupt reaches a thread inside this call: the deletion waits for the gate.
    cell = client.execute("print('in'); gate.wait()", subshell=stuck)
    cell.wait_published("stream", "in")
    deletion = client.delete_subshell(stuck)
    client.request("kernel_info_request", channel="control").ok()
    client.request("kernel_info_request").ok()
    assert client.execute("1 + 1", subshell=neighbour).result() == "2"
    client.delete_subshell(client.create_subshell()).ok()
    assert client.execute("2 + 2").result() == "4"
    assert not deletion.is_answered or deletion.reply()["status"] == "error"
    client.execute("gate.set()").ok()
    deletion.finished()
    cell.finished()  # with ok, where the gate opened before the ladder got to a rung that ends it
    _wait_until_listed(client, [neighbour])


def test_a_subshell_that_can_not_be_joined_is_reported_and_joined_later(client: Client) -> None:
    client.execute("import threading; gate = threading.Event()").ok()
    stuck, neighbour = client.create_subshells(2)
    cell = client.execute("print('in'); gate.wait()", subshell=stuck)
    cell.wait_published("stream", "in")
    queued = client.execute("never = 1", subshell=stuck)
    assert stuck in client.delete_subshell(stuck).error()["evalue"]
    # Even what it can't end is answered, it stays visible, and it takes nothing new.
    assert queued.finished()["status"] in {"error", "aborted"}
    assert stuck in client.list_subshells()
    client.execute("1", subshell=stuck).error()
    # All others never stopped working.
    assert client.execute("1 + 1", subshell=neighbour).result() == "2"
    client.execute("gate.set()").ok()
    assert cell.finished()["status"] in {"error", "aborted"}
    _wait_until_listed(client, [neighbour])
    assert client.evaluate("'never' in globals()") == "False"


def test_a_deletion_disturbs_no_neighbour(client: Client) -> None:
    client.execute("import threading, trio; gate = threading.Event()").ok()
    doomed, neighbour = client.create_subshells(2)
    works = client.execute(
        "print('in')\n"
        "turns = 0\n"
        "while not gate.is_set():\n"
        "    turns += 1\n"
        "    await trio.sleep(0)\n"
        "'undisturbed'",
        subshell=neighbour,
    )
    blocks = client.execute("print('in'); assert gate.wait(60); 'undisturbed'")
    loops = client.execute("print('in')\nwhile True: pass", subshell=doomed)
    for cell in (works, blocks, loops):
        cell.wait_published("stream", "in")
    client.delete_subshell(doomed).ok()
    loops.finished()
    client.execute("gate.set()", subshell=client.create_subshell()).ok()
    assert works.result() == "'undisturbed'"
    assert blocks.result() == "'undisturbed'"


def test_the_same_subshell_is_deleted_twice_at_once(client: Client) -> None:
    subshell = client.create_subshell()
    running = client.execute("print('in')\nwhile True: pass", subshell=subshell)
    running.wait_published("stream", "in")
    deletions = [client.delete_subshell(subshell) for _ in range(2)]
    statuses = sorted(deletion.finished()["status"] for deletion in deletions)
    # The second one may join in, or find nobody; neither may be forgotten.
    assert statuses in (["error", "ok"], ["ok", "ok"])
    running.finished()
    assert client.list_subshells() == []


def test_a_cell_may_clean_up_when_its_subshell_is_deleted(client: Client) -> None:
    client.execute("import trio; cleaned = []").ok()
    subshell = client.create_subshell()
    cell = client.execute(
        "try:\n"
        "    print('in')\n"
        "    await trio.sleep_forever()\n"
        "finally:\n"
        "    cleaned.append('yes')",
        subshell=subshell,
    )
    cell.wait_published("stream", "in")
    client.delete_subshell(subshell).ok()
    cell.finished()
    assert client.evaluate("cleaned") == "['yes']"


def test_many_busy_subshells_are_deleted_at_once(client: Client, kernel: Kernel) -> None:
    client.execute("import threading, trio").ok()
    client.delete_subshell(client.create_subshell()).ok()
    threads, descriptors = client.evaluate(THREADS), kernel.descriptors()
    subshells = client.create_subshells(8)
    cells = [
        client.execute(list(ENDLESS.values())[number % 4], subshell=subshell)
        for number, subshell in enumerate(subshells)
    ]
    for cell in cells:
        cell.wait_published("stream", "in")
    for deletion in [client.delete_subshell(subshell) for subshell in subshells]:
        deletion.ok()
    for cell in cells:
        assert cell.finished()["status"] in {"error", "aborted"}
    assert client.list_subshells() == []
    assert client.evaluate(THREADS) == threads
    kernel.wait_for_descriptors(descriptors)


def _wait_until_listed(client: Client, subshells: list[str]) -> None:
    """Ask until the kernel lists just these: a late join is announced by no message."""
    deadline = time.monotonic() + PATIENCE
    while client.list_subshells() != subshells:
        assert time.monotonic() < deadline, f"not just {subshells} after {PATIENCE} s"
