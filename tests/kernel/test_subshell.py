"""Subshells: what each request of the shell channel is answered, and what it publishes."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trio_subshells as ts
from trio_subshells.kernel._guard import EndReason

from .helpers import CellsKernel, Flag, served, types

# --------------------------------------------------------------------------------- executing


async def test_a_cell_from_request_to_reply() -> None:
    kernel = CellsKernel()

    @kernel.cell
    async def hello(cell: ts.Cell) -> None:
        cell.stdout("hello ")
        await trio.lowlevel.checkpoint()
        cell.stdout("world")
        cell.result({"text/plain": "42"})

    async with served(kernel) as at:
        exchange = at.client.execute_soon("hello")
        content = (await exchange.done()).content
    assert content == {
        "status": "ok",
        "execution_count": 1,
        "user_expressions": {},
        "payload": [],
    }
    outputs = exchange.outputs
    assert outputs[0] == ("execute_input", {"code": "hello", "execution_count": 1})
    assert exchange.text() == "hello world"
    assert outputs[-1] == (
        "execute_result",
        {"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 1},
    )


async def test_an_exception_is_the_error_of_reply_and_message() -> None:
    kernel = CellsKernel()

    @kernel.cell
    def fail(cell: ts.Cell) -> None:
        raise ZeroDivisionError("no such number")

    async with served(kernel) as at:
        exchange = at.client.execute_soon("fail")
        content = (await exchange.done()).content
    assert content["ename"] == "ZeroDivisionError"
    assert content["evalue"] == "no such number"
    assert content["execution_count"] == 1
    text = "\n".join(content["traceback"])
    assert "in fail" in text
    assert "_guard.py" not in text  # the kernel's own frames tell nobody anything
    (published,) = [each for kind, each in exchange.outputs if kind == "error"]
    assert published == {key: content[key] for key in ("ename", "evalue", "traceback")}


async def test_a_cell_error_chooses_its_words() -> None:
    kernel = CellsKernel()

    @kernel.cell
    def fail(cell: ts.Cell) -> None:
        raise ts.CellError("SyntaxError", "no such word", ["line 1", "line 2"])

    async with served(kernel) as at:
        content = (await at.client.execute("fail")).content
    assert content["ename"] == "SyntaxError"
    assert content["evalue"] == "no such word"
    assert content["traceback"] == ["line 1", "line 2"]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise self


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(), UnspeakableError()],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_cell_raises_the_kernel_lives(error: BaseException) -> None:
    kernel = CellsKernel()

    @kernel.cell
    async def fail(cell: ts.Cell) -> None:
        raise error

    async with served(kernel) as at:
        content = (await at.client.execute("fail")).content
        # A coroutine can't raise StopIteration: Python makes it a RuntimeError.
        expected = "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__
        assert content["ename"] == expected
        assert (await at.client.execute("")).status == "ok"


async def test_a_cancellation_kept_from_elsewhere_is_an_error_like_others() -> None:
    kernel = CellsKernel()

    @kernel.cell
    async def fail(cell: ts.Cell) -> None:
        kept = None
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                kept = cancelled
        assert kept is not None
        raise kept

    async with served(kernel) as at:
        assert (await at.client.execute("fail")).ename == "Cancelled"
        assert (await at.client.execute("")).status == "ok"


async def test_what_has_no_json_form_is_an_error_that_says_so() -> None:
    kernel = CellsKernel()

    @kernel.cell
    def in_a_result(cell: ts.Cell) -> None:
        cell.result({"text/plain": object()})

    @kernel.cell
    def in_the_payload(cell: ts.Cell) -> None:
        cell.payload.append({"source": object()})

    async with served(kernel) as at:
        assert (await at.client.execute("in_a_result")).ename == "EncodeError"
        reply = (await at.client.execute("in_the_payload")).content
        assert (reply["ename"], reply["execution_count"]) == ("EncodeError", 2)
        assert (await at.client.execute("")).status == "ok"


async def test_requests_of_one_subshell_are_served_in_order() -> None:
    kernel, ran = CellsKernel(), []

    @kernel.cell
    async def note(cell: ts.Cell) -> None:
        ran.append(cell.execution_count)
        await trio.lowlevel.checkpoint()

    async with served(kernel) as at:
        exchanges = [at.client.execute_soon("note") for _ in range(100)]
        counts = [(await each.done()).content["execution_count"] for each in exchanges]
    assert ran == counts == list(range(1, 101))


async def test_what_is_counted() -> None:
    async with served(CellsKernel()) as at:

        async def count(**content: Any) -> int:
            number = (await at.client.execute("", **content)).content["execution_count"]
            assert isinstance(number, int)
            return number

        assert await count() == 1
        assert await count(store_history=False) == 1
        assert await count(silent=True) == 1
        assert await count(silent=True, store_history=True) == 1
        assert await count() == 2
        history = (
            await at.client.request(
                "history_request", {"hist_access_type": "range", "raw": True, "output": False}
            ).done()
        ).content
    assert [line for _, line, _ in history["history"]] == [1, 2]


async def test_each_subshell_counts_for_itself() -> None:
    async with served(CellsKernel()) as at:
        subshell_id = await at.client.create_subshell()
        for _ in range(3):
            await at.client.execute("")
        content = (await at.client.execute("", subshell=subshell_id)).content
    assert content["execution_count"] == 1


async def test_a_silent_cell_publishes_nothing_but_its_reply() -> None:
    kernel = CellsKernel()

    @kernel.cell
    def loud(cell: ts.Cell) -> None:
        cell.stdout("out")
        cell.stderr("err")
        cell.display({"text/plain": "shown"})
        cell.result({"text/plain": "result"})
        cell.clear_output()
        raise ZeroDivisionError

    async with served(kernel) as at:
        exchange = at.client.execute_soon("loud", silent=True)
        assert (await exchange.done()).status == "error"
    assert types(exchange) == []


ABC = {"a": "xx", "b": "", "c": "xxxx"}


async def test_user_expressions() -> None:
    class Evaluating(CellsKernel):
        async def evaluate(self, cell: ts.Cell, expression: str) -> Mapping[str, Any]:
            return {"text/plain": str(1 / len(expression))}

    kernel = Evaluating()

    @kernel.cell
    def fail(cell: ts.Cell) -> None:
        raise ZeroDivisionError

    async with served(kernel) as at:
        content = (await at.client.execute("", user_expressions=ABC)).content
        failed = (await at.client.execute("fail", user_expressions={"a": "xx"})).content
        other = (await at.client.execute("", user_expressions={"a": 7})).content
    expressions = content["user_expressions"]
    assert expressions["a"] == {"status": "ok", "data": {"text/plain": "0.5"}, "metadata": {}}
    assert expressions["b"]["status"] == "error"
    assert expressions["b"]["ename"] == "ZeroDivisionError"
    assert expressions["c"] == {"status": "ok", "data": {"text/plain": "0.25"}, "metadata": {}}
    assert failed["user_expressions"] == {}
    assert other["ename"] == "MalformedMessage"
    assert "'a'" in other["evalue"]


async def test_a_cell_that_reaches_its_deadline_is_ended() -> None:
    kernel = CellsKernel()

    @kernel.cell
    async def wait(cell: ts.Cell) -> None:
        await trio.sleep_forever()

    async with served(kernel) as at:
        exchange = at.client.request(
            "execute_request", {"code": "wait"}, metadata={"timeout": 0.05}
        )
        content = (await exchange.done()).content
        assert content["ename"] == "CellTimeout"
        assert "0.05 s" in content["evalue"]
        for wrong in (0, -1, "1", True):
            refused = (
                await at.client.request(
                    "execute_request", {"code": ""}, metadata={"timeout": wrong}
                ).done()
            ).content
            assert refused["ename"] == "MalformedMessage"
        fine = (
            await at.client.request(
                "execute_request", {"code": ""}, metadata={"timeout": math.inf}
            ).done()
        ).content
        assert fine["status"] == "ok"


# ------------------------------------------------------------------------------- stop on error


async def test_an_error_aborts_the_executes_that_wait_in_its_subshell() -> None:
    """All that were sent before its reply, however fast they follow each other."""
    kernel, ran, started, go = CellsKernel(), [], Flag(), Flag()

    @kernel.cell
    async def fail(cell: ts.Cell) -> None:
        started.set()
        await go.wait()
        raise ZeroDivisionError

    @kernel.cell
    def note(cell: ts.Cell) -> None:
        ran.append(cell.subshell.id)

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        failing = at.client.execute_soon("fail", subshell=subshell_id)
        await started.wait()
        queued = [at.client.execute_soon("note", subshell=subshell_id) for _ in range(300)]
        question = at.client.request("is_complete_request", {"code": "x"}, subshell=subshell_id)
        elsewhere = at.client.execute_soon("note")
        assert (await elsewhere.done()).status == "ok"
        go.set()
        assert (await failing.done()).status == "error"
        assert "started" in failing.replies[0].metadata
        for each in queued:
            assert (await each.done()).content == {"status": "aborted", "execution_count": 1}
            assert types(each) == []
            assert each.replies[0].metadata == {}  # it was never started
        assert (await question.done()).status == "unknown"
        afterwards = at.client.execute_soon("note", subshell=subshell_id)
        assert (await afterwards.done()).status == "ok"
    assert ran == [None, subshell_id]


async def test_an_error_aborts_nothing_if_its_request_says_so() -> None:
    kernel, go = CellsKernel(), Flag()

    @kernel.cell
    async def fail(cell: ts.Cell) -> None:
        await go.wait()
        raise ZeroDivisionError

    async with served(kernel) as at:
        failing = at.client.execute_soon("fail", stop_on_error=False)
        queued = at.client.execute_soon("")
        await failing.output("execute_input")
        go.set()
        assert (await failing.done()).status == "error"
        assert (await queued.done()).status == "ok"


# ----------------------------------------------------------------- interrupts, as clients see them


async def test_who_sees_a_cell_begin_can_interrupt_it() -> None:
    """However soon: what has been announced to clients is never missed by their interrupt."""
    kernel = CellsKernel()

    @kernel.cell
    async def wait(cell: ts.Cell) -> None:
        await trio.sleep_forever()

    async with served(kernel) as at:
        for _ in range(20):
            exchange = at.client.execute_soon("wait")
            await exchange.output("execute_input")
            reply = (await at.client.control("interrupt_request")).content
            assert reply == {"status": "ok"}
            content = (await exchange.done()).content
            assert content["ename"] == "KeyboardInterrupt"


async def test_nothing_is_announced_that_could_not_be_interrupted() -> None:
    """The cell runs already, as far as an interrupt can tell, when clients are told of it."""
    states: list[ts.SubshellState] = []
    async with served(CellsKernel()) as at:
        really_publish = ts.Cell.publish

        def publish(cell: ts.Cell, msg_type: str, *args: Any, **options: Any) -> None:
            if msg_type == "execute_input":
                states.append(at.running.main.state)
            really_publish(cell, msg_type, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ts.Cell, "publish", publish)
            await at.client.execute("")
    assert states == [ts.SubshellState.BUSY]


async def test_a_cell_that_is_interrupted_while_it_computes() -> None:
    kernel = CellsKernel()

    @kernel.cell
    def spin(cell: ts.Cell) -> None:
        cell.stdout("spinning")
        while True:
            pass

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        exchange = at.client.execute_soon("spin", subshell=subshell_id)
        await exchange.output("stream")
        await at.client.control("interrupt_request", subshell_id=subshell_id)
        content = (await exchange.done()).content
        assert content["ename"] == "KeyboardInterrupt"
        assert (await at.client.execute("", subshell=subshell_id)).status == "ok"


async def test_a_request_that_comes_when_its_subshell_is_ending_is_aborted() -> None:
    """The guard is closed first; what is taken from the queue then is never begun."""
    kernel = CellsKernel()
    async with served(kernel) as at:
        subshell = await at.running.create_subshell()
        subshell._life.guards.close(EndReason.DELETED)
        execute = at.client.execute_soon("", subshell=subshell.id)
        complete = at.client.request(
            "complete_request", {"code": "", "cursor_pos": 0}, subshell=subshell.id
        )
        assert (await execute.done()).status == "aborted"
        assert (await complete.done()).status == "aborted"
        assert types(execute) == []
        subshell._life.ref.cancel()
        assert (await subshell._life.ref.watch()).error is None  # it has not died of them


# -------------------------------------------------------------------- the other requests' defaults


async def test_what_a_kernel_answers_that_only_executes() -> None:
    async with served(CellsKernel()) as at:

        async def ask(msg_type: str, **content: Any) -> Mapping[str, Any]:
            return (await at.client.request(msg_type, content).done()).content

        assert await ask("complete_request", code="abc", cursor_pos=2) == {
            "status": "ok",
            "matches": [],
            "cursor_start": 2,
            "cursor_end": 2,
            "metadata": {},
        }
        assert await ask("inspect_request", code="abc", cursor_pos=2, detail_level=1) == {
            "status": "ok",
            "found": False,
            "data": {},
            "metadata": {},
        }
        assert await ask("is_complete_request", code="abc") == {"status": "unknown"}
        assert await ask("comm_info_request") == {"status": "ok", "comms": {}}
        evaluated = (await at.client.execute("", user_expressions={"a": "x"})).content
        error = evaluated["user_expressions"]["a"]
        assert error["ename"] == "NotImplementedError"
        assert "in evaluate" in "".join(error["traceback"])  # there are no frames but ours


async def test_the_default_history() -> None:
    kernel = CellsKernel()
    for name in ("one", "two", "other"):
        kernel.functions[name] = lambda cell: None

    async with served(kernel) as at:
        for name in ("one", "two", "one", "other"):
            await at.client.execute(name)

        async def history(access: str, **content: Any) -> list[Any]:
            reply = (
                await at.client.request(
                    "history_request", {"hist_access_type": access, **content}
                ).done()
            ).content
            return [text if "output" in content else line for _, line, text in reply["history"]]

        assert await history("range") == [1, 2, 3, 4]
        assert await history("range", start=2, stop=4) == [2, 3]
        assert await history("range", session=5) == []
        assert await history("tail", n=2) == [3, 4]
        assert await history("tail", n=100) == [1, 2, 3, 4]
        assert await history("tail", n=0) == []
        assert await history("search", pattern="o*") == [1, 3, 4]
        assert await history("search", pattern="o*", unique=True) == [3, 4]
        assert await history("search", pattern="o*", n=1) == [4]
        assert await history("tail", n=1, output=True) == [["other", None]]
        wrong = (
            await at.client.request("history_request", {"hist_access_type": "all"}).done()
        ).content
        assert "'range', 'tail' or 'search'" in wrong["evalue"]


class Answering(CellsKernel):
    """Answers everything, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[ts.Request] = []

    @asynccontextmanager
    async def subshell(self, info: ts.SubshellInfo) -> AsyncIterator[Any]:
        yield f"the state of {info.name}"

    async def complete(self, request: ts.CompleteRequest) -> ts.Completion:
        self.asked.append(request)
        return ts.Completion(["abc"], 0, request.cursor_pos, {"more": 1})

    async def inspect(self, request: ts.InspectRequest) -> ts.Inspection:
        self.asked.append(request)
        return ts.Inspection(True, {"text/plain": "abc"})

    async def is_complete(self, request: ts.IsCompleteRequest) -> ts.Completeness:
        self.asked.append(request)
        return ts.Completeness("incomplete", "  ")

    async def history(
        self, request: ts.HistoryRequest, executed: Sequence[ts.HistoryEntry]
    ) -> Sequence[ts.HistoryEntry]:
        self.asked.append(request)
        return [ts.HistoryEntry(7, 1, "in", "out")]

    async def comm_info(self, target_name: str | None) -> Mapping[str, Mapping[str, Any]]:
        return {"id": {"target_name": target_name}}


