"""Trials of what a kernel has to survive: hostile input, limits, readers that don't read, forks.

Like those of `_trials`, which they are made with.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import zmq
from _client import Client, Message, ProbeFailed
from _desk import Desk
from _trials import Lab, Verdict, ask_both, duration, growth, in_words, outcome
from soak import soak, weigh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _kernels import RunningKernel

#: The names of the five ports in a connection file.
_CHANNELS = ("shell", "control", "stdin", "iopub", "hb")

#: Seconds that a kernel gets to answer again.
PATIENCE = 60.0


# Hostile input


def malformed(client: Client) -> Iterator[list[bytes]]:
    """Yield messages without end, each wrong in its own way; those that can be are signed."""
    header = json.loads(client.request("execute_request", {}).frames[2])
    content = b'{"code": "pass"}'

    def message(**fields: Any) -> list[bytes]:
        return [json.dumps({**header, **fields}).encode(), b"{}", b"{}", content]

    good = message()
    cases: list[list[bytes]] = [
        [],
        [b""],
        [b"garbage" * 20],
        client.signed(good)[1:],
        client.signed(good)[:4],
        [b"<IDS|MSG>", b"0" * 64, *good],
        [b"<IDS|MSG>", b"", *good],
        client.signed([b"\xff\xfe", b"{}", b"{}", content]),
        client.signed([b"{", b"{}", b"{}", content]),
        client.signed([b"[]", b"{}", b"{}", content]),
        client.signed([b"[" * 100_000, b"{}", b"{}", content]),
        client.signed([*good[:3], b"\xc3("]),
        client.signed([*good[:3], b"[]"]),
        client.signed([*good[:3], b'{"code": 1}']),
        client.signed([*good[:3], b"{}"]),
        client.signed([good[0], b"[]", b"[]", content]),
        client.signed(message(msg_type=1)),
        client.signed(message(msg_type="no_such_request")),
        client.signed(message(msg_type="execute_reply")),
        client.signed(message(msg_type="status")),
        client.signed(message(msg_id=None)),
        client.signed(message(session=[])),
        client.signed(message(subshell_id=7)),
        client.signed(message(subshell_id="nobody")),
        client.signed([b"{}", b"{}", b"{}", b"{}"]),
    ]
    number = 0
    while True:
        for frames in cases:
            if len(frames) == 6 and frames[2] == good[0] and frames[1] != b"0" * 64:
                # A kernel may drop a message that it has seen before: make it a new one.
                number += 1
                parts = [message(msg_id=f"malformed-{number}")[0], *frames[3:]]
                yield client.signed(parts)
            else:
                yield frames or [b""]


def flooding(lab: Lab) -> Verdict:
    """Send malformed messages on shell and control, then ask whether anybody is there."""
    kernel = lab.start()
    attacker = lab.connect(kernel)
    client = kernel.client
    before = kernel.resident_megabytes()
    half = lab.effort.malformed // 2
    begin = time.perf_counter()
    for channel in (attacker.shell, attacker.control):
        for _, frames in zip(range(half), malformed(attacker), strict=False):
            channel.send_multipart(frames)
            while channel.poll(0):  # what it answers is read, and not looked at
                channel.recv_multipart()
    sent = time.perf_counter() - begin
    answers = ask_both(client, PATIENCE)
    time.sleep(1)
    grown = kernel.resident_megabytes() - before
    facts = {"sending": sent, "answers": answers, "megabytes": grown}
    return Verdict(f"{in_words(answers, PATIENCE)}; {growth(grown)}", facts)


def _after(lab: Lab, kernel: RunningKernel, attack: Callable[[], str]) -> Verdict:
    """Attack, then see whether the kernel answers, and what it has kept."""
    memory, descriptors = kernel.resident_megabytes(), weigh(kernel, 0, 0).descriptors
    remark = attack()
    answers = ask_both(kernel.client, 20)
    time.sleep(1)
    facts: dict[str, Any] = {
        "answers": answers,
        "megabytes": kernel.resident_megabytes() - memory,
        "descriptors": weigh(kernel, 0, 0).descriptors - descriptors,
        "remark": remark,
    }
    words = [remark] if remark else []
    words += [in_words(answers, 20), growth(facts["megabytes"])]
    if facts["descriptors"] > 0:
        words.append(f"{facts['descriptors']} descriptors more")
    return Verdict("; ".join(words), facts)


def big_frame(lab: Lab) -> Verdict:
    """Send one frame of 100 MB that is no message at all."""
    kernel = lab.start()
    attacker = lab.connect(kernel)

    def attack() -> str:
        attacker.shell.send(bytes(100_000_000))
        return ""

    return _after(lab, kernel, attack)


def replaying(lab: Lab) -> Verdict:
    """Send the very same frames of an execute request ten times."""
    kernel = lab.start()
    client = kernel.client
    count = kernel.directory / "count"
    request = client.execute_request(f"with open({str(count)!r}, 'a') as _f: _f.write('x')")

    def attack() -> str:
        for _ in range(10):
            client.shell.send_multipart(request.frames)
        client.execute("pass")
        executed = len(count.read_text())
        return f"executed {executed} time{'s' * (executed != 1)}"

    return _after(lab, kernel, attack)


def scanning(lab: Lab) -> Verdict:
    """Connect to each port and close, 200 times, then speak HTTP and garbage to each."""
    kernel = lab.start()
    where = [(kernel.connection["ip"], kernel.connection[f"{name}_port"]) for name in _CHANNELS]

    def attack() -> str:
        for address in where:
            for _ in range(200):
                socket.create_connection(address, timeout=5).close()
            for text in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", os.urandom(65536)):
                with socket.create_connection(address, timeout=5) as connection:
                    connection.settimeout(1)
                    with suppress(OSError):  # that it hangs up is one of the right answers
                        connection.sendall(text)
                        connection.recv(4096)
        return ""

    return _after(lab, kernel, attack)


def crowding(lab: Lab) -> Verdict:
    """Let many clients come, ask, and go without reading the answer."""
    kernel = lab.start()

    def attack() -> str:
        for _ in range(lab.effort.clients):
            client = lab.admit(kernel.connect())
            client.shell.send_multipart(client.request("kernel_info_request", {}).frames)
            # It goes once its question has left, or hasn't for a while.
            client.shell.close(linger=100)
            client.close()
            kernel.client.check()
        return ""

    return _after(lab, kernel, attack)


# Slow and vanished readers


def not_reading(lab: Lab) -> Verdict:
    """Print 100 MB while a subscriber of iopub doesn't read; another client reads all."""
    kernel = lab.start()
    client, lazy = kernel.client, lab.connect(kernel)
    ip, port = kernel.connection["ip"], kernel.connection["iopub_port"]
    lazy.iopub.close(linger=0)
    stuck = lazy.shell.context.socket(zmq.SUB)
    stuck.rcvhwm = 1
    stuck.rcvbuf = 4096
    stuck.subscribe(b"")
    stuck.connect(f"tcp://{ip}:{port}")
    stuck.poll(5000)  # it is welcomed by some kernels
    client.execute("pass")
    stuck.poll(2000)  # and told of others' cells by all
    before = kernel.resident_megabytes()
    request = client.execute_request("for _ in range(1000): print('x' * 99_999)")
    begin = time.perf_counter()
    client.shell.send_multipart(request.frames)
    printed = 0
    with client.within(60):
        while True:
            message = client.receive_for(client.iopub, request)
            if message.msg_type == "stream":
                printed += len(message.content["text"])
            elif b'"idle"' in message.raw_content:
                break
        client.receive_for(client.shell, request)
    seconds = time.perf_counter() - begin
    answers = ask_both(client, 20)
    time.sleep(1)
    grown = kernel.resident_megabytes() - before
    stuck.close(linger=0)
    time.sleep(1)
    later = kernel.resident_megabytes() - before
    facts = {
        "seconds": seconds,
        "printed": printed,
        "answers": answers,
        "megabytes": grown,
        "megabytes when it has gone": later,
    }
    text = (
        f"{growth(grown)}, {growth(later)} when it has gone; the other reader got "
        f"{printed / 1e6:.0f} MB in {duration(seconds)}"
    )
    return Verdict(text, facts)


