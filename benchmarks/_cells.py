"""Cells that don't end by themselves, each in its own way: what a kernel may have to get rid of.

They are written for any Python kernel: what awaits, awaits in the event loop that it finds itself
in, trio's or asyncio's. Each one touches a file when it begins, so that a client knows without a
message, which might be held up.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from _client import ProbeFailed

if TYPE_CHECKING:
    from _client import Client, Request
    from _kernels import RunningKernel

#: Seconds that an endless cell runs at most: longer than anything waits for it.
FOREVER = 900

#: Seconds until a cell has to begin.
BEGIN = 10.0

#: Seconds that the call runs that holds the interpreter's lock, and so everything else, up.
HOLD = 5

# Names are private to a cell as far as they can be: the namespace is common to all subshells. Where
# it isn't, functions don't see what their cell has imported.
_PRELUDE = """\
import hashlib, pathlib, subprocess, sys, time
def _begun():
    import pathlib
    pathlib.Path({marker!r}).touch()
if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_run():
    from trio import sleep as _sleep
    def _spawn():
        import trio
        trio.lowlevel.spawn_system_task(trio.sleep, {forever})
    async def _shielded():
        import trio
        with trio.CancelScope(shield=True):
            await trio.sleep({forever})
else:
    from asyncio import sleep as _sleep
    def _spawn():
        import asyncio, sys
        sys._guarantees_task = asyncio.ensure_future(asyncio.sleep({forever}))
    async def _shielded():
        import asyncio
        await asyncio.shield(asyncio.sleep({forever}))
"""


@attrs.frozen
class Kind:
    """A way of not ending.

    `key` and `title` name it; `code` is what follows the prelude. `asks` means that it waits for
    input, `cleans` that it touches a file when its own tidying up is complete.
    """

    key: str
    title: str
    code: str
    asks: bool = False
    cleans: bool = False


KINDS = (
    Kind("await", "awaits", "_begun()\nawait _sleep({forever})"),
    Kind("loop", "pure-Python loop", "_begun()\nwhile True:\n    pass"),
    Kind("sleep", "`time.sleep`", "_begun()\ntime.sleep({forever})"),
    Kind(
        "call",
        "C call that never returns, without the GIL (`pbkdf2_hmac`)",
        "_begun()\nhashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
    ),
    Kind(
        "gil",
        f"C call that holds the GIL for {HOLD} s (`pow`)",
        # A power modulo a number takes a time that grows with the exponent's length.
        "_modulus = 3**2000\n"
        "_start = time.perf_counter()\n"
        "pow(7, 1 << 4000, _modulus)\n"
        "_bits = int(4000 * {hold} / (time.perf_counter() - _start))\n"
        "_begun()\n"
        "pow(7, 1 << _bits, _modulus)\n"
        "None",
    ),
    Kind(
        "exception",
        "catches `Exception` in a loop",
        "_begun()\n"
        "while True:\n"
        "    try:\n"
        "        time.sleep(0.01)\n"
        "    except Exception:\n"
        "        pass",
    ),
    Kind(
        "base-exception",
        "catches `BaseException` in a loop",
        "_begun()\n"
        "while True:\n"
        "    try:\n"
        "        time.sleep(0.01)\n"
        "    except BaseException:\n"
        "        pass",
    ),
    Kind(
        "base-exception-await",
        "catches `BaseException` in a loop that awaits",
        "_begun()\n"
        "while True:\n"
        "    try:\n"
        "        await _sleep(0.01)\n"
        "    except BaseException:\n"
        "        pass",
    ),
    Kind(
        "finally",
        "`try`/`finally` with an await in the `finally`",
        "try:\n"
        "    _begun()\n"
        "    await _sleep({forever})\n"
        "finally:\n"
        "    await _sleep(0.01)\n"
        "    pathlib.Path({cleaned!r}).touch()",
        cleans=True,
    ),
    Kind("shield", "shields itself from cancellation", "_begun()\nawait _shielded()"),
    Kind("input", "waits for `input()`", "_begun()\ninput()", asks=True),
    Kind(
        "background",
        "has left a task running in the background",
        "_spawn()\n_begun()\nawait _sleep({forever})",
    ),
    Kind(
        "children",
        "waits for a child process",
        "with subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({forever})']) as _p:"
        "\n    _begun()\n    _p.wait()",
    ),
)


@attrs.frozen
class Cell:
    """A cell of some kind; `start` makes one that runs."""

    kind: Kind
    request: Request
    begun: Path
    cleaned: Path

    @classmethod
    def of(
        cls,
        kernel: RunningKernel,
        client: Client,
        kind: Kind,
        subshell: str | None = None,
        *,
        hold: float = HOLD,
        **metadata: float,
    ) -> Cell:
        """Return a cell that is to be sent; the file `begun` is there once its own code begins."""
        begun = kernel.directory / f"begun-{time.monotonic_ns()}"
        cleaned = begun.with_name(f"cleaned-{begun.name}")
        places = {
            "marker": str(begun),
            "cleaned": str(cleaned),
            "forever": FOREVER,
            "hold": hold,
        }
        request = client.execute_request(
            (_PRELUDE + kind.code).format(**places),
            subshell,
            allow_stdin=kind.asks,
            metadata=metadata,
        )
        return cls(kind, request, begun, cleaned)

    @classmethod
    def start(
        cls,
        kernel: RunningKernel,
        client: Client,
        kind: Kind,
        subshell: str | None = None,
        **metadata: float,
    ) -> Cell:
        """Start a cell, for a client; return once its own code has begun.

        Raises `ProbeFailed` if it doesn't begin, for whatever reason.
        """
        cell = cls.of(kernel, client, kind, subshell, **metadata)
        client.shell.send_multipart(cell.request.frames)
        try:
            with client.within(BEGIN):
                while not cell.begun.exists():
                    if client.shell.poll(0):
                        content = client.receive_for(client.shell, cell.request).content
                        raise ProbeFailed(f"{content.get('ename')}: {content.get('evalue')}")
                    client.check()
                    time.sleep(0.001)
                if kind.asks:
                    client.receive_for(client.stdin, cell.request)
        except ProbeFailed as error:
            where = "a subshell's" if subshell else "the main shell's"
            raise ProbeFailed(f"{where} cell has not begun: {error}") from error
        return cell
