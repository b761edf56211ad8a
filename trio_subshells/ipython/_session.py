"""What a subshell has of its own, and how the one namespace of all subshells shows it.

All subshells execute in one namespace: that is their point. But each counts its own cells and has
its own history (JEP 91), and IPython puts what is counted into the namespace. That is shared thus:

========================== =====================================================================
``In``, ``Out``            are one object each, which shows whoever looks its own subshell's cells
``_ih``, ``_oh``           likewise
``_``, ``__``, ``___``     are put in place when a cell starts: its subshell's latest results
``_i``, ``_ii``, ``_iii``  likewise: its subshell's latest inputs
``_5``, ``_i5``            are the main shell's; elsewhere they would be overwritten by whoever also
                           has a fifth cell: use ``Out[5]`` and ``In[5]``
``_dh``                    is one list: the process is in one directory
========================== =====================================================================

A ``_`` that the user has assigned is left alone, as IPython does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import attrs

from ..kernel import SubshellInfo
from ._history import SessionHistory

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult


@attrs.define(eq=False)
class Session:
    """The state of one subshell. It is touched by that subshell's cells only."""

    info: SubshellInfo
    history: SessionHistory
    results: dict[int, Any] = attrs.field(init=False)
    """By number."""
    execution_count: int = 1
    """What IPython takes it for: the number of the next cell; while a cell runs, that plus one."""
    recent_results: list[Any] = attrs.field(factory=lambda: ["", "", ""])
    """What ``_``, ``__`` and ``___`` are, in this order."""
    last_execution_succeeded: bool = True
    last_execution_result: ExecutionResult | None = None
    running_result: ExecutionResult | None = None
    """What the display hook fills in while a cell runs."""

    @results.default
    def _history_results(self) -> dict[int, Any]:
        results: Any = self.history.output_hist  # IPython annotates it wrongly
        return cast("dict[int, Any]", results)


class InProxy(Sequence[str]):
    """The current subshell's inputs, by number: ``In``.

    Args:
        session: tells whose they are.
    """

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session

    @property
    def _inputs(self) -> list[str]:
        return self._session().history.input_hist_parsed

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._inputs[index]

    def __len__(self) -> int:
        return len(self._inputs)

    def __repr__(self) -> str:
        return repr(self._inputs)


class OutProxy(MutableMapping[int, Any]):
    """The current subshell's results, by number: ``Out``.

    Args:
        session: tells whose they are.
    """

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session

    @property
    def _results(self) -> dict[int, Any]:
        return self._session().results

    def __getitem__(self, number: int) -> Any:
        return self._results[number]

    def __setitem__(self, number: int, result: Any) -> None:
        self._results[number] = result

    def __delitem__(self, number: int) -> None:
        del self._results[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        return repr(self._results)
