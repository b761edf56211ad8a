"""libzmq aborts the process if its threads find no descriptors: it is asked before, never after."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import psutil
import pytest

from trio_subshells.sockets._descriptors import check_descriptors, what_to_raise

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no limit on descriptors that one could meet"
)

_AT_THE_LIMIT = """
import os, resource, sys
import trio
from trio_subshells.sockets import open_context, open_heartbeat_device, open_iopub_device
import zmq

def fill(left):
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        for _ in range(left):
            os.close(taken.pop())
    return taken

async def heartbeat():
    async with open_heartbeat_device("tcp://127.0.0.1:0"):
        pass

async def publish():
    # In a forked child, which has no thread of pyzmq's yet.
    with open_context() as context:
        async with open_iopub_device(context, "tcp://127.0.0.1:0") as device:
            device.publisher.publish([bytes(1_000_000)])

def iopub():
    child = os.fork()
    if child == 0:
        try:
            trio.run(publish)
        except BaseException as error:
            os._exit(1 if type(error) is OSError and "too few" in str(error) else 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 1:
        raise OSError("too few")
    if code == 2:
        raise zmq.ZMQError
    assert code == 0, code

def first_socket():
    with open_context() as context, context.socket(zmq.XPUB):
        pass

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
attempt = {"context": first_socket, "heartbeat": lambda: trio.run(heartbeat), "iopub": iopub}[
    sys.argv[1]
]
attempt()  # with room for it, and with all imported that it imports
for left in range(45):
    taken = fill(left)
    try:
        attempt()
    except OSError as error:
        print("refused", flush=True) if "too few" in str(error) else print("refused by the system")
    except zmq.ZMQError:
        print("refused by libzmq", flush=True)
    else:
        print("opened", flush=True)
    finally:
        for descriptor in taken:
            os.close(descriptor)
"""


def test_what_it_checks_is_exact() -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = psutil.Process()
    taken = [os.open(os.devnull, os.O_RDONLY)]
    before = process.num_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="open files"):
            while True:
                taken.append(os.dup(taken[0]))
        for _ in range(7):
            os.close(taken.pop())
        here = process.num_fds()
        check_descriptors(7, "seven")
        words = rf"no room for eight: .* {before + 100} file descriptors .*\(ulimit -n\)"
        with pytest.raises(OSError, match=words) as caught:
            check_descriptors(8, "eight")
        assert caught.value.errno == errno.EMFILE
        assert process.num_fds() == here
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


def test_another_trouble_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "devnull", "no such device")
    with pytest.raises(FileNotFoundError):
        check_descriptors(1, "one")


def test_the_limits_have_names() -> None:
    assert "ulimit -n" in what_to_raise(errno.EMFILE)
    assert "fs.file-max" in what_to_raise(errno.ENFILE)


@pytest.mark.parametrize("what", ["context", "heartbeat", "iopub"])
def test_a_first_socket_without_descriptors_is_an_error_and_no_abort(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", _AT_THE_LIMIT, what],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == 45
    assert outcomes[0].startswith("refused")
    assert outcomes[-1] == "opened"
    assert "refused" in outcomes
