"""A small kernel for tests, which is a program too: ``python words.py -f FILE``."""

from __future__ import annotations

import time

import trio

import trio_subshells as ts


class WordsKernel(ts.Kernel):
    """Does what a few words mean, and says the others.

    Args:
        nap: seconds that it blocks its thread at a time; a real thread isn't struck before.
    """

    implementation = "words"
    implementation_version = "1.0"
    language_info = ts.LanguageInfo(name="words")
    subshells = True

    def __init__(self, nap: float = 0.01) -> None:
        self.nap = nap

    async def execute(self, cell: ts.Cell) -> None:
        match cell.code:
            case "await":
                await trio.sleep_forever()
            case "block":
                while True:
                    time.sleep(self.nap)
            case "fail":
                raise ts.CellError("Failed", "as was wanted", [])
            case "ask":
                cell.stdout(await cell.input("who? "))
            case _:
                cell.stdout(cell.code)


if __name__ == "__main__":
    ts.main(WordsKernel)