def leaving_replies(lab: Lab) -> Verdict:
    """Ask for 100 MB of replies on shell and read none of them."""
    kernel = lab.start()
    client, lazy = kernel.client, lab.connect(kernel)
    lazy.shell.close(linger=0)
    stuck = lazy.control.context.socket(zmq.DEALER)
    stuck.rcvhwm = 1
    stuck.rcvbuf = 4096
    stuck.sndtimeo = 10_000
    stuck.connect(f"tcp://{kernel.connection['ip']}:{kernel.connection['shell_port']}")
    client.execute("big = 'x' * 1_000_000")
    before = kernel.resident_megabytes()
    for _ in range(100):
        content = {
            "code": "",
            "silent": True,
            "store_history": False,
            "user_expressions": {"it": "big"},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        stuck.send_multipart(lazy.request("execute_request", content).frames)
    client.execute("pass")  # the hundred have been served
    answers = ask_both(client, 20)
    time.sleep(1)
    grown = kernel.resident_megabytes() - before
    stuck.close(linger=0)
    time.sleep(1)
    later = kernel.resident_megabytes() - before
    facts = {"answers": answers, "megabytes": grown, "megabytes when it has gone": later}
    text = f"{in_words(answers, 20)}; {growth(grown)}, {growth(later)} when it has gone"
    return Verdict(text, facts)


# Limits

_LIMITED = """\
import os, resource, sys
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
os.execvp(sys.argv[3], sys.argv[3:])
"""


def filling(lab: Lab, hard: int | None) -> Verdict:
    """Create subshells until the kernel refuses, with 1,024 descriptors allowed at first."""
    import resource

    most = lab.effort.subshells
    limit = hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    kernel = lab.start(launcher=(sys.executable, "-c", _LIMITED, "1024", str(limit)))
    client = kernel.client
    client.delete_subshell(client.create_subshell())
    descriptors = weigh(kernel, 0, 0).descriptors
    desk = Desk()
    ids: list[str] = []
    begin = time.perf_counter()
    refusal: str | None = None
    said = ""
    try:
        while len(ids) < most and refusal is None:
            creation = desk.send(client.control, client.request("create_subshell_request", {}))
            desk.wait(creation, seconds=10)
            client.check()
            if outcome(creation.reply) == "ok" and creation.reply is not None:
                ids.append(str(creation.reply.content["subshell_id"]))
            else:
                refusal = outcome(creation.reply) if creation.reply else "no reply in 10 s"
                if creation.reply is not None:
                    said = str(creation.reply.content.get("evalue", ""))
        seconds = time.perf_counter() - begin
        each = (weigh(kernel, 0, 0).descriptors - descriptors) / max(len(ids), 1)
        facts: dict[str, Any] = {
            "subshells": len(ids),
            "seconds": seconds,
            "descriptors each": each,
            "refusal": refusal,
            "message": said,
        }
        words = [f"{len(ids)} at {each:.1f} descriptors each in {duration(seconds)}"]
        if refusal is not None:
            words.append(f"then {refusal}")
        used = desk.send(client.shell, client.execute_request("pass", ids[0]))
        desk.wait(used, seconds=10)
        answers = ask_both(client, 10)
        deletion = desk.send(
            client.control, client.request("delete_subshell_request", {"subshell_id": ids[-1]})
        )
        desk.wait(deletion, seconds=10)
        anew = desk.send(client.control, client.request("create_subshell_request", {}))
        desk.wait(anew, seconds=10)
        client.check()
    except ProbeFailed as error:
        return Verdict(f"after {len(ids)}: {error!s:.120}", {"subshells": len(ids)})
    facts["first subshell"] = outcome(used.reply)
    facts["answers"] = answers
    facts["create after a delete"] = outcome(anew.reply)
    if facts["first subshell"] != "ok" or None in answers.values():
        words.append(f"first subshell: {facts['first subshell']}, {in_words(answers, 10)}")
    if refusal is not None:
        words.append(f"after a delete: create {facts['create after a delete']}")
    return Verdict("; ".join(words), facts)


def repeating(lab: Lab) -> Verdict:
    """Create, execute and delete in rounds; compare what the process holds before and after."""
    kernel = lab.start()
    for _ in soak(kernel, rounds=100, every=100, cell="pass"):
        continue  # what is made on first use exists then
    time.sleep(1)
    before, after = soak(kernel, rounds=lab.effort.rounds, every=lab.effort.rounds, cell="pass")
    time.sleep(1)
    after = weigh(kernel, after.rounds, 0)
    facts = {
        "rounds": after.rounds,
        "megabytes": after.megabytes - before.megabytes,
        "descriptors": after.descriptors - before.descriptors,
        "threads": after.threads - before.threads,
    }
    text = (
        f"{growth(facts['megabytes'])}, {facts['descriptors']:+d} descriptors, "
        f"{facts['threads']:+d} threads"
    )
    return Verdict(text, facts)


# Forks

_FORK_AND_EXIT = """\
import os, sys
_pid = os.fork()
if _pid == 0:
    print('from the child')
    sys.stdout.flush()
    os._exit(0)
_done = os.waitpid(_pid, 0)
"""

_FORK_AND_GO_ON = """\
import os, pathlib
_pid = os.fork()
if _pid:
    pathlib.Path({pid!r}).write_text(str(_pid))
print('from the child' if _pid == 0 else 'from the parent')
"""

_MULTIPROCESSING = """\
import multiprocessing
_p = multiprocessing.get_context('fork').Process(
    target=print, args=('from the child',), kwargs=dict(flush=True))
_p.start()
_p.join(5)
_code = _p.exitcode
_p.kill()
print('exit code', _code)
"""

#: Cells that fork: a title and the code for each key.
FORKS = {
    "fork-exit": ("`os.fork`; the child prints and leaves by `os._exit`", _FORK_AND_EXIT),
    "fork-on": ("`os.fork`; the child runs on to the end of the cell", _FORK_AND_GO_ON),
    "multiprocessing": ("`multiprocessing` by fork; the child prints", _MULTIPROCESSING),
}


def forking(code: str, lab: Lab, *, subshell: bool) -> Verdict:
    """Execute a cell that forks, and see where the child's words go and what works afterwards."""
    kernel = lab.start()
    client = kernel.client
    where = client.create_subshell() if subshell else None
    client.execute("pass", where)
    client.drain()
    marker = kernel.directory / "pid"
    request = client.execute_request(code.format(pid=str(marker)), where)
    client.shell.send_multipart(request.frames)
    texts: list[str] = []
    replies = garbage = idles = 0
    limit = time.monotonic() + 3
    poller = zmq.Poller()
    poller.register(client.shell, zmq.POLLIN)
    poller.register(client.iopub, zmq.POLLIN)
    # For all of these seconds: what the child sends may come late, and twice.
    while (left := limit - time.monotonic()) > 0:
        for channel, _ in poller.poll(int(left * 1000) + 1):
            frames = channel.recv_multipart()
            if not client.is_signed(frames):
                garbage += 1
            elif not Message.of(frames).answers(request):
                continue
            elif channel is client.shell:
                replies += 1
            elif b'"idle"' in frames[-1]:
                idles += 1
            elif b'"stream"' in b"".join(frames) and b'"text"' in frames[-1]:
                texts.append(json.loads(frames[-1])["text"])
    arrived = "from the child" in "".join(texts)
    answers = ask_both(client, 10)
    log = (kernel.directory / "output.txt").read_text(errors="replace")
    lives = False
    if marker.exists():
        pid = int(marker.read_text())
        lives = pid in [process.pid for process in kernel.strays()]
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    facts = {
        "texts": texts,
        "replies": replies,
        "idles": idles,
        "garbage": garbage,
        "answers": answers,
        "child lives": lives,
    }
    words = [
        "printed in its cell"
        if arrived
        else "printed on the kernel's own stdout"
        if "from the child" in log
        else "its words are lost"
    ]
    if replies != 1 or idles != 1:
        words.append(f"{replies} replies, {idles} idles")
    if garbage:
        words.append(f"{garbage} messages that are none")
    if lives:
        words.append("the child lives on")
    words.append(in_words(answers, 10))
    return Verdict("; ".join(words), facts)


# CURVE


def encrypted(lab: Lab) -> Verdict:
    """Start with keys in the connection file; then come without encryption, and with other keys."""
    kernel = lab.start(curve=True)
    answers = ask_both(kernel.client, 10)
    words = [f"with the keys: {in_words(answers, 10)}"]
    facts: dict[str, Any] = {"with the keys": answers}
    for name, client in kernel.connect_strangers().items():
        answers = facts[name] = ask_both(lab.admit(client), 2)
        words.append(f"{name}: {in_words(answers, 2)}")
    return Verdict("; ".join(words), facts)
