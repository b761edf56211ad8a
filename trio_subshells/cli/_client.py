"""A kernel in a process of its own, driven from a program: requests, outputs, subshells.

This side of the wire is jupyter_client's (and so asyncio's), not ours: what the command line shows
was seen by an independent implementation of the protocol. What is added here is what jupyter_client
lacks: many requests under way at once, each with its own outputs, and subshells.

One task per channel receives, and hands each message to the request that is its parent. A request
that can't be answered any more, because the kernel's process has ended, fails with `KernelDied`.
"""

from __future__ import annotations

import ast
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import IO, Any

import attrs
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

Content = Mapping[str, Any]

#: Seconds between two looks at whether the process is still there.
_POLL = 0.01


class KernelDied(Exception):
    """The kernel's process ended although nobody had asked it to.

    Attributes:
        code: the exit code of its process; negative for a signal.
        log: what it had written to its standard output and error.
    """

    def __init__(self, code: int | None, log: str) -> None:
        super().__init__(f"the kernel's process ended unexpectedly (exit code {code})")
        self.code = code
        self.log = log


class RequestFailed(Exception):
    """A request got an error reply, where it should have worked."""

    def __init__(self, request: Request, content: Content) -> None:
        what = f"{content.get('ename', content.get('status'))}: {content.get('evalue', '')}"
        super().__init__(f"{request.type} failed: {what}")
        self.content = content


@attrs.define(eq=False)
class Request:
    """A request that was sent, and what came back for it so far.

    Attributes:
        id: of the message.
        type: of the message.
        sent: when, on ``time.perf_counter``.
        answered: when the reply came, on the same clock; 0 before.
        outputs: type and content of all that was published for it, in the order of arrival; without
            ``status``.
    """

    id: str
    type: str
    sent: float
    answered: float = 0
    outputs: list[tuple[str, Content]] = attrs.field(factory=list)
    _reply: asyncio.Future[Content] = attrs.field(factory=asyncio.Future)
    _idle: asyncio.Future[None] = attrs.field(factory=asyncio.Future)
    _news: asyncio.Condition = attrs.field(factory=asyncio.Condition)

    @property
    def is_answered(self) -> bool:
        """Whether the reply has come."""
        return self._reply.done()

    @property
    def state(self) -> str:
        """``queued``, ``busy`` once the kernel has taken it up, then the status of its reply."""
        if self._reply.done():
            return "lost" if self._reply.exception() else str(self._reply.result()["status"])
        return "busy" if any(type_ == "execute_input" for type_, _ in self.outputs) else "queued"

    @property
    def seconds(self) -> float:
        """Between the request and its reply, once that has come."""
        return self.answered - self.sent

    @property
    def stdout(self) -> str:
        """All that it has written to its standard output so far."""
        texts = [
            c["text"] for type_, c in self.outputs if type_ == "stream" and c["name"] == "stdout"
        ]
        return "".join(texts)

    async def reply(self) -> Content:
        """Wait for the reply's content, whatever its status.

        Raises:
            KernelDied: it won't come.
        """
        return await asyncio.shield(self._reply)

    async def finished(self) -> Content:
        """Wait for the reply and for all that is published, which ends with ``idle``."""
        content = await self.reply()
        await asyncio.shield(self._idle)
        return content

    async def ok(self) -> Content:
        """Wait until it is `finished`; the reply's status must be ``ok``.

        Raises:
            RequestFailed: it isn't.
            KernelDied: the reply won't come.
        """
        content = await self.finished()
        if content.get("status") != "ok":
            raise RequestFailed(self, content)
        return content

    async def value(self) -> Any:
        """Wait until it is `ok`; return its result as a Python value.

        Raises:
            RequestFailed: it failed, or has no result that is a literal.
        """
        await self.ok()
        for type_, content in self.outputs:
            if type_ == "execute_result":
                return ast.literal_eval(content["data"]["text/plain"])
        raise RequestFailed(self, {"ename": "NoResult", "evalue": "there is no execute_result"})

    async def wait_busy(self) -> None:
        """Wait until the kernel has taken it up: until its cell runs, or has run already."""
        async with self._news:
            await self._news.wait_for(lambda: self.state != "queued")

    async def wait_stdout(self, text: str) -> None:
        """Wait until it has written `text` to its standard output.

        Raises:
            RequestFailed: it ended without.
        """
        async with self._news:
            await self._news.wait_for(lambda: text in self.stdout or self._idle.done())
        if text not in self.stdout:
            raise RequestFailed(self, await self.reply())

    async def _receive(self, channel: str, type_: str, content: Content) -> None:
        async with self._news:
            if channel != "iopub":
                self.answered = time.perf_counter()
                if not self._reply.done():
                    self._reply.set_result(content)
            elif type_ != "status":
                self.outputs.append((type_, content))
            elif content["execution_state"] == "idle" and not self._idle.done():
                self._idle.set_result(None)
            self._news.notify_all()

    async def _fail(self, error: Exception) -> None:
        async with self._news:
            for future in (self._reply, self._idle):
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # it counts as seen: perhaps nobody waits for this one
            self._news.notify_all()


