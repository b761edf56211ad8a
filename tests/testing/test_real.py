"""Real kernels under test: how they start and end. What they do is in `test_kernels`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import trio_subshells as ts
from trio_subshells.sockets._ledger import start_lending
from trio_subshells.testing import KernelDied, check_protocol, explore, real_kernel
from trio_subshells.testing._real import open_client

from .words import WordsKernel

HANG = 60
WORDS = [sys.executable, str(Path(__file__).with_name("words.py"))]


def python(code: str) -> list[str]:
    """A program."""
    return [sys.executable, "-c", code]


def kernel_program(execute: str) -> list[str]:
    """A kernel's program, whose cells do that, with their `cell`."""
    return python(
        f"""
import os, sys
import trio_subshells as ts

class It(ts.Kernel):
    implementation = "it"
    language_info = ts.LanguageInfo(name="it")

    async def execute(self, cell):
        {execute}

ts.main(It)
"""
    )


# ------------------------------------------------------------------------------------- both


def test_it_needs_a_real_loop() -> None:
    async def body() -> None:
        for what in (WordsKernel(), WORDS):
            with pytest.raises(RuntimeError, match=r"simulation: explore\(\) .* simulated_kernel"):
                async with real_kernel(what):
                    raise AssertionError("it can't get here")

    explore(body, schedules=1)


@pytest.mark.parametrize("what", ["thread", "process"])
async def test_a_block_that_is_cancelled_is_left_in_good_order(what: str) -> None:
    with trio.fail_after(HANG), trio.CancelScope() as scope:
        async with real_kernel(WordsKernel() if what == "thread" else WORDS) as kernel:
            await kernel.client.execute_soon("await").output("execute_input")
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


# -------------------------------------------------------------------------------- in a thread


async def test_what_blocks_the_main_shell_doesnt_block_the_test() -> None:
    going_on = threading.Event()

    class Blocking(WordsKernel):
        async def execute(self, cell: ts.Cell) -> None:
            assert going_on.wait(HANG)

    with trio.fail_after(HANG):
        async with real_kernel(Blocking()) as kernel:
            running = kernel.client.execute_soon("")
            await running.output("execute_input")
            assert await kernel.subshells() == []
            going_on.set()
            assert (await running.done()).status == "ok"


async def test_its_threads_are_gone_in_the_end() -> None:
    start_lending()  # pyzmq's thread, which stays
    before = set(threading.enumerate())
    with trio.fail_after(HANG):
        async with real_kernel(WordsKernel()) as kernel:
            await kernel.create_subshell()
            new = set(threading.enumerate()) - before
            assert "trio kernel" in {each.name for each in new}
            assert len(kernel.running.tree().splitlines()) > 5
    assert not [each for each in new if each.is_alive()]


async def test_what_it_fails_with_ends_the_block() -> None:
    class Failing(WordsKernel):
        @asynccontextmanager
        async def lifespan(self, running: ts.RunningKernel) -> AsyncIterator[None]:
            self.token = trio.lowlevel.current_trio_token()
            self.fails = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail)
                yield

        async def fail(self) -> None:
            await self.fails.wait()
            raise LookupError("out of luck")

    kernel = Failing()
    with trio.fail_after(HANG), pytest.raises(LookupError, match="out of luck"):
        async with real_kernel(kernel) as at:
            await at.client.execute("hello")
            kernel.token.run_sync_soon(kernel.fails.set)
            await trio.sleep_forever()


async def test_what_its_start_fails_with_is_raised() -> None:
    class Failing(WordsKernel):
        @asynccontextmanager
        async def lifespan(self, running: ts.RunningKernel) -> AsyncIterator[None]:
            raise LookupError("out of luck")
            yield

    with trio.fail_after(HANG), pytest.raises(LookupError, match="out of luck"):
        async with real_kernel(Failing()):
            raise AssertionError("it can't get here")


async def test_it_can_be_shut_down_before_the_end() -> None:
    with trio.fail_after(HANG):
        async with real_kernel(WordsKernel()) as kernel:
            running = kernel.client.execute_soon("await")
            await running.output("execute_input")
            assert (await kernel.shutdown()).status == "ok"
            await kernel.wait_closed()
            assert (await running.done()).status == "error"


async def test_another_client_connects_by_its_connection() -> None:
    with trio.fail_after(HANG):
        async with (
            real_kernel(WordsKernel()) as kernel,
            open_client(kernel.connection, "by itself") as client,
        ):
            assert kernel.connection.key
            assert not client.unread
            assert (await client.execute("hello")).status == "ok"


async def test_a_client_may_listen_later() -> None:
    with trio.fail_after(HANG):
        async with (
            real_kernel(WordsKernel()) as kernel,
            open_client(kernel.connection, "late", listens=False) as client,
        ):
            assert (await client.request("kernel_info_request").reply()).status == "ok"
            await client.listen()
            exchange = client.execute_soon("hello")
            assert (await exchange.done()).status == "ok"
            assert exchange.text() == "hello"
            check_protocol(client)  # which doesn't ask for what it has missed