async def test_what_a_kernel_says_is_what_its_clients_get() -> None:
    kernel = Answering()
    async with served(kernel) as at:

        async def ask(msg_type: str, **content: Any) -> dict[str, Any]:
            reply = dict((await at.client.request(msg_type, content).done()).content)
            assert reply.pop("status") == "ok" or msg_type == "is_complete_request"
            return reply

        assert await ask("complete_request", code="ab", cursor_pos=99) == {
            "matches": ["abc"],
            "cursor_start": 0,
            "cursor_end": 2,  # beyond the end of the code is at its end
            "metadata": {"more": 1},
        }
        assert (await ask("inspect_request", code="ab", cursor_pos=1))["data"] == {
            "text/plain": "abc"
        }
        assert await ask("is_complete_request", code="ab") == {"indent": "  "}
        assert await ask("history_request", hist_access_type="tail", n=1, output=True) == {
            "history": [[7, 1, ["in", "out"]]]
        }
        assert await ask("comm_info_request", target_name="t") == {
            "comms": {"id": {"target_name": "t"}}
        }
        assert await ask("comm_info_request") == {"comms": {"id": {"target_name": None}}}
    assert {each.state for each in kernel.asked} == {"the state of main"}
    assert all(each.subshell.is_main for each in kernel.asked)
    assert kernel.asked[0].content == {"code": "ab", "cursor_pos": 99}


