"""The specification holds for healthy kernels (`tests/simulated`), and sees what breaks it.

Here are clients that have seen what no kernel may show.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest

from trio_subshells.testing import Client, ProtocolViolation, check_protocol
from trio_subshells.testing._client import Moment
from trio_subshells.testing._registry import Lifetime, Look, contradictions
from trio_subshells.wire import Message, WireSession


class Script:
    """A client that has seen what a test wants it to have seen, of a simulated kernel."""

    def __init__(self, kernel: Script | None = None) -> None:
        self.session = WireSession(b"")
        self.client = Client(self.session, lambda channel: self)  # type: ignore[arg-type]
        for channel in ("shell", "control", "stdin", "iopub"):
            self.client._sockets[channel] = self  # type: ignore[assignment, index]
        self.listeners = [self] if kernel is None else kernel.listeners
        if kernel is not None:
            kernel.listeners.append(self)
        self.numbers = itertools.count(1) if kernel is None else kernel.numbers

    def send_nowait(self, frames: object) -> None:
        """To nobody."""

    def execute(self, code: str, subshell: str | None = None, **content: object) -> Message:
        return self.client.execute_soon(code, subshell=subshell, **content).message  # type: ignore[arg-type]

    def control(self, msg_type: str, **content: object) -> Message:
        return self.client.control_soon(msg_type, **content).message

    def says(
        self, request: Message, msg_type: str, channel: str = "iopub", **content: object
    ) -> Message:
        """The kernel says it: on iopub to all clients."""
        message = self.session.message(msg_type, content, parent=request.header)
        number = next(self.numbers)
        for each in self.listeners if channel == "iopub" else [self]:
            each.client.sent[message.header.msg_id] = number
            each.client._take(channel, message)  # type: ignore[arg-type]
        return message

    def busy(self, request: Message) -> None:
        self.says(request, "status", execution_state="busy")

    def idle(self, request: Message) -> None:
        self.says(request, "status", execution_state="idle")

    def reply(self, request: Message, status: str = "ok", **content: object) -> None:
        msg_type = request.header.msg_type.replace("_request", "_reply")
        channel = (
            "control" if self.client._by_id[request.header.msg_id].channel == "control" else "shell"
        )
        if status == "error":
            content = {"ename": "E", "evalue": "", "traceback": [], **content}
        elif msg_type == "execute_reply" and status == "ok":
            content = {"user_expressions": {}, "payload": [], **content}
        self.says(request, msg_type, channel, status=status, **content)

    def begin(self, request: Message, count: int = 1) -> None:
        self.busy(request)
        code = request.content["code"]
        self.says(request, "execute_input", code=code, execution_count=count)

    def end(self, request: Message, count: int = 1, ename: str | None = None) -> None:
        if ename is None:
            self.reply(request, execution_count=count)
        else:
            error = {"ename": ename, "evalue": "", "traceback": []}
            self.says(request, "error", **error)
            self.reply(request, "error", execution_count=count, **error)
        self.idle(request)

    def served(self, request: Message, count: int = 1, ename: str | None = None) -> None:
        self.begin(request, count)
        self.end(request, count, ename)

    def refused(self, request: Message, ename: str) -> None:
        self.busy(request)
        self.reply(request, "error", ename=ename)
        self.idle(request)

    def aborted(self, request: Message) -> None:
        self.busy(request)
        self.reply(request, "aborted")
        self.idle(request)

    def controlled(self, request: Message, **content: object) -> None:
        self.busy(request)
        self.reply(request, **content)  # type: ignore[arg-type]
        self.idle(request)

    def create(self, subshell: str = "a") -> None:
        self.controlled(self.control("create_subshell_request"), subshell_id=subshell)

    def delete(self, subshell: str = "a") -> None:
        self.controlled(self.control("delete_subshell_request", subshell_id=subshell))

    def interrupt(self, **content: object) -> None:
        self.controlled(self.control("interrupt_request", **content))

    def list(self, *subshells: str) -> None:
        self.controlled(self.control("list_subshell_request"), subshell_id=[*subshells])

    def prompt(self, request: Message) -> None:
        self.says(request, "input_request", "stdin", prompt="", password=False)


# ----------------------------------------------------------------------------- one request


def two_replies(script: Script) -> None:
    request = script.execute("x")
    script.served(request)
    script.reply(request, execution_count=1)


def no_reply(script: Script) -> None:
    request = script.execute("x")
    script.begin(request)
    script.idle(request)


def never_idle(script: Script) -> None:
    request = script.execute("x")
    script.begin(request)
    script.reply(request, execution_count=1)


def busy_twice(script: Script) -> None:
    request = script.execute("x")
    script.busy(request)
    script.served(request)


def output_before_busy(script: Script) -> None:
    request = script.execute("x")
    script.says(request, "stream", name="stdout", text="early")
    script.served(request)


def listens_from_here(script: Script) -> None:
    """As `Client.listen` lets a client that has asked before."""
    script.listeners.append(script)
    script.client.unread.add("iopub")
    script.client.late = Moment()


def late_output(script: Script) -> None:
    request = script.execute("x")
    script.served(request)
    script.says(request, "stream", name="stdout", text="late")


def idle_for_one_who_listens_late(script: Script) -> None:
    script.listeners.remove(script)
    listens_from_here(script)
    request = script.execute("x")
    script.reply(request, execution_count=1)
    script.idle(request)


def output_of_nobody(script: Script) -> None:
    message = script.session.message("stream", {"name": "stdout", "text": "whose?"})
    script.client._take("iopub", message)


def reply_of_another_type(script: Script) -> None:
    request = script.execute("x")
    script.begin(request)
    script.says(request, "inspect_reply", "shell", status="ok")
    script.idle(request)


def reply_on_another_channel(script: Script) -> None:
    request = script.control("list_subshell_request")
    script.busy(request)
    script.says(request, "list_subshell_reply", "shell", status="ok", subshell_id=[])
    script.idle(request)


def a_status_of_its_own(script: Script) -> None:
    request = script.control("interrupt_request")
    script.busy(request)
    script.reply(request, "fine")
    script.idle(request)


def half_a_reply(script: Script) -> None:
    request = script.execute("x")
    script.begin(request)
    script.says(request, "execute_reply", "shell", status="ok", execution_count=1)
    script.idle(request)


def an_answer_to_nothing(script: Script) -> None:
    stranger = WireSession(b"").message("execute_request", {})
    script.says(stranger, "execute_reply", "shell", status="ok")


def silent_and_heard(script: Script) -> None:
    request = script.execute("x", silent=True, store_history=False)
    script.busy(request)
    script.says(request, "stream", name="stdout", text="psst")
    script.reply(request, execution_count=0)
    script.idle(request)


def done_without_a_beginning(script: Script) -> None:
    request = script.execute("x")
    script.busy(request)
    script.reply(request, execution_count=1)
    script.idle(request)


def an_error_that_is_not_shown(script: Script) -> None:
    request = script.execute("x")
    script.begin(request)
    script.reply(request, "error", execution_count=1)
    script.idle(request)


# ------------------------------------------------------------------------------- one shell


def two_at_once(script: Script) -> None:
    first, second = script.execute("x"), script.execute("y")
    script.begin(first)
    script.begin(second, 2)
    script.end(first)
    script.end(second, 2)


def the_second_first(script: Script) -> None:
    first, second = script.execute("x"), script.execute("y")
    script.served(second, 1)
    script.served(first, 2)


def the_second_answered_first(script: Script) -> None:
    first = script.execute("x")
    second = script.client.request("complete_request", {"code": "", "cursor_pos": 0}).message
    script.begin(first)
    script.says(first, "status", execution_state="idle")
    script.busy(second)
    script.reply(second)
    script.reply(first, execution_count=1)
    script.idle(second)


def a_list_is_aborted(script: Script) -> None:
    request = script.control("list_subshell_request")
    script.busy(request)
    script.reply(request, "aborted")
    script.idle(request)


def what_is_no_cell_is_aborted(script: Script) -> None:
    first = script.execute("x")
    second = script.client.request("complete_request", {"code": "", "cursor_pos": 0}).message
    script.served(first, ename="E")
    script.aborted(second)


def aborted_for_nothing(script: Script) -> None:
    script.served(script.execute("x"))
    script.aborted(script.execute("y"))


def aborted_after_the_error_was_known(script: Script) -> None:
    script.served(script.execute("x"), ename="E")
    script.aborted(script.execute("y"))


def aborted_though_nobody_wanted_that(script: Script) -> None:
    first, second = script.execute("x", stop_on_error=False), script.execute("y")
    script.served(first, ename="E")
    script.aborted(second)


def aborted_by_another_shell(script: Script) -> None:
    script.create()
    first, second = script.execute("x"), script.execute("y", "a")
    script.served(first, ename="E")
    script.aborted(second)


def aborted_after_one_was_served(script: Script) -> None:
    first, second, third = (script.execute(code) for code in "xyz")
    script.served(first, ename="E")
    script.served(second, 2)
    script.aborted(third)


def executed_though_aborted(script: Script) -> None:
    first, second = script.execute("x"), script.execute("y")
    script.served(first, ename="E")
    script.begin(second, 2)
    script.reply(second, "aborted")
    script.idle(second)


def count_goes_back(script: Script) -> None:
    script.served(script.execute("x"), 1)
    script.served(script.execute("y"), 1)


def count_jumps(script: Script) -> None:
    script.served(script.execute("x"), 2)


def counted_though_not_wanted(script: Script) -> None:
    script.served(script.execute("x", store_history=False), 1)


def another_count_in_the_reply(script: Script) -> None:
    request = script.execute("x")
    script.begin(request, 1)
    script.end(request, 2)


# ---------------------------------------------------------------------- what has ended a cell


def interrupted_by_nobody(script: Script) -> None:
    script.served(script.execute("x"), ename="KeyboardInterrupt")


def interrupted_before_it_was_sent(script: Script) -> None:
    script.interrupt()
    script.served(script.execute("x"), ename="KeyboardInterrupt")


def two_interrupted_by_one(script: Script) -> None:
    first, second = script.execute("x", stop_on_error=False), script.execute("y")
    script.begin(first)
    script.interrupt()
    script.end(first, ename="KeyboardInterrupt")
    script.served(second, 2, ename="KeyboardInterrupt")


def interrupted_instead_of_another(script: Script) -> None:
    script.create()
    request = script.execute("x")
    script.begin(request)
    script.interrupt(subshell_id="a")
    script.end(request, ename="KeyboardInterrupt")


def out_of_time_without_a_timeout(script: Script) -> None:
    script.served(script.execute("x"), ename="CellTimeout")


def out_of_time_too_early(script: Script) -> None:
    request = script.client.execute_soon("x", timeout=3600).message
    script.served(request, ename="CellTimeout")


def deleted_by_nobody(script: Script) -> None:
    script.create()
    script.served(script.execute("x", "a"), ename="SubshellDeleted")


def shut_down_by_nobody(script: Script) -> None:
    script.served(script.execute("x"), ename="KernelShutdown")


def occupied_by_nothing(script: Script) -> None:
    script.refused(script.execute("x"), "ShellOccupied")


def unknown_though_it_is_there(script: Script) -> None:
    script.create()
    script.refused(script.execute("x", "a"), "UnknownSubshell")


def refused_by_the_main_shell(script: Script) -> None:
    script.refused(script.execute("x"), "UnknownSubshell")


# -------------------------------------------------------------------------------- subshells


def the_same_id_twice(script: Script) -> None:
    script.create()
    script.create()


def deleted_twice(script: Script) -> None:
    script.create()
    script.delete()
    script.delete()


def done_after_the_delete(script: Script) -> None:
    script.create()
    script.delete()
    script.served(script.execute("x", "a"))


def sent_after_the_delete(script: Script) -> None:
    script.create()
    request, delete = (
        script.execute("x", "a"),
        script.control("delete_subshell_request", subshell_id="a"),
    )
    script.begin(request)
    script.busy(delete)
    script.says(request, "error", ename="SubshellDeleted", evalue="", traceback=[])
    script.reply(request, "error", ename="SubshellDeleted", execution_count=1)
    script.reply(delete)
    script.idle(request)
    script.idle(delete)


def not_in_the_list(script: Script) -> None:
    script.create()
    script.list()


def in_the_list_after_its_end(script: Script) -> None:
    script.create()
    script.delete()
    script.list("a")


def gone_and_back_again(script: Script) -> None:
    script.create()
    delete = script.control("delete_subshell_request", subshell_id="a")
    script.list()
    script.list("a")
    script.controlled(delete)


def deleted_and_unknown(script: Script) -> None:
    script.create()
    delete = script.control("delete_subshell_request", subshell_id="a")
    script.refused(script.control("interrupt_request", subshell_id="a"), "UnknownSubshell")
    script.list("a")
    script.controlled(delete)


# -------------------------------------------------------------------------- prompts, shutdown


def asked_for_another_client(script: Script) -> None:
    other = Script(script)
    request = other.execute("x")
    script.says(request, "input_request", "stdin", prompt="", password=False)
    other.served(request)


def asked_though_not_allowed(script: Script) -> None:
    request = script.execute("x", allow_stdin=False)
    script.begin(request)
    script.prompt(request)
    script.end(request)


def asked_after_the_answer(script: Script) -> None:
    request = script.execute("x")
    script.served(request)
    script.prompt(request)


def answered_after_the_shutdown(script: Script) -> None:
    request, shutdown = script.execute("x"), script.control("shutdown_request")
    script.begin(request)
    script.controlled(shutdown)
    script.end(request, ename="KernelShutdown")


def lost_at_the_shutdown(script: Script) -> None:
    request, shutdown = script.execute("x"), script.control("shutdown_request")
    script.begin(request)
    script.controlled(shutdown)


# -------------------------------------------------------------------------------- two clients


def in_different_orders(script: Script) -> None:
    other = Script(script)
    script.served(script.execute("x"))
    heard = other.client.heard
    heard[1], heard[2] = heard[2], heard[1]


def one_has_missed_something(script: Script) -> None:
    other = Script(script)
    script.served(script.execute("x"))
    del other.client.heard[1]


def two_clients_at_once(script: Script) -> None:
    other = Script(script)
    first, second = script.execute("x"), other.execute("y")
    script.begin(first)
    other.begin(second, 2)
    script.end(first)
    other.end(second, 2)


BREAKS: list[tuple[Callable[[Script], None], str]] = [
    (two_replies, "2 replies"),
    (no_reply, "0 replies"),
    (never_idle, "made the kernel busy$"),
    (busy_twice, "made the kernel busy, busy, idle"),
    (output_before_busy, "published stream before it was busy"),
    (late_output, "after it was idle"),
    (idle_for_one_who_listens_late, "made the kernel idle"),
    (output_of_nobody, "a stream is the child of nothing"),
    (reply_of_another_type, "answered by a inspect_reply"),
    (reply_on_another_channel, "answered on shell"),
    (a_status_of_its_own, "the status 'fine'"),
    (half_a_reply, "lacks user_expressions, payload"),
    (an_answer_to_nothing, "nobody has asked"),
    (silent_and_heard, "was silent, and has published stream"),
    (done_without_a_beginning, "no execute_input"),
    (an_error_that_is_not_shown, "has failed with E, and has published"),
    (two_at_once, "'y' was begun in the main shell before execute 'x' was done"),
    (the_second_first, "which was sent before it"),
    (the_second_answered_first, "was answered before execute 'x'"),
    (a_list_is_aborted, "which is for shells"),
    (what_is_no_cell_is_aborted, "complete .* which is for cells"),
    (aborted_for_nothing, "'y' was aborted, and nothing"),
    (aborted_after_the_error_was_known, "'y' was aborted, and nothing"),
    (aborted_though_nobody_wanted_that, "'y' was aborted, and nothing"),
    (aborted_by_another_shell, "'y' .* was aborted, and nothing"),
    (aborted_after_one_was_served, "'z' was aborted, and nothing"),
    (executed_though_aborted, "was aborted, and has published execute_input"),
    (count_goes_back, "the execution count 1, after 1"),
    (count_jumps, "the execution count 2, after 0"),
    (counted_though_not_wanted, "the execution count 1, after 0"),
    (another_count_in_the_reply, "the execution count 1, and 2 in its reply"),
    (interrupted_by_nobody, "'x' was interrupted, and by nothing"),
    (interrupted_before_it_was_sent, "'x' was interrupted, and by nothing"),
    (two_interrupted_by_one, "'y' was interrupted, and by nothing"),
    (interrupted_instead_of_another, "'x' was interrupted, and by nothing"),
    (out_of_time_without_a_timeout, "a timeout that it doesn't have"),
    (out_of_time_too_early, "before 3600 s"),
    (deleted_by_nobody, "a delete that nobody has asked for"),
    (shut_down_by_nobody, "a shutdown that nobody has asked for"),
    (occupied_by_nothing, "nothing occupies"),
    (unknown_though_it_is_there, "and its subshell was there"),
    (refused_by_the_main_shell, "refused by the main shell"),
    (the_same_id_twice, "twice"),
    (deleted_twice, "deleted again"),
    (done_after_the_delete, "after the end"),
    (sent_after_the_delete, "its status was sent after the reply to the delete"),
    (not_in_the_list, "isn't in it, and was there"),
    (in_the_list_after_its_end, "is in it, and wasn't there"),
    (gone_and_back_again, "isn't in it, and was there"),
    (deleted_and_unknown, "isn't in it, and was there"),
    (asked_for_another_client, "isn't its own"),
    (asked_though_not_allowed, "was not allowed to"),
    (asked_after_the_answer, "after it was answered"),
    (answered_after_the_shutdown, "answered after the shutdown"),
    (lost_at_the_shutdown, "0 replies"),
    (in_different_orders, "different orders"),
    (one_has_missed_something, "has not heard"),
    (two_clients_at_once, "before execute 'x' was done"),
]


@pytest.mark.parametrize(("breaks", "says"), BREAKS, ids=[each.__name__ for each, _ in BREAKS])
async def test_what_breaks_it_is_seen(breaks: Callable[[Script], None], says: str) -> None:
    script = Script()
    breaks(script)
    with pytest.raises(ProtocolViolation) as caught:
        check_protocol(*(each.client for each in script.listeners))
    assert re.search(says, str(caught.value), re.MULTILINE)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 2, lines  # and not everything else as well


def an_error_and_what_waits(script: Script) -> None:
    first, second = script.execute("x"), script.execute("y")
    script.served(first, ename="E")
    script.aborted(second)
    script.served(script.execute("z"), 2)


def an_error_of_the_other_client(script: Script) -> None:
    other = Script(script)
    first, second = other.execute("x"), script.execute("y")
    other.served(first, ename="E")
    script.aborted(second)


def a_deleted_subshell(script: Script) -> None:
    script.create()
    first, second = script.execute("x", "a"), script.execute("y", "a")
    script.begin(first)
    delete = script.control("delete_subshell_request", subshell_id="a")
    script.end(first, ename="SubshellDeleted")
    script.aborted(second)
    script.list("a")
    script.list()
    script.refused(script.execute("z", "a"), "UnknownSubshell")
    script.controlled(delete)
    script.refused(script.control("delete_subshell_request", subshell_id="a"), "UnknownSubshell")


def uncounted_cells(script: Script) -> None:
    script.served(script.execute("x", store_history=False), 0)
    script.served(script.execute("y"), 1)
    silent = script.execute("z", silent=True)
    script.busy(silent)
    script.reply(silent, execution_count=1)
    script.idle(silent)
    script.served(script.execute("x"), 2)


def a_client_that_nobody_speaks_of(script: Script) -> None:
    other = Script(script)
    other.served(other.execute("x"))
    script.served(script.execute("y"), 2)
    script.listeners.remove(other)


def two_interrupts(script: Script) -> None:
    first, second = script.execute("x", stop_on_error=False), script.execute("y")
    interrupts = [script.control("interrupt_request") for _ in range(2)]
    script.served(first, ename="KeyboardInterrupt")
    script.served(second, 2, ename="KeyboardInterrupt")
    for each in interrupts:
        script.controlled(each)


def a_comm_message(script: Script) -> None:
    message = script.client.request("comm_msg", {"comm_id": "c", "data": {}}).message
    script.busy(message)
    script.idle(message)


def a_shutdown_that_overtakes(script: Script) -> None:
    script.execute("never arrived")
    script.controlled(script.control("shutdown_request"))


def one_who_came_later(script: Script) -> None:
    script.served(script.execute("x"))
    other = Script(script)
    script.served(script.execute("y"), 2)
    other.client.unread.add("iopub")
    script.listeners.remove(other)
    script.served(script.execute("z"), 3)
    script.listeners.append(other)


def one_who_listens_late(script: Script) -> None:
    early = script.execute("x")
    script.listeners.remove(script)
    script.begin(early)
    listens_from_here(script)
    script.end(early)
    script.served(script.execute("y"), 2)


@pytest.mark.parametrize(
    "fulfils",
    [
        an_error_and_what_waits,
        an_error_of_the_other_client,
        a_deleted_subshell,
        uncounted_cells,
        a_client_that_nobody_speaks_of,
        two_interrupts,
        a_comm_message,
        a_shutdown_that_overtakes,
        one_who_came_later,
        one_who_listens_late,
    ],
)
async def test_what_is_as_it_should_be_is_not(fulfils: Callable[[Script], None]) -> None:
    script = Script()
    fulfils(script)
    check_protocol(*(each.client for each in script.listeners))


async def test_what_is_under_way_may_still_come() -> None:
    script = Script()
    request = script.execute("on its way")
    with pytest.raises(ProtocolViolation):
        check_protocol(script.client)
    check_protocol(script.client, complete=False)
    script.busy(request)
    check_protocol(script.client, complete=False)


async def test_who_does_not_read_has_nothing_to_miss() -> None:
    script = Script()
    request = script.execute("x")
    script.begin(request)
    script.idle(request)
    script.client.unread.add("shell")
    check_protocol(script.client)


# ------------------------------------------------------------------------------- the registry


def moments(count: int) -> list[Moment]:
    return [Moment(time=0) for _ in range(count)]


def test_lists_at_the_same_time_may_differ_in_one_way_only() -> None:
    start, end = moments(2)
    lives = {each: Lifetime(start, end) for each in ("a", "b")}
    first = Look("first", start, end, frozenset({"a"}))
    second = Look("second", start, end, frozenset({"b"}))
    both = Look("both", start, end, frozenset({"a", "b"}))
    assert not [*contradictions(lives, [first, both])]
    assert not [*contradictions(lives, [second, both])]
    assert [*contradictions(lives, [first, second])]


def test_what_was_not_seen_was_there_before_or_later() -> None:
    start, middle, end = moments(3)
    lives = {each: Lifetime(start, end, start, end) for each in ("a", "b")}
    early = Look("early", start, middle, frozenset({"a"}))
    late = Look("late", middle, end, frozenset({"b"}))
    neither = Look("neither", start, end, frozenset())
    assert not [*contradictions(lives, [early, late, neither])]
    again = Look("again", middle, end, frozenset({"a"}))
    gone = Look("gone", start, middle, frozenset(), frozenset({"a"}))
    assert not [*contradictions(lives, [early, again])]
    assert not [*contradictions(lives, [gone, again])]
    start, first, second, third = moments(4)
    lives = {"a": Lifetime(start, first, first, third)}
    there, not_there = (
        [Look("look", *span, frozenset(seen)) for span in ((start, first), (first, second))]
        for seen in ("a", "")
    )
    assert not [*contradictions(lives, [there[0], not_there[1]])]
    assert not [*contradictions(lives, [not_there[0], there[1]])]
