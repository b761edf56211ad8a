"""The same programs as Python cells, for `trio-python`."""

from __future__ import annotations

from typing import Final

WORDS: Final = {
    "say": "print({here!r})",
    "write": "print({here!r}, end='')",
    "show": """\
display({{"text/plain": {here!r}}}, raw=True, display_id={here!r})
update_display({{"text/plain": {here!r}}}, raw=True, display_id={here!r})""",
    "nap": "await trio.sleep(0.05)",
    "doze": "time.sleep(0.05)",
    "work": """\
async with trio.open_nursery() as nursery:
    nursery.start_soon(trio.sleep, 0.05)
    nursery.start_soon(trio.sleep, 0.02)""",
    "shield": """\
with trio.CancelScope(shield=True):
    await trio.sleep(0.2)""",
    "spawn": """\
async with spawn_subshell() as subshell:
    await subshell.execute("1 + 1")""",
    "await": "await trio.sleep_forever()",
    "block": "time.sleep(1e6)",
    "catch": """\
try:
    time.sleep(1e6)
except KeyboardInterrupt:
    print({here!r})""",
    "clean": """\
try:
    await trio.sleep_forever()
finally:
    with trio.CancelScope(shield=True):
        await trio.sleep(0.02)
    print({here!r})""",
    "ask": "print(input({here!r} + '? '))",
    "fail": "raise type('Failed', (Exception,), {{}})('as was wanted')",
}
"""Which of the words there are, and what they are."""

_BEGIN: Final = """\
import time
import trio
from IPython.display import display, update_display
from trio_subshells import spawn_subshell
"""


def as_python(tag: str, words: tuple[str, ...]) -> str:
    """A cell's code."""
    lines = [WORDS[word].format(here=f"{tag}.{number}") for number, word in enumerate(words, 1)]
    return _BEGIN + "\n".join(lines)
