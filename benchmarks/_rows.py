"""The rows of the table: every guarantee with its trial and the project's own test of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from _attacks import (
    FORKS,
    big_frame,
    crowding,
    encrypted,
    filling,
    flooding,
    forking,
    leaving_replies,
    not_reading,
    repeating,
    replaying,
    scanning,
)
from _cells import KINDS, Kind
from _trials import (
    Trial,
    deleting,
    interrupt_request,
    interrupting,
    interrupting_all,
    interrupting_one,
    orphaning,
    shutting_down,
    sigint,
    timing_out,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_KIND = {kind.key: kind for kind in KINDS}


def _deletions() -> Iterator[Trial]:
    group = "Delete a subshell that runs a cell which..."
    for kind in KINDS:
        make = partial(deleting, kind)
        yield Trial(f"delete/{kind.key}", group, kind.title, make, subshells=True)
    make = partial(deleting, _KIND["call"], timeout=1.0)
    title = "the same C call, and the request sets a `timeout` of 1 s"
    yield Trial("delete/timeout", group, title, make, subshells=True)


def _interrupts() -> Iterator[Trial]:
    for kind in KINDS:
        make = partial(interrupting, kind, subshell=False)
        group = "Interrupt the main shell's cell which..."
        yield Trial(f"interrupt-main/{kind.key}", group, kind.title, make)
    for kind in KINDS:
        make = partial(interrupting, kind, subshell=True)
        group = "Interrupt a subshell's cell which..."
        yield Trial(f"interrupt-subshell/{kind.key}", group, kind.title, make, subshells=True)
    for key in ("base-exception", "base-exception-await", "shield"):
        make = partial(interrupting, _KIND[key], subshell=True, again=True)
        title = f"{_KIND[key].title}; interrupted again after 1 s"
        yield Trial(f"interrupt-subshell/{key}-again", group, title, make, subshells=True)
    group = "Interrupt: whom it reaches, of three cells in the main shell and two subshells"
    for key, title, how in (
        ("await", "`interrupt_request`, they await", interrupt_request),
        ("loop", "`interrupt_request`, they run a pure-Python loop", interrupt_request),
        ("sleep", "`interrupt_request`, they are in `time.sleep`", interrupt_request),
        ("loop", "SIGINT, they run a pure-Python loop", sigint),
    ):
        name = "sigint" if how is sigint else f"all-{key}"
        make = partial(interrupting_all, _KIND[key], how=how)
        yield Trial(f"interrupt/{name}", group, title, make, subshells=True)
    make = partial(interrupting_one, _KIND["await"])
    title = "`interrupt_request` with the `subshell_id` of one, they await"
    yield Trial("interrupt/one", group, title, make, subshells=True)


def _timeouts() -> Iterator[Trial]:
    for kind in KINDS:
        make = partial(timing_out, kind, subshell=False)
        group = "`timeout` of 0.5 s in the metadata of a cell which..."
        yield Trial(f"timeout/{kind.key}", group, kind.title, make)


def _shutdowns() -> Iterator[Trial]:
    for kind in KINDS:
        make = partial(shutting_down, kind, subshell=True)
        group = "Shut down while a subshell runs a cell which..."
        yield Trial(f"shutdown-subshell/{kind.key}", group, kind.title, make, subshells=True)
    group = "Shut down while the main shell runs a cell which..."
    for kind in KINDS:
        make = partial(shutting_down, kind, subshell=False)
        yield Trial(f"shutdown-main/{kind.key}", group, kind.title, make)
    make = partial(shutting_down, _KIND["loop"], subshell=False, restart=True)
    title = "pure-Python loop, and `restart` is true"
    yield Trial("shutdown-main/restart", group, title, make)


def _orphans() -> Iterator[Trial]:
    idle: Kind | None = None
    for key, title, kind, subshell in (
        ("idle", "idle", idle, False),
        ("loop", "pure-Python loop in the main shell", _KIND["loop"], False),
        ("sleep", "`time.sleep` in a subshell", _KIND["sleep"], True),
        ("call", "C call that never returns, in a subshell", _KIND["call"], True),
        ("children", "child process in the main shell", _KIND["children"], False),
    ):
        make = partial(orphaning, kind, subshell=subshell)
        group = "The parent process is killed, and the kernel is busy with..."
        yield Trial(f"parent/{key}", group, title, make, subshells=subshell)


def _attacks() -> Iterator[Trial]:
    group = "Hostile input"
    yield Trial("hostile/malformed", group, "20,000 malformed messages", flooding, 200)
    yield Trial("hostile/frame", group, "a frame of 100 MB that is no message", big_frame)
    yield Trial("hostile/replay", group, "a request to execute, sent 10 times", replaying)
    title = "1,000 connects, HTTP and garbage on all ports"
    yield Trial("hostile/scan", group, title, scanning, 90)
    yield Trial("hostile/crowd", group, "1,000 clients that ask and go", crowding, 90)
    group = "Readers that don't read"
    title = "100 MB are printed, one of two subscribers doesn't read"
    yield Trial("readers/iopub", group, title, not_reading, 120)
    yield Trial("readers/shell", group, "100 MB of replies that nobody reads", leaving_replies, 120)


def _limits() -> Iterator[Trial]:
    group = "Limits"
    make = partial(filling, hard=None)
    title = "1,000 subshells; soft limit of 1,024 descriptors, hard limit higher"
    yield Trial("limits/raised", group, title, make, 200, subshells=True)
    make = partial(filling, hard=1024)
    title = "as many subshells as 1,024 descriptors allow"
    yield Trial("limits/hard", group, title, make, 200, subshells=True)
    title = "300 rounds of create, execute, delete"
    yield Trial("limits/rounds", group, title, repeating, 200, subshells=True)


def _forks() -> Iterator[Trial]:
    group = "A cell forks"
    for key, (title, code) in FORKS.items():
        yield Trial(f"forks/{key}", group, title, partial(forking, code, subshell=False))
        make = partial(forking, code, subshell=True)
        yield Trial(f"forks/{key}-subshell", group, f"{title}; in a subshell", make, subshells=True)


def _security() -> Iterator[Trial]:
    title = "CurveZMQ keys in the connection file"
    yield Trial("security/curve", "Encryption", title, encrypted)


#: All trials, in the order of the page.
TRIALS: tuple[Trial, ...] = (
    *_deletions(),
    *_interrupts(),
    *_timeouts(),
    *_shutdowns(),
    *_orphans(),
    *_attacks(),
    *_limits(),
    *_forks(),
    *_security(),
)

_PROCESS = "tests/process"
_DELETE = f"{_PROCESS}/test_delete.py::test_a_busy_subshell_is_deleted_and_owes_nothing"
_GIVEN_UP = f"{_PROCESS}/test_given_up.py"
_INTERRUPT = f"{_PROCESS}/test_interrupt.py::test_an_interrupt_ends_a_cell_of"
_EVERYBODY = f"{_PROCESS}/test_interrupt.py::test_an_interrupt_is_for_the_whole_kernel"
_SHUTDOWN = f"{_PROCESS}/test_shutdown.py::test_a_shutdown_ends_a_busy_kernel"
_LEAVES_NOTHING = f"{_PROCESS}/test_leftovers.py::test_a_shutdown_leaves_nothing_behind"
_GIL = f"{_PROCESS}/test_gil.py"
_GENTLE = ("await", "loop", "sleep", "exception", "finally", "input", "background")
_STUBBORN = ("base-exception", "base-exception-await", "shield")
_HOSTILE = "tests/kernel/test_hostile.py"
_LIMITS = f"{_PROCESS}/test_limits.py"
_FORK = f"{_PROCESS}/test_forks.py::test_a_forked_child_has_no_kernel"

#: The project's own test of the same thing, by the key of the trial.
TESTS: dict[str, str] = {
    "delete/await": _DELETE,
    "delete/loop": _DELETE,
    "delete/sleep": _DELETE,
    "delete/call": f"{_GIVEN_UP}::test_a_delete_answers_for_a_call_that_it_can_t_end",
    "delete/timeout": f"{_GIVEN_UP}::test_a_delete_answers_for_a_call_that_it_can_t_end",
    "delete/exception": _DELETE,
    "delete/base-exception": _DELETE,
    "delete/base-exception-await": _DELETE,
    "delete/finally": _DELETE,
    "delete/shield": _DELETE,
    "delete/input": _DELETE,
    "delete/background": _DELETE,
    "delete/children": f"{_PROCESS}/test_leftovers.py"
    "::test_a_deleted_subshell_waits_for_no_process",
    **dict.fromkeys((f"interrupt-main/{key}" for key in _GENTLE), f"{_INTERRUPT}_the_main_shell"),
    **dict.fromkeys((f"interrupt-subshell/{key}" for key in _GENTLE), f"{_INTERRUPT}_a_subshell"),
    "interrupt-main/call": f"{_PROCESS}/test_interrupt.py"
    "::test_an_interrupt_that_has_no_effect_says_so",
    "interrupt-subshell/call": "tests/kernel/test_given_up.py"
    "::test_an_interrupt_that_has_no_effect_says_so_and_the_cell_goes_on",
    "timeout/call": f"{_GIVEN_UP}::test_a_timeout_answers_for_a_call_that_it_can_t_end",
    "shutdown-subshell/call": f"{_GIVEN_UP}::test_a_shutdown_answers_for_a_call_that_it_can_t_end",
    "shutdown-main/call": f"{_GIVEN_UP}::test_a_shutdown_answers_for_a_call_that_it_can_t_end",
    **dict.fromkeys(
        (f"interrupt-{where}/{key}" for where in ("main", "subshell") for key in _STUBBORN),
        f"{_PROCESS}/test_interrupt.py::test_one_interrupt_may_be_refused",
    ),
    **dict.fromkeys(
        (f"interrupt-subshell/{key}-again" for key in _STUBBORN),
        f"{_PROCESS}/test_interrupt.py::test_a_second_interrupt_takes_no_for_an_answer",
    ),
    **dict.fromkeys(
        ("interrupt-main/children", "interrupt-subshell/children", "timeout/children"),
        f"{_PROCESS}/test_leftovers.py::test_an_interrupted_cell_waits_for_no_process",
    ),
    "interrupt/all-await": _EVERYBODY,
    "interrupt/all-loop": _EVERYBODY,
    "interrupt/all-sleep": _EVERYBODY,
    "interrupt/sigint": _EVERYBODY,
    "interrupt/one": f"{_PROCESS}/test_interrupt.py"
    "::test_an_interrupt_of_one_subshell_hits_no_other",
    **dict.fromkeys(
        (f"timeout/{key}" for key in (*_GENTLE, *_STUBBORN)),
        f"{_PROCESS}/test_interrupt.py::test_a_timeout_ends_a_cell",
    ),
    **dict.fromkeys(
        (
            f"shutdown-{where}/{key}"
            for where in ("subshell", "main")
            for key in (*_GENTLE, *_STUBBORN)
        ),
        _SHUTDOWN,
    ),
    "shutdown-subshell/children": _LEAVES_NOTHING,
    "shutdown-main/children": _LEAVES_NOTHING,
    "shutdown-main/restart": f"{_PROCESS}/test_shutdown.py::test_a_shutdown_is_answered_and_done",
    "delete/gil": f"{_GIL}::test_a_delete_comes_after_it",
    "interrupt-main/gil": f"{_GIL}::test_an_interrupt_comes_after_it",
    "interrupt-subshell/gil": f"{_GIL}::test_an_interrupt_comes_after_it",
    "timeout/gil": f"{_GIL}::test_a_timeout_comes_after_it",
    "shutdown-subshell/gil": f"{_GIL}::test_a_shutdown_comes_after_it",
    "shutdown-main/gil": f"{_GIL}::test_a_shutdown_comes_after_it",
    **dict.fromkeys(
        (f"parent/{key}" for key in ("idle", "loop", "sleep", "call", "children")),
        f"{_PROCESS}/test_parent.py::test_a_kernel_ends_with_its_parent",
    ),
    "hostile/malformed": f"{_PROCESS}/test_fuzz.py::test_everything_that_is_owed_and_nothing_else",
    "hostile/frame": "tests/kernel/test_channels.py::test_a_dropped_message_is_not_kept",
    "hostile/replay": f"{_PROCESS}/test_messages.py::test_a_replayed_message_is_ignored",
    "hostile/scan": f"{_HOSTILE}::test_strangers_at_the_ports",
    "hostile/crowd": f"{_HOSTILE}::test_clients_that_come_and_go",
    "readers/iopub": f"{_PROCESS}/test_slow_readers.py::test_a_client_that_stops_reading_iopub",
    "readers/shell": f"{_PROCESS}/test_slow_readers.py::test_a_client_that_stops_reading_replies",
    "limits/raised": f"{_LIMITS}::test_a_thousand_subshells_at_once",
    "limits/hard": f"{_LIMITS}::test_as_many_as_fit_and_then_a_clear_error",
    "limits/rounds": f"{_LIMITS}::test_subshells_leave_nothing_behind",
    **dict.fromkeys(("forks/fork-exit", "forks/fork-exit-subshell"), _FORK),
    **dict.fromkeys(
        ("forks/fork-on", "forks/fork-on-subshell"),
        f"{_PROCESS}/test_forks.py::test_a_forked_child_comes_to_the_end_of_the_cell",
    ),
    **dict.fromkeys(
        ("forks/multiprocessing", "forks/multiprocessing-subshell"),
        f"{_PROCESS}/test_forks.py::test_what_programs_write_reaches_their_cell_in_its_order",
    ),
    "security/curve": f"{_PROCESS}/test_security.py"
    "::test_jupyter_client_demands_encryption_and_gets_it",
}
