"""Others never wait: while a subshell is deleted, whatever its cell does, all else is as quick.

Times are only compared with each other: the median of the replies that were under way during
deletions must be at most twice what it was undisturbed. *Undisturbed* are replies to the same
requests, by the same kernel and moments before, while the cell runs already and is not being
deleted. There are cells that slept before, and do nothing but compute from the moment that they are
cancelled, because they unwind at once, or because they catch that in a loop. What one that computes
costs others is up to the machine (on a busy one, whoever has the GIL may not have a processor). So
for these it is also undisturbed what comes while another cell computes. `benchmarks/guarantees.py`
compares with an idle kernel, on an idle machine.

What was slower is measured again, as another process may take the processors away at any moment.
But a reply that has waited for the end of a deletion fails the test at once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import zmq

from ._cells import GENTLE, STUBBORN
from ._client import PATIENCE, Client, Kernel

MOST = 2.0
#: How often what was slow is measured: another process may have a processor for some seconds.
ROUNDS = 10
#: Undisturbed replies of each kind, before each deletion.
BEATS = 10
#: Deletions of each kind in a round.
DELETIONS = 4

#: Nothing ends this one but the gate; so it is deleted in vain, for as long as its request says.
CALL = "print('in', flush=True); gate.wait()"
CALL_TIMEOUT = 1.0

LOOP = GENTLE["loop"]
KINDS = {
    **{what: GENTLE[what] for what in ("await", "loop", "sleep", "input", "catches Exception")},
    "finally with awaits": GENTLE["finally with awaits"],
    **{what: STUBBORN[what] for what in STUBBORN if what != "cleans up for ever"},
    "waits for a program": "import os; os.system('echo in; exec sleep 3600')",
    "a call that does not return": CALL,
}
#: What computes as soon as it is cancelled, and not before.
COMPUTING = {"await", "finally with awaits", "catches BaseException, awaits"}


@attrs.frozen
class Beat:
    """A request that was answered."""

    sent: float
    received: float

    @property
    def seconds(self) -> float:
        return self.received - self.sent


class Asker:
    """Sends one request after the other on a socket of its own."""

    def __init__(
        self, kernel: Kernel, channel: str, type_: str, content: dict[str, Any], **header: str
    ) -> None:
        self.socket = kernel.socket(channel)
        self.beats: list[Beat] = []
        self.waits = False
        self._session = kernel.new_session()
        self._type, self._content, self._header = type_, content, header
        self._id = b""
        self._sent = 0.0

    def send(self) -> None:
        """Send the next request."""
        message = self._session.msg(self._type, self._content)
        message["header"].update(self._header)
        self._id = message["header"]["msg_id"].encode()
        frames = self._session.serialize(message)
        self.waits = True
        self._sent = time.perf_counter()
        self.socket.send_multipart(frames)

    def take(self) -> None:
        """Receive something; see whether it is the reply."""
        frames = self.socket.recv_multipart()
        if any(self._id in frame for frame in frames):
            self.beats.append(Beat(self._sent, time.perf_counter()))
            self.waits = False


@attrs.frozen
class Seen:
    """The replies that came before a deletion, and those that were under way during it."""

    before: list[Beat]
    during: list[Beat]
    deletion: Beat


def delete(
    kernel: Kernel, pulses: dict[str, Asker], subshell: str, timeout: float
) -> dict[str, Seen]:
    """Delete a subshell while these ask without a pause, and for a while before."""
    deletion = Asker(
        kernel,
        "control",
        "delete_subshell_request",
        {"subshell_id": subshell, "timeout": timeout},
    )
    poller = zmq.Poller()
    askers = {asker.socket: asker for asker in (*pulses.values(), deletion)}
    for socket in askers:
        poller.register(socket, zmq.POLLIN)

    def run_until(satisfied: Callable[[], bool], *, beating: bool = True) -> None:
        deadline = time.monotonic() + PATIENCE
        while not satisfied():
            assert time.monotonic() < deadline, "no reply"
            for pulse in pulses.values():
                if beating and not pulse.waits:
                    pulse.send()
            for socket, _ in poller.poll(1000):
                askers[socket].take()

    for pulse in pulses.values():
        pulse.beats.clear()
    run_until(lambda: all(len(pulse.beats) > BEATS for pulse in pulses.values()))
    deletion.send()
    run_until(lambda: not deletion.waits)
    run_until(lambda: not any(pulse.waits for pulse in pulses.values()), beating=False)
    [took] = deletion.beats
    return {
        name: Seen(
            # The first may have met the start of the cell.
            [beat for beat in pulse.beats[1:] if beat.received < took.sent],
            [
                beat
                for beat in pulse.beats
                if beat.received > took.sent and beat.sent < took.received
            ],
            took,
        )
        for name, pulse in pulses.items()
    }


def median(beats: Iterable[Beat]) -> float:
    return statistics.median(beat.seconds for beat in beats)


def measure(
    client: Client, kernel: Kernel, pulses: dict[str, Asker], code: str, deletions: int
) -> dict[str, Seen]:
    """Delete subshells that run such a cell; return what was seen, all together."""
    all_seen: dict[str, list[Seen]] = {name: [] for name in pulses}
    for _ in range(deletions):
        subshell = client.create_subshell()
        cell = client.execute(code, subshell=subshell)
        cell.wait_published("stream", "in")
        for name, seen in delete(kernel, pulses, subshell, CALL_TIMEOUT).items():
            all_seen[name].append(seen)
        if code is CALL:
            client.execute("gate.set()").ok()
        cell.finished()
        if code is CALL:
            client.execute("gate.clear()").ok()
    return {
        name: Seen(
            [beat for each in seen for beat in each.before],
            [beat for each in seen for beat in each.during],
            seen[-1].deletion,
        )
        for name, seen in all_seen.items()
    }


def slow(client: Client, kernel: Kernel, pulses: dict[str, Asker], what: str) -> list[str]:
    """Measure what deletions of such a cell cost others; return who was too slow, in words."""
    code = KINDS[what]
    looping = measure(client, kernel, pulses, LOOP, 1) if what in COMPUTING else {}
    all_seen = measure(client, kernel, pulses, code, 1 if code is CALL else DELETIONS)
    found = []
    for name, seen in all_seen.items():
        if code is CALL:
            took = seen.deletion
            middle = (took.sent + took.received) / 2
            waited = [b for b in seen.during if b.sent < middle and b.received > took.received]
            assert not waited, f"{name} has waited for the end of a deletion"
        undisturbed = median(seen.before)
        if name in looping:
            undisturbed = max(undisturbed, median(looping[name].before))
        ratio = median(seen.during) / undisturbed
        words = f"{name}: {ratio:.2f} times {undisturbed * 1000:.1f} ms, {len(seen.during)} replies"
        print("deleting a subshell whose cell is:", what, "|", words)
        if ratio > MOST:
            found.append(f"{what}: {words}")
    return found


def test_others_are_as_quick_as_ever_during_a_deletion(client: Client, kernel: Kernel) -> None:
    client.execute("import threading; gate = threading.Event()").ok()
    neighbour = client.create_subshell()
    cell = {"code": "pass", "silent": False, "store_history": False}
    pulses = {
        "another subshell": Asker(kernel, "shell", "execute_request", cell, subshell_id=neighbour),
        "control": Asker(kernel, "control", "kernel_info_request", {}),
    }
    for what in KINDS:
        for _ in range(ROUNDS):
            found = slow(client, kernel, pulses, what)
            if not found:
                break
        assert not found
