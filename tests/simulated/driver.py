"""Carries out a plan on a kernel under test, and compares what came of it with what had to.

`use` works on whatever has the interface of `KernelUnderTest`. When the plan is done, everything
that is still under way is ended: by the answers that it waits for, then by interrupts. After that
each request must have been answered, the protocol be fulfilled (`check_protocol`), and each cell
have said what its words come to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from trio_subshells.testing import Client, Exchange, KernelUnderTest, check_protocol

from .plans import GHOST, Plan, Step
from .programs import ASKING, ENDLESS, Expected, expected

PATIENCE: Final = 30.0
"""Seconds after which what goes on is ended."""

ROUNDS: Final = 12
"""Interrupts that it takes at most to end everything: each ends one thing that a cell does. Who
has less patience may send more of them."""

ENFORCED: Final = {
    *("KeyboardInterrupt", "CellTimeout", "SubshellDeleted", "KernelShutdown"),
    *("UnknownSubshell", "ShellOccupied"),
}
"""Errors that no cell makes by itself. When which is right is the protocol's business."""


class Use:
    """One plan, carried out once.

    Args:
        kernel: whom it is carried out on.
        plan: what is done.
        code: what a cell's code is, of its tag and its words.
        patience: seconds after which what goes on is ended.
    """

    def __init__(
        self,
        kernel: KernelUnderTest,
        plan: Plan,
        code: Callable[[str, tuple[str, ...]], str],
        patience: float,
    ) -> None:
        self._kernel = kernel
        self._plan = plan
        self._code = code
        self._patience = patience
        self._clients: list[Client] = [kernel.client]
        self._done: dict[int, Exchange] = {}
        self._creates: dict[str, Exchange] = {}
        self._cells: dict[str, tuple[Exchange, Expected, Step]] = {}
        self._deaf: list[Client] = []
        self._shut_down: Exchange | None = None
        self._late_answers = not plan.prompt

    async def run(self) -> None:
        """Do all of it."""
        async with self._second_client(), trio.open_nursery() as nursery:
            for client in self._clients:
                nursery.start_soon(self._answer_prompts, client)
            for number, step in enumerate(self._plan.steps, 1):
                await self._do(number, step)
            await self._end_everything()
            self._check()
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _second_client(self) -> AsyncIterator[None]:
        if not self._plan.two:
            yield
            return
        async with self._kernel.connect("second") as client:
            self._clients.append(client)
            yield

    # ------------------------------------------------------------------------------ the steps

    async def _do(self, number: int, step: Step) -> None:
        client = self._clients[1 if step.second else 0]
        if client in self._deaf:
            return
        shell = None if step.shell is None or step.action == "create" else await self._id_of(step)
        exchange = None
        match step.action:
            case "create":
                assert step.shell is not None
                exchange = client.control_soon("create_subshell_request")
                self._creates[step.shell] = exchange
            case "delete":
                exchange = client.control_soon(
                    "delete_subshell_request", subshell_id=shell, **step.options
                )
            case "interrupt":
                content = {} if shell is None else {"subshell_id": shell}
                exchange = client.control_soon("interrupt_request", **content)
            case "list":
                exchange = client.control_soon("list_subshell_request")
            case "info":
                exchange = client.control_soon("kernel_info_request")
            case "shutdown":
                exchange = client.control_soon("shutdown_request", **step.options)
                self._shut_down = self._shut_down or exchange
            case "execute":
                exchange = self._execute(number, step, client, shell)
            case "wait" | "begun":
                await self._wait(step)
            case "pause":
                await trio.sleep(step.seconds)
            case "vanish":
                self._deaf.append(client)
                client.vanish()
            case "stop reading":
                self._deaf.append(client)
                client.stop_reading("shell")
                client.stop_reading("iopub")
            case _:
                exchange = self._ask(step, client, shell)
        if exchange is not None:
            self._done[number] = exchange

    async def _id_of(self, step: Step) -> str:
        """The subshell's id, when it is known."""
        assert step.shell is not None
        create = self._creates.get(step.shell)
        if create is None:
            return GHOST
        with trio.move_on_after(self._patience):
            reply = await create.reply()
            return str(reply.content.get("subshell_id", GHOST))
        return GHOST

    def _execute(self, number: int, step: Step, client: Client, shell: str | None) -> Exchange:
        content = {"allow_stdin": True, **step.options}
        metadata = {key: content.pop(key) for key in ("timeout", "give_up_after") if key in content}
        code = self._code(f"{number}", step.words)
        exchange = client.request(
            "execute_request", {"code": code, **content}, subshell=shell, metadata=metadata
        )
        becomes = expected(f"{number}", step.words, allow_stdin=content["allow_stdin"])
        self._cells[exchange.id] = exchange, becomes, step
        return exchange

    def _ask(self, step: Step, client: Client, shell: str | None) -> Exchange:
        words = ", ".join(step.words)
        content: dict[str, Any] = {
            "complete": {"code": words, "cursor_pos": 0},
            "is_complete": {"code": words},
            "history": {"hist_access_type": "tail", "n": 9, "output": False, "raw": True},
            "kernel_info": {},
            "comm_open": {"comm_id": "c", "target_name": "words", "data": {"words": words}},
        }[step.action]
        msg_type = step.action if step.action == "comm_open" else f"{step.action}_request"
        return client.request(msg_type, content, subshell=shell)

    async def _wait(self, step: Step) -> None:
        exchange = self._done.get(step.target)
        if exchange is not None:
            with trio.move_on_after(self._patience):
                if step.action == "wait":
                    await _end_of(exchange)
                else:
                    await exchange.busy()

    async def _answer_prompts(self, client: Client) -> None:
        held = []
        while True:
            held.append(await client.prompt())
            if self._late_answers and len(held) < 2:
                continue
            for prompt in reversed(held):  # not in the order in which they were asked
                text = f"{prompt.content['prompt']}yes"
                client.answer(prompt, text, parent=self._plan.named)
            held.clear()

    # --------------------------------------------------------------------------- and the end

    @property
    def _under_way(self) -> list[Exchange]:
        return [
            each
            for client in self._clients
            if client not in self._deaf
            for each in client.exchanges
            if not _is_done(each)
        ]

    async def _end_everything(self) -> None:
        client = self._kernel.client
        if self._patience == PATIENCE:
            await self._end_by_itself()
        for _ in range(round(ROUNDS * PATIENCE / self._patience)):
            with trio.move_on_after(self._patience):
                for each in self._under_way:
                    await _end_of(each)
            if not self._under_way or self._shut_down is not None:
                break
            with trio.move_on_after(self._patience):
                await client.control("interrupt_request")
        if self._deaf:
            await trio.sleep(self._patience)  # what they still read has come by then
        if self._shut_down is None:
            assert not self._under_way, f"never answered: {self._under_way}"
            if self._plan.end == "delete":
                await self._delete_all()
            if self._plan.end in ("shutdown", "restart"):
                await self._kernel.shutdown(restart=self._plan.end == "restart")

    async def _end_by_itself(self) -> None:
        """What nobody has to end is done after a while: else a request has been forgotten."""
        with trio.move_on_after(4 * self._patience):
            for each in self._under_way:
                await _end_of(each)
        if self._plan.tasks or self._shut_down is not None:
            return
        endless = {
            self._done[number].message.header.subshell_id
            for number, step in enumerate(self._plan.steps, 1)
            if number in self._done and self._may_not_end(step)
        }
        forgotten = [
            each
            for each in self._under_way
            if not each.message.header.msg_type.startswith("comm_")
            and (each.channel == "control" or each.message.header.subshell_id not in endless)
        ]
        assert not forgotten, f"forgotten: {forgotten}"

    def _may_not_end(self, step: Step) -> bool:
        if step.action == "comm_open":
            return "block" in step.words
        words = {*ENDLESS, "stuck", *(ASKING if self._late_answers else ())}
        return not words.isdisjoint(step.words)

    async def _delete_all(self) -> None:
        # Again and again: a client that has gone may have asked for one that isn't there yet.
        while subshells := await self._kernel.subshells():
            for subshell in subshells:
                reply = await self._kernel.delete_subshell(subshell, timeout=60)
                assert reply.status == "ok", reply.content

    # ---------------------------------------------------------------------------- comparing

    def _check(self) -> None:
        check_protocol(*self._clients)
        self._check_room()
        for exchange, becomes, step in self._cells.values():
            if exchange.replies:
                self._check_cell(exchange, becomes, step)

    def _check_room(self) -> None:
        """A create is refused only if there may be as many subshells as there may be at most."""
        exchanges = [each for client in self._clients for each in client.exchanges]
        creates = [
            each for each in exchanges if each.message.header.msg_type == "create_subshell_request"
        ]
        if any("spawn" in step.words for step in self._plan.steps):
            return  # cells have some, too
        for refused in creates:
            if refused.replies and refused.replies[0].content.get("ename") == "TooManySubshells":
                others = [each for each in creates if each is not refused]
                there = [each for each in others if self._may_be_there(each, refused)]
                assert self._plan.most is not None, refused.replies[0].content
                assert len(there) >= self._plan.most, f"refused, though there was room: {there}"

    def _may_be_there(self, create: Exchange, at: Exchange) -> bool:
        """Whether there may be that subshell, while another one is asked for."""
        if not create.replies:
            return True
        content = create.replies[0].content
        if content["status"] != "ok":
            return self._moment(create) > at.asked.number > create.asked.number
        gone = [
            each
            for client in self._clients
            for each in client.exchanges
            if each.message.header.msg_type == "delete_subshell_request"
            and each.message.content["subshell_id"] == content["subshell_id"]
            and each.replies
            and each.replies[0].content["status"] == "ok"
        ]
        return create.asked.number < self._moment(at) and not any(
            self._moment(each) < at.asked.number for each in gone
        )

    def _moment(self, exchange: Exchange) -> int:
        """Of its reply."""
        id_ = exchange.replies[0].header.msg_id
        return next(
            client.received[id_][0].number for client in self._clients if id_ in client.received
        )

    def _check_cell(self, exchange: Exchange, becomes: Expected, step: Step) -> None:
        content = exchange.replies[0].content
        status, ename = content["status"], content.get("ename")
        text = exchange.text()
        code = exchange.message.content["code"]
        what = f"{code!r} was {status} {ename or ''}, and has said {text!r}"
        silent = step.options.get("silent", False)
        # A kernel that shuts down has no subshells any more for the cells that want one.
        refused = {"RuntimeError"} if "spawn" in step.words and self._shut_down else set()
        if "spawn" in step.words and self._plan.most is not None:
            refused = refused | {"TooManySubshells"}
        asks_anybody = not self._plan.named and "? " in becomes.text
        if status == "ok":
            assert becomes.ends, what
            assert becomes.ename is None, what
            assert silent or asks_anybody or text == becomes.text, what
        elif status == "error" and ename not in ENFORCED | refused:
            assert becomes.ends, f"{what}: {content}"
            assert becomes.ename == ename, f"{what}: {content}"
            assert silent or asks_anybody or text == becomes.text, what
        elif status == "error":
            assert asks_anybody or becomes.text.startswith(text), what
        if silent or status == "aborted":
            assert text == "", what
        shown = exchange.types.count("display_data")
        assert shown <= step.words.count("show"), what
        if status == "ok" and not silent:
            assert shown == step.words.count("show"), what
            assert exchange.types.count("update_display_data") == shown, what
            wanted = {
                key: {"status": "ok", "data": {"text/plain": each}, "metadata": {}}
                for key, each in step.options.get("user_expressions", {}).items()
            }
            assert content["user_expressions"] == wanted, what


def _is_done(exchange: Exchange) -> bool:
    silent = exchange.message.header.msg_type.startswith("comm_") and "info" not in (
        exchange.message.header.msg_type
    )
    return "idle" in exchange.states and (silent or bool(exchange.replies))


async def _end_of(exchange: Exchange) -> None:
    await exchange.until(lambda: _is_done(exchange))


def as_program(tag: str, words: tuple[str, ...]) -> str:
    """A cell's code for `ProgramKernel`."""
    return f"{tag}: {', '.join(words)}"


async def use(
    kernel: KernelUnderTest,
    plan: Plan,
    *,
    code: Callable[[str, tuple[str, ...]], str] = as_program,
    patience: float = PATIENCE,
) -> None:
    """Carry out a plan, end everything, and compare.

    Args:
        kernel: whom it is carried out on.
        plan: what is done.
        code: what a cell's code is, of its tag and its words.
        patience: seconds after which what goes on is ended.

    Raises:
        AssertionError: something isn't as it has to be.
    """
    await Use(kernel, plan, code, patience).run()
