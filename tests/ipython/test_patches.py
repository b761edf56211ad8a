"""What is changed in the process, and given back."""

from __future__ import annotations

import builtins
import codeop
import getpass
import os
import sys
import threading
import warnings

import jedi
import pytest

from trio_subshells.ipython._patches import replace_attribute, replace_item
from trio_subshells.kernel import CompleteRequest, InspectRequest, IsCompleteRequest


def snapshot() -> dict[str, object]:
    return {
        "stdout": sys.stdout,
        "stderr": sys.stderr,
        "displayhook": sys.displayhook,
        "excepthook": sys.excepthook,
        "ps1": getattr(sys, "ps1", None),
        "main": sys.modules["__main__"],
        "builtins": {name: vars(builtins)[name] for name in vars(builtins) if name != "_"},
        "getpass": getpass.getpass,
        "start": threading.Thread.start,
        "environ": dict(os.environ),
        "filters": list(warnings.filters),
        "recursion": sys.getrecursionlimit(),
        "showwarning": warnings.showwarning,
        "codeop": vars(codeop)["warnings"],
    }


async def test_everything_is_given_back(open_living, threads) -> None:
    async with open_living():
        pass  # IPython's imports leave traces of their own, once
    before, threads_before = snapshot(), threads()
    async with open_living() as living:
        await living.main.run("print('x')\n1 / 0")
        await living.main.run("import threading\nthreading.Thread(target=print).start()")
        changed = snapshot()
        assert changed["stdout"] is not before["stdout"]
        assert changed["main"] is not before["main"]
    assert snapshot() == before
    assert threads() <= threads_before


async def test_completing_leaves_the_recursion_limit_alone(
    main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is everybody's: lowered again, it was the end of whoever had gone deeper in a thread."""
    await main.run("import sys\nlimit = sys.getrecursionlimit()")
    assert await main.value("limit") >= jedi.api.helpers.RECURSION_LIMIT
    changes: list[int] = []
    monkeypatch.setattr(sys, "setrecursionlimit", changes.append)
    request = CompleteRequest(main.info, main.state, {}, code="limit.bit_l", cursor_pos=11)
    assert "bit_length" in (await main.kernel.complete(request)).matches
    assert changes == []


@pytest.mark.parametrize("code", ["limit.bit_l", "x = '\\d'", "numbers[0].bit_l", "f'{a"])
async def test_who_looks_at_code_leaves_the_filters_of_warnings_alone(
    main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    """They are everybody's: swapped by two threads at once, they never were the same again."""
    await main.run("limit, numbers = 1, [1]")

    def swapped(*arguments, **options) -> None:
        pytest.fail("swapped the filters")

    with monkeypatch.context() as patched:
        patched.setattr(warnings, "catch_warnings", swapped)
        patched.setattr(warnings, "simplefilter", swapped)
        patched.setattr(warnings, "filterwarnings", swapped)
        await main.kernel.complete(CompleteRequest(main.info, main.state, {}, code, len(code)))
        await main.kernel.inspect(InspectRequest(main.info, main.state, {}, code, len(code)))
        await main.kernel.is_complete(IsCompleteRequest(main.info, main.state, {}, code))
    assert capsys.readouterr() == ("", "")


async def test_what_warns_while_it_is_looked_at_warns_nobody(recwarn, main) -> None:
    await main.run(
        """
import warnings
looks = 0
class Warns:
    def __getattr__(self, name):
        global looks
        looks += 1
        warnings.warn("looked at", UserWarning)
        raise AttributeError(name)
warnings.simplefilter("always")
it = Warns()
        """
    )
    code = "it.attribute.other"
    await main.kernel.complete(CompleteRequest(main.info, main.state, {}, code, len(code)))
    assert await main.value("looks") > 0
    assert len(recwarn) == 0
    await main.run("getattr(it, 'attribute', None)")
    assert len(recwarn) == 1


async def test_a_recursion_limit_of_a_cell_stays_within_the_kernel(open_living) -> None:
    before = sys.getrecursionlimit()
    async with open_living() as living:
        await living.main.run(f"import sys\nsys.setrecursionlimit({before + 1})")
    assert sys.getrecursionlimit() == before


async def test_it_is_given_back_after_an_error_too(open_living) -> None:
    stdout = sys.stdout
    with pytest.raises(KeyError):
        async with open_living():
            raise KeyError
    assert sys.stdout is stdout


async def test_input_asks_the_client(main) -> None:
    main.recorder.answers[:] = ["Ann", "secret", "y"]
    assert (await main.run("input('name: ')")).result == "'Ann'"
    assert (await main.run("import getpass\ngetpass.getpass()")).result == "'secret'"
    assert (await main.run("input(5)")).result == "'y'"
    assert main.recorder.prompts == [("name: ", False), ("Password: ", True), ("5", False)]


@pytest.mark.parametrize("code", ["input()", "import getpass\ngetpass.getpass()"])
async def test_input_that_the_client_cannot_give(main, code: str) -> None:
    ran = await main.run(code, allow_stdin=False)
    assert ran.error is not None
    assert ran.error.ename == "StdinNotImplementedError"
    assert "allow_stdin is false" in ran.error.evalue


async def test_names_are_there_in_modules_too(main) -> None:
    assert builtins.get_ipython() is main.kernel.shell
    assert callable(builtins.display)
    assert not hasattr(builtins, "exit")


def test_an_undo_puts_back_also_what_was_not_there() -> None:
    mapping = {"a": 1}
    undo_a, undo_b = replace_item(mapping, "a", 2), replace_item(mapping, "b", 3)
    assert mapping == {"a": 2, "b": 3}
    undo_b()
    undo_a()
    assert mapping == {"a": 1}

    class Owner:
        attribute = 1

    undo = replace_attribute(Owner, "attribute", 2)
    assert Owner.attribute == 2
    undo()
    assert Owner.attribute == 1