@pytest.mark.parametrize(
    ("method", "msg_type", "content"),
    [
        ("complete", "complete_request", {"code": "", "cursor_pos": 0}),
        ("inspect", "inspect_request", {"code": "", "cursor_pos": 0}),
        ("is_complete", "is_complete_request", {"code": ""}),
        ("history", "history_request", {"hist_access_type": "tail", "n": 1}),
        ("comm_info", "comm_info_request", {}),
    ],
)
@pytest.mark.parametrize("failure", [ValueError("broken"), SystemExit(1), None])
async def test_a_handler_that_fails_answers_with_its_error(
    method: str, msg_type: str, content: dict[str, Any], failure: BaseException | None
) -> None:
    async def fail(*args: object) -> Any:
        if failure is not None:
            raise failure
        return 5  # an answer that isn't one

    kernel = CellsKernel()
    setattr(kernel, method, fail)
    async with served(kernel) as at:
        reply = (await at.client.request(msg_type, content).done()).content
        if failure is not None:
            assert reply["ename"] == type(failure).__name__
        elif method != "comm_info":  # whose answer is passed on as it is
            assert reply["status"] == "error"
        assert (await at.client.execute("")).status == "ok"


async def test_a_request_that_awaits_can_be_interrupted() -> None:
    class Slow(CellsKernel):
        async def complete(self, request: ts.CompleteRequest) -> ts.Completion:
            started.set()
            await trio.sleep_forever()
            raise AssertionError

    started = Flag()
    async with served(Slow()) as at:
        exchange = at.client.request("complete_request", {"code": "", "cursor_pos": 0})
        await started.wait()
        await at.client.control("interrupt_request")
        assert (await exchange.done()).ename == "KeyboardInterrupt"