# ------------------------------------------------------------------------------- in a process


def install(prefix: Path, name: str, spec: dict[str, object]) -> None:
    folder = prefix / "kernels" / name
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))


async def test_a_kernelspec_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("GIVEN", "given")
    program = kernel_program(
        "cell.stdout(repr([sys.argv[1:], os.environ['ITS'], os.environ['MORE']]))"
    )
    spec = {
        "argv": [*program, "-f", "{connection_file}"],
        "env": {"ITS": "${GIVEN} and its own"},
    }
    install(tmp_path, "Its-Name", spec)
    with trio.fail_after(HANG):
        async with real_kernel("its-name", env={"MORE": "more"}) as kernel:
            exchange = kernel.client.execute_soon("")
            assert (await exchange.done()).status == "ok"
            (option, file), its, more = eval(exchange.text())
            assert option == "-f"
            assert (its, more) == ("given and its own", "more")
            assert kernel.connection.kernel_name == "its-name"
            assert Path(file).exists()
    assert not Path(file).parent.exists()


async def test_a_kernelspec_that_isnt_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    install(tmp_path, "this-one", {"argv": WORDS})
    with pytest.raises(LookupError, match=r"no kernelspec 'that-one' .* there are: .*this-one"):
        async with real_kernel("that-one"):
            raise AssertionError("it can't get here")


async def test_a_program_that_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        async with real_kernel([str(tmp_path / "nothing")]):
            raise AssertionError("it can't get here")


async def test_placeholders_are_replaced(tmp_path: Path) -> None:
    program = kernel_program("cell.stdout(' '.join(sys.argv[1:]))")
    with trio.fail_after(HANG):
        async with real_kernel(
            [*program, "-f", "{connection_file}", "--max-subshells", "3"], cwd=tmp_path
        ) as kernel:
            exchange = kernel.client.execute_soon("")
            await exchange.done()
            assert exchange.text().endswith("registration.json --max-subshells 3")


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit('I have no hands')", "with exit code 1"),
        ("print('I have no hands')", "with exit code 0"),
    ],
)
async def test_a_program_that_dies_at_its_start(code: str, how: str) -> None:
    with trio.fail_after(HANG), pytest.raises(KernelDied) as caught:
        async with real_kernel(python(code)):
            raise AssertionError("it can't get here")
    assert str(caught.value) == (
        f"the kernel's process has ended, {how}, before it could be used; it has written:\n"
        "I have no hands"
    )
    assert caught.value.code == int(how[-1])
    assert caught.value.log.strip() == "I have no hands"


async def test_a_program_that_is_no_kernel() -> None:
    program = python("import time\nprint('at work', flush=True)\ntime.sleep(1000)")
    with trio.fail_after(HANG), pytest.raises(KernelDied) as caught:
        async with real_kernel(program, start_timeout=1):
            raise AssertionError("it can't get here")
    assert "doesn't listen, 1 s after its start" in str(caught.value)
    assert "at work" in str(caught.value)


async def test_a_process_that_dies_ends_the_block() -> None:
    program = kernel_program("print('oh', flush=True); os._exit(3)")
    with trio.fail_after(HANG), pytest.raises(KernelDied) as caught:
        async with real_kernel(program) as kernel:
            await kernel.client.execute("")
            raise AssertionError("there is no reply")
    assert "has ended, with exit code 3" in str(caught.value)
    assert caught.value.log.strip() == "oh"


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
async def test_a_process_that_doesnt_end_is_killed() -> None:
    with trio.fail_after(HANG), pytest.raises(KernelDied) as caught:
        async with real_kernel(WORDS, patience=0.5) as kernel:
            pid = kernel.pid
            os.kill(pid, signal.SIGSTOP)
    assert "had to be killed: it was to end, and hadn't after 0.5 s" in str(caught.value)
    assert caught.value.code == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_failure_of_the_test_tells_what_the_process_has_written() -> None:
    program = kernel_program("print('look here', flush=True)")
    with trio.fail_after(HANG), pytest.raises(LookupError) as caught:
        async with real_kernel(program) as kernel:
            await kernel.client.execute("")
            assert kernel.log == "look here\n"
            raise LookupError("the test's own")
    assert any("look here" in note for note in caught.value.__notes__)
    assert kernel.log == "look here\n"


async def test_a_process_shut_down_by_a_client_has_ended_well() -> None:
    with trio.fail_after(HANG):
        async with real_kernel(WORDS) as kernel:
            assert (await kernel.shutdown()).status == "ok"
            await kernel.wait_closed()
            if sys.platform != "win32":
                with pytest.raises(ProcessLookupError):
                    os.kill(kernel.pid, 0)
