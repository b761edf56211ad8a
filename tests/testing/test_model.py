"""The specification holds for a kernel that is used in every way, and sees what breaks it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio

from trio_subshells.testing import (
    Client,
    ProtocolViolation,
    check_protocol,
    explore,
    simulated_kernel,
)
from trio_subshells.wire import Message, WireSession

from .words import WordsKernel

PATIENCE = 60
"""Virtual seconds after which what runs is interrupted: nothing here takes so long by itself."""


async def use(kernel_under_test: object, plan: int) -> None:
    """A random use of a kernel; then everything is ended, and compared with the specification."""
    kernel = kernel_under_test
    client: Client = kernel.client  # type: ignore[attr-defined]
    choice = random.Random(plan)
    subshells: list[str] = []
    for _ in range(choice.randint(3, 8)):
        where = choice.choice([None, *subshells])
        match choice.choice(["create", "execute", "execute", "execute", "interrupt", "delete"]):
            case "create":
                subshells.append(await kernel.create_subshell())  # type: ignore[attr-defined]
            case "execute":
                client.execute_soon(choice.choice(["x", "await", "block", "fail"]), subshell=where)
            case "interrupt":
                client.control_soon("interrupt_request")
            case "delete" if subshells:
                client.control_soon("delete_subshell_request", subshell_id=choice.choice(subshells))
    for subshell in subshells:
        client.control_soon("delete_subshell_request", subshell_id=subshell)
    for exchange in list(client.exchanges):
        while not (exchange.replies and "idle" in exchange.states):
            with trio.move_on_after(PATIENCE):
                await exchange.done()
                break
            await kernel.interrupt()  # type: ignore[attr-defined]
    await kernel.shutdown()  # type: ignore[attr-defined]
    check_protocol(client)


@pytest.mark.parametrize("plan", range(8))
def test_it_holds_for_random_uses(plan: int) -> None:
    async def body() -> None:
        async with simulated_kernel(WordsKernel(nap=1e6)) as kernel:
            await use(kernel, plan)

    explore(body, schedules=25)


class Script:
    """A client that has seen what a test wants it to have seen."""

    def __init__(self) -> None:
        self.session = WireSession(b"")
        self.client = Client(self.session, lambda channel: self)  # type: ignore[arg-type]
        for channel in ("shell", "control", "stdin", "iopub"):
            self.client._sockets[channel] = self  # type: ignore[assignment, index]

    def send_nowait(self, frames: object) -> None:
        """To nobody."""

    def execute(self, code: str, subshell: str | None = None) -> Message:
        return self.client.execute_soon(code, subshell=subshell).message

    def control(self, msg_type: str, **content: object) -> Message:
        return self.client.control_soon(msg_type, **content).message

    def says(
        self, request: Message, msg_type: str, channel: str = "iopub", **content: object
    ) -> None:
        message = self.session.message(msg_type, content, parent=request.header)
        self.client._take(channel, message)  # type: ignore[arg-type]

    def busy(self, request: Message) -> None:
        self.says(request, "status", execution_state="busy")

    def idle(self, request: Message) -> None:
        self.says(request, "status", execution_state="idle")

    def reply(self, request: Message, status: str = "ok", **content: object) -> None:
        msg_type = request.header.msg_type.replace("_request", "_reply")
        self.says(request, msg_type, "shell", status=status, **content)

    def served(self, request: Message, status: str = "ok", count: int = 1) -> None:
        self.busy(request)
        if status != "aborted":
            self.says(request, "execute_input", code="", execution_count=count)
        self.reply(request, status, execution_count=count)
        self.idle(request)


def two_replies(script: Script) -> None:
    request = script.execute("x")
    script.served(request)
    script.reply(request)


def no_reply(script: Script) -> None:
    request = script.execute("x")
    script.busy(request)
    script.idle(request)


def never_idle(script: Script) -> None:
    request = script.execute("x")
    script.busy(request)
    script.reply(request)


def late_output(script: Script) -> None:
    request = script.execute("x")
    script.served(request)
    script.says(request, "stream", name="stdout", text="late")


def reply_of_another_type(script: Script) -> None:
    request = script.execute("x")
    script.busy(request)
    script.says(request, "inspect_reply", "shell", status="ok")
    script.idle(request)


def two_at_once(script: Script) -> None:
    first, second = script.execute("x"), script.execute("y")
    for request in (first, second):
        script.busy(request)
        script.says(request, "execute_input", code="", execution_count=1)
    for request in (first, second):
        script.reply(request)
        script.idle(request)


def aborted_for_nothing(script: Script) -> None:
    script.served(script.execute("x"))
    script.served(script.execute("y"), "aborted")


def count_goes_back(script: Script) -> None:
    script.served(script.execute("x"), count=2)
    script.served(script.execute("y"), count=1)


def the_same_id_twice(script: Script) -> None:
    for _ in range(2):
        request = script.control("create_subshell_request")
        script.busy(request)
        script.reply(request, subshell_id="a")
        script.idle(request)


def done_after_the_delete(script: Script) -> None:
    for msg_type, content in (("create", {}), ("delete", {"subshell_id": "a"})):
        request = script.control(f"{msg_type}_subshell_request", **content)
        script.busy(request)
        script.reply(request, subshell_id="a")
        script.idle(request)
    script.served(script.execute("x", "a"))


def an_answer_to_nothing(script: Script) -> None:
    stranger = WireSession(b"").message("execute_request", {})
    script.reply(stranger)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (two_replies, "2 replies"),
        (no_reply, "0 replies"),
        (never_idle, "busy"),
        (late_output, "after it was idle"),
        (reply_of_another_type, "inspect_reply"),
        (two_at_once, "before"),
        (aborted_for_nothing, "aborted"),
        (count_goes_back, "count"),
        (the_same_id_twice, "twice"),
        (done_after_the_delete, "after the end"),
        (an_answer_to_nothing, "nobody has asked"),
    ],
)
async def test_what_breaks_it_is_seen(breaks: Callable[[Script], None], says: str) -> None:
    script = Script()
    breaks(script)
    with pytest.raises(ProtocolViolation, match=says):
        check_protocol(script.client)


async def test_what_is_as_it_should_be_is_not() -> None:
    script = Script()
    script.served(script.execute("x"), "error", count=1)
    script.served(script.execute("y"), "aborted", count=1)
    script.served(script.execute("z"), count=2)
    check_protocol(script.client)
    request = script.execute("on its way")
    with pytest.raises(ProtocolViolation):
        check_protocol(script.client)
    check_protocol(script.client, complete=False)
    script.busy(request)
    check_protocol(script.client, complete=False)