# ---------------------------------------------------------------------------------------- comms


class Comms(CellsKernel):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, ts.CommMessage]] = []
        self.arrived = Flag()
        self.failure: BaseException | None = None

    def _hear(self, kind: str, message: ts.CommMessage) -> None:
        self.heard.append((kind, message))
        self.arrived.set()
        if self.failure is not None:
            raise self.failure

    async def comm_open(self, message: ts.CommMessage) -> None:
        self._hear("open", message)

    async def comm_message(self, message: ts.CommMessage) -> None:
        self._hear("message", message)

    async def comm_close(self, message: ts.CommMessage) -> None:
        self._hear("close", message)


async def test_comm_messages_are_heard_in_order() -> None:
    kernel = Comms()
    async with served(kernel) as at:
        content = {"comm_id": "c", "target_name": "t", "data": {"x": 1}}
        for kind in ("comm_open", "comm_msg", "comm_close"):
            exchange = at.client.request(kind, content, metadata={"m": 1})
        await exchange.idle()
        assert exchange.replies == []
    assert [kind for kind, _ in kernel.heard] == ["open", "message", "close"]
    message = kernel.heard[0][1]
    assert (message.comm_id, message.target_name, message.data) == ("c", "t", {"x": 1})
    assert message.metadata == message.message["metadata"] == {"m": 1}
    assert message.message["header"]["msg_type"] == "comm_open"


