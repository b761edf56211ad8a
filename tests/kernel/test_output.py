"""The output port: order, gathering, and output of threads and of code that comes too late."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio

import trio_subshells as ts
from trio_subshells.kernel import _output
from trio_subshells.kernel._output import LARGEST_GATHERED, Outlet, OutputPort
from trio_subshells.wire import EncodeError, Message, WireSession

from .helpers import CellsKernel, Flag, served, types


class Published:
    """A publisher that keeps what it is given, and may do something meanwhile."""

    def __init__(self) -> None:
        self.frames: list[list[bytes]] = []
        self.meanwhile: Any = None

    def publish(self, frames: Sequence[bytes]) -> None:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        self.frames.append(list(frames))

    def messages(self) -> list[Message]:
        receiver = WireSession(b"").receiver()
        return [receiver.receive(frames).open() for frames in self.frames]

    def texts(self) -> list[tuple[str, str]]:
        contents = [each.content for each in self.messages() if each.header.msg_type == "stream"]
        return [(each["name"], each["text"]) for each in contents]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the port, in seconds."""
    now = [100.0]
    monkeypatch.setattr(_output.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def timers() -> list[OutputPort]:
    return []


@pytest.fixture
def port(published: Published, timers: list[OutputPort], clock: list[float]) -> OutputPort:
    return OutputPort(WireSession(b""), published, timers.append)


SESSION = WireSession(b"")
PARENT = SESSION.header("execute_request")
OTHER = SESSION.header("execute_request")


def test_a_line_goes_at_once_and_what_follows_soon_together(
    port: OutputPort, published: Published, timers: list[OutputPort], clock: list[float]
) -> None:
    port.stream("stdout", "a\n", PARENT)
    assert published.texts() == [("stdout", "a\n")]
    assert timers == []
    port.stream("stdout", "b\n", PARENT)
    port.stream("stdout", "c\n", PARENT)
    assert timers == [port]  # one timer for both
    port.flush()
    assert published.texts()[1:] == [("stdout", "b\nc\n")]
    clock[0] += 1
    port.stream("stdout", "d\n", PARENT)
    assert published.texts()[2:] == [("stdout", "d\n")]


def test_an_unfinished_line_waits_for_its_rest(
    port: OutputPort, published: Published, timers: list[OutputPort]
) -> None:
    port.stream("stdout", "a", PARENT)
    assert timers == [port]
    assert published.texts() == []
    port.stream("stdout", "\n", PARENT)
    assert published.texts() == [("stdout", "a\n")]


def test_one_timer_at_a_time_is_enough(
    port: OutputPort, published: Published, timers: list[OutputPort]
) -> None:
    for text in "ab":
        port.stream("stdout", text, PARENT)
        port.status("idle", PARENT)  # the end of a short cell
    assert timers == [port]
    port.stream("stdout", "c", PARENT)
    timers.pop().time_is_up()
    assert published.texts() == [("stdout", "a"), ("stdout", "b"), ("stdout", "c")]
    port.stream("stdout", "d", PARENT)
    assert timers == [port]


def test_order_is_kept_between_streams_parents_and_messages(
    port: OutputPort, published: Published
) -> None:
    for name, parent in (("stdout", PARENT), ("stderr", PARENT), ("stderr", OTHER)):
        port.stream(name, "x", parent)
        port.stream(name, "y", parent)
    port.publish("display_data", {}, parent=OTHER)
    port.stream("stdout", "z", PARENT)
    port.status("idle", PARENT)
    messages = published.messages()
    assert [each.header.msg_type for each in messages] == [
        *["stream"] * 3,
        "display_data",
        "stream",
        "status",
    ]
    assert published.texts() == [
        ("stdout", "xy"),
        ("stderr", "xy"),
        ("stderr", "xy"),
        ("stdout", "z"),
    ]
    parents = [each.parent_header for each in messages]
    assert parents == [PARENT, PARENT, OTHER, OTHER, PARENT, PARENT]


def test_much_text_doesnt_wait(port: OutputPort, published: Published) -> None:
    port.stream("stdout", "x" * (LARGEST_GATHERED - 1), PARENT)
    assert published.texts() == []
    port.stream("stdout", "x", PARENT)
    assert published.texts() == [("stdout", "x" * LARGEST_GATHERED)]


def test_a_message_that_has_no_json_form_costs_nothing_else(
    port: OutputPort, published: Published
) -> None:
    port.stream("stdout", "a", PARENT)
    with pytest.raises(EncodeError):
        port.publish("display_data", {"data": object()}, parent=PARENT)
    port.flush()
    assert published.texts() == [("stdout", "a")]


def test_what_is_printed_while_a_message_is_sent_comes_after_it(
    port: OutputPort, published: Published, clock: list[float]
) -> None:
    """A garbage collection may run a finalizer that prints, in the middle of anything."""

    def finalizer() -> None:
        clock[0] += 1
        port.stream("stderr", "from a finalizer\n", PARENT)
        port.publish("clear_output", {}, parent=PARENT)

    published.meanwhile = finalizer
    port.publish("display_data", {}, parent=PARENT)
    assert [each.header.msg_type for each in published.messages()] == [
        "display_data",
        "stream",
        "clear_output",
    ]


@pytest.mark.parametrize("text", ["it waits", "it goes at once\n"])
def test_what_is_printed_while_text_is_sent_comes_after_it(
    port: OutputPort, published: Published, clock: list[float], text: str
) -> None:
    def finalizer() -> None:
        clock[0] += 1
        port.stream("stdout", text, PARENT)

    published.meanwhile = finalizer
    port.stream("stdout", "first", PARENT)
    port.flush()
    port.flush()
    assert published.texts() == [("stdout", "first"), ("stdout", text)]


def test_what_comes_after_the_end_is_dropped_and_counted(
    port: OutputPort, published: Published, clock: list[float]
) -> None:
    port.stream("stdout", "a", PARENT)
    port.close()
    assert published.texts() == [("stdout", "a")]
    port.publish("display_data", {}, parent=PARENT)
    clock[0] += 1
    port.stream("stdout", "b\n", PARENT)
    assert len(published.frames) == 1
    assert port.statistics() == _output.OutputStatistics(messages=1, late=2)


def test_what_comes_from_a_shut_outlet_is_dropped_and_told_once(
    port: OutputPort, published: Published, timers: list[OutputPort], clock: list[float]
) -> None:
    shut, other = Outlet(port, PARENT), Outlet(port, OTHER)
    shut.stream("stdout", "before")
    assert timers == [port]
    shut.shut()
    assert port.status("idle", PARENT)
    assert timers.pop().time_is_up() == 0
    for outlet in (shut, shut.inner(), shut.inner().inner()):
        outlet.publish("display_data", {})
        outlet.stream("stderr", "after\n")
    other.publish("display_data", {})
    messages = published.messages()
    assert [each.header.msg_type for each in messages] == ["stream", "status", "display_data"]
    assert messages[-1].parent_header == OTHER
    assert timers == [port]
    assert [port.time_is_up(), port.time_is_up()] == [6, 0]
    assert port.statistics() == _output.OutputStatistics(messages=3, late=6)


def test_an_inner_outlet_is_shut_alone(port: OutputPort, published: Published) -> None:
    outer = Outlet(port, PARENT)
    inner = outer.inner()
    inner.shut()
    inner.publish("display_data", {})
    outer.publish("clear_output", {})
    assert [each.header.msg_type for each in published.messages()] == ["clear_output"]


def test_what_could_not_be_published_keeps_nothing_from_it(
    port: OutputPort, published: Published
) -> None:
    def fails() -> None:
        raise OSError("there is no room")

    published.meanwhile = fails
    with pytest.raises(OSError, match="no room"):
        port.publish("display_data", {}, parent=PARENT)
    assert port.publish("clear_output", {}, parent=PARENT)
    assert [each.header.msg_type for each in published.messages()] == ["clear_output"]


def test_a_forked_child_sends_nothing(
    port: OutputPort, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what its parent has gathered, nor what it says itself."""
    port.stream("stdout", "the parent's", PARENT)
    with monkeypatch.context() as child:
        child.setattr(_output.os, "getpid", lambda: -1)
        port.flush()
        assert port.time_is_up() == 0
        assert not port.status("idle", PARENT)
    assert published.frames == []
    port.flush()
    assert published.texts() == [("stdout", "the parent's")]


def test_who_publishes_learns_whether_it_was(port: OutputPort) -> None:
    assert port.status("busy", PARENT)
    port.close()
    assert not port.status("idle", PARENT)


def test_topics(port: OutputPort, published: Published) -> None:
    port.stream("stdout", "a\n", PARENT)
    port.status("busy", PARENT)
    topics = [frames[0] for frames in published.frames]
    assert topics[0].endswith(b".stream.stdout")
    assert topics[1].endswith(b".status")


# --------------------------------------------------------------------------------- in a kernel


async def test_text_that_waits_is_sent_in_time_without_further_output() -> None:
    """The cell goes on for ever; nothing but the timer can send its second line."""
    kernel = CellsKernel()

    @kernel.cell
    async def write(cell: ts.Cell) -> None:
        cell.stdout("first ")
        cell.stdout("second")
        await trio.sleep_forever()

    async with served(kernel) as at:
        exchange = at.client.execute_soon("write")
        await exchange.until(lambda: exchange.text() == "first second")


async def test_a_hundred_thousand_lines_are_some_messages() -> None:
    kernel = CellsKernel()

    @kernel.cell
    def write(cell: ts.Cell) -> None:
        for number in range(100_000):
            cell.stdout(f"{number}\n")

    async with served(kernel) as at:
        exchange = at.client.execute_soon("write")
        await exchange.done()
    assert exchange.text() == "".join(f"{number}\n" for number in range(100_000))
    assert len(exchange.published) < 1000


async def test_threads_of_a_cell_write_into_it_also_after_its_end() -> None:
    kernel, go = CellsKernel(), Flag()
    threads: list[threading.Thread] = []

    @kernel.cell
    def start(cell: ts.Cell) -> None:
        def work(number: int) -> None:
            for _ in range(100):
                cell.stdout(f"{number}")
            go.block()
            cell.display({"text/plain": f"{number} after the end"})

        threads.extend(threading.Thread(target=work, args=(number,)) for number in range(4))
        for thread in threads:
            thread.start()

    async with served(kernel) as at:
        exchange = at.client.execute_soon("start")
        await exchange.reply()
        await exchange.idle()
        go.set()
        await exchange.until(lambda: types(exchange).count("display_data") == 4)
        text = exchange.text()
        assert [text.count(str(number)) for number in range(4)] == [100] * 4
    for thread in threads:
        thread.join()


async def test_a_thread_that_outlives_its_subshell_may_go_on_writing() -> None:
    kernel, go, written = CellsKernel(), Flag(), Flag()
    failures: list[BaseException] = []

    @kernel.cell
    def start(cell: ts.Cell) -> None:
        def work() -> None:
            try:
                go.block()
                for _ in range(3):
                    cell.stdout("x")
                    cell.display({})
            except BaseException as error:
                failures.append(error)
            finally:
                written.set()

        threading.Thread(target=work).start()

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon("start", subshell=subshell_id)
        await exchange.done()
        await at.running.delete_subshell(subshell_id)
        go.set()
        await written.wait()
        assert (await at.client.execute("")).status == "ok"
        assert types(exchange) == ["execute_input"]
    assert failures == []