class DrivenKernel:
    """A running kernel and a client of it. `run_kernel` makes it, and ends it.

    Attributes:
        info: the kernel's ``kernel_info_reply``.
        manager: jupyter_client's manager of the process.
    """

    def __init__(
        self, manager: AsyncKernelManager, client: AsyncKernelClient, log: IO[bytes]
    ) -> None:
        self.manager = manager
        self.info: Content = {}
        # The process outlives the manager's knowledge of it, and so does its exit code.
        self._process: Any = getattr(manager.provisioner, "process", None)
        self._client = client
        self._log = log
        self._requests: dict[str, Request] = {}
        self._is_leaving = False

    # ------------------------------------------------------------------------- the process

    @property
    def pid(self) -> int:
        """Of the kernel's process. It leads a process group of its own, where there are groups."""
        return int(self._process.pid)

    @property
    def log(self) -> str:
        """What the process has written to its own standard output and error."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()

    async def wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        while self._process.poll() is None:  # noqa: ASYNC110 - a Popen has no event to wait for
            await asyncio.sleep(_POLL)
        return int(self._process.returncode)

    async def shut_down(self) -> int:
        """Ask the kernel to shut down; wait until its process has ended; return the exit code."""
        self._is_leaving = True
        await self.request("shutdown_request", {"restart": False}, channel="control").reply()
        return await self.wait()

    # ---------------------------------------------------------------------------- requests

    def request(
        self,
        type_: str,
        content: Content | None = None,
        *,
        channel: str = "shell",
        subshell: str | None = None,
    ) -> Request:
        """Send a request on the shell or the control channel, to a subshell if one is named."""
        message = self._client.session.msg(type_, content=dict(content or {}))
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        request = Request(message["header"]["msg_id"], type_, time.perf_counter())
        self._requests[request.id] = request
        channels = {"shell": self._client.shell_channel, "control": self._client.control_channel}
        # Not by the channel's own send(): that one sends behind the back of pyzmq's asyncio socket,
        # which then misses a reply that arrives meanwhile, until another message comes.
        channels[channel].socket.send_multipart(self._client.session.serialize(message))
        return request

    def execute(
        self, code: str, *, subshell: str | None = None, stop_on_error: bool = True
    ) -> Request:
        """Send a cell: to the main shell, or to the subshell that is named."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": stop_on_error,
        }
        return self.request("execute_request", content, subshell=subshell)

    # --------------------------------------------------------------------------- subshells

    async def create_subshell(self) -> str:
        """Create a subshell; return its id."""
        content = await self.request("create_subshell_request", channel="control").ok()
        return str(content["subshell_id"])

    def delete_subshell(self, subshell: str) -> Request:
        """Send the request that deletes a subshell."""
        return self.request("delete_subshell_request", {"subshell_id": subshell}, channel="control")

    async def list_subshells(self) -> list[str]:
        """Return the ids of all subshells but the main shell."""
        content = await self.request("list_subshell_request", channel="control").ok()
        return list(content["subshell_id"])

    # --------------------------------------------------------------------------- receiving

    async def _receive(self, name: str, receive: Callable[..., Any]) -> None:
        try:
            while True:
                message = await receive(timeout=None)
                request = self._requests.get(message["parent_header"].get("msg_id"))
                if request is not None:
                    await request._receive(name, message["header"]["msg_type"], message["content"])
        except Exception as error:  # a message that jupyter_client can't read, say
            await self._fail_all(error)

    async def _watch(self) -> None:
        """Fail what is under way when the process has ended."""
        code = await self.wait()
        if not self._is_leaving:
            await self._fail_all(KernelDied(code, self.log))

    async def _fail_all(self, error: Exception) -> None:
        for request in list(self._requests.values()):
            await request._fail(error)

    async def _connect(self) -> None:
        """Wait for an answer, and for a sign that what the kernel publishes arrives here too."""
        while True:
            request = self.request("kernel_info_request", channel="control")
            self.info = await request.reply()
            try:
                # The subscription may have come too late for this request; not for the next.
                await asyncio.wait_for(asyncio.shield(request._idle), timeout=0.5)
            except TimeoutError:
                continue
            return


def run_asyncio(program: Coroutine[Any, Any, None]) -> None:
    """Run an asyncio program that uses ZMQ sockets; Ctrl-C cancels it, see `asyncio.Runner`."""
    # pyzmq needs a loop with add_reader, which the default one on Windows lacks.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(program)


@asynccontextmanager
async def run_kernel(
    name: str, specs: KernelSpecManager, *, cwd: str | None = None
) -> AsyncIterator[DrivenKernel]:
    """Start a kernel by the name of its kernelspec; leave with its process gone, whatever happened.

    Its standard output and error go to a file of their own (`DrivenKernel.log`).

    Raises:
        jupyter_client.kernelspec.NoSuchKernel: there is no such kernelspec.
        KernelDied: the process ended before it answered.
        OSError: the process can't be started.
    """
    manager = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs)
    with tempfile.TemporaryFile() as log:
        try:
            await manager.start_kernel(stdout=log, stderr=log, cwd=cwd)
            client = manager.client()
            client.start_channels(hb=False)
            kernel = DrivenKernel(manager, client, log)
            tasks = [
                asyncio.create_task(kernel._receive("shell", client.get_shell_msg)),
                asyncio.create_task(kernel._receive("control", client.get_control_msg)),
                asyncio.create_task(kernel._receive("iopub", client.get_iopub_msg)),
                asyncio.create_task(kernel._watch()),
            ]
            try:
                await kernel._connect()
                yield kernel
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                client.stop_channels()
        finally:
            if await manager.is_alive():
                await manager.shutdown_kernel(now=True)
            else:
                await manager.cleanup_resources()