async def test_a_comm_message_is_served_while_a_cell_of_its_subshell_awaits() -> None:
    kernel = Comms()

    @kernel.cell
    async def wait_for_comm(cell: ts.Cell) -> None:
        await kernel.arrived.wait()

    async with served(kernel) as at:
        subshell_id = await at.client.create_subshell()
        cell = at.client.execute_soon("wait_for_comm", subshell=subshell_id)
        await cell.output("execute_input")
        at.client.request("comm_msg", {"comm_id": "c", "data": {}}, subshell=subshell_id)
        assert (await cell.done()).status == "ok"
    assert kernel.heard[0][1].subshell.id == subshell_id


@pytest.mark.parametrize("failure", [ValueError("broken"), SystemExit(1), KeyboardInterrupt()])
async def test_a_comm_handler_that_fails_ends_nothing(failure: BaseException) -> None:
    kernel = Comms()
    kernel.failure = failure
    async with served(kernel) as at:
        for _ in range(2):
            await at.client.request("comm_open", {"comm_id": "c", "data": {}}).idle()
        assert (await at.client.execute("")).status == "ok"
    assert len(kernel.heard) == 2


# --------------------------------------------------------------------------------- random content

TYPES = {
    "execute_request": ("code", "silent", "store_history", "user_expressions", "allow_stdin"),
    "complete_request": ("code", "cursor_pos"),
    "inspect_request": ("code", "cursor_pos", "detail_level"),
    "is_complete_request": ("code",),
    "history_request": ("hist_access_type", "output", "raw", "session", "start", "stop", "n"),
    "comm_info_request": ("target_name",),
    "comm_open": ("comm_id", "data", "target_name"),
    "comm_msg": ("comm_id", "data"),
    "comm_close": ("comm_id", "data"),
    "kernel_info_request": (),
    "connect_request": (),
    "interrupt_request": ("subshell_id",),
    "create_subshell_request": (),
    "delete_subshell_request": ("subshell_id", "timeout"),
    "list_subshell_request": (),
    "no_such_request": ("anything",),
}
ON_CONTROL = {each for each in TYPES if "subshell_" in each} | {"interrupt_request"}
COMMS = {"comm_open", "comm_msg", "comm_close"}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", "range", "tail", "search", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    msg_type = draw(st.sampled_from(sorted(TYPES)))
    fields = (*TYPES[msg_type], "subshell_id", "stop_on_error")
    content = draw(st.dictionaries(st.sampled_from(fields), VALUES, max_size=len(fields)))
    if draw(st.booleans()):
        content.setdefault("code", "")
    return msg_type, content, draw(st.dictionaries(st.just("timeout"), VALUES, max_size=1))


def test_whatever_a_request_says_it_gets_one_answer_between_busy_and_idle() -> None:
    """Random contents for every type of request, against one kernel that outlives them all."""

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(requests(), min_size=40, max_size=40))
    def check(batch: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
        async def main() -> None:
            async with served(Answering()) as at:
                exchanges = [
                    at.client.request(
                        msg_type,
                        content,
                        metadata=metadata,
                        channel="control" if msg_type in ON_CONTROL else "shell",
                    )
                    for msg_type, content, metadata in batch
                ]
                for exchange in exchanges:
                    if exchange.message.header.msg_type in COMMS:
                        await exchange.idle()
                        assert exchange.replies == []
                    else:
                        content = (await exchange.done()).content
                        assert content["status"] in {"ok", "error", "aborted", "incomplete"}
                assert (await at.client.execute("")).status == "ok"

        trio.run(main)

    check()
