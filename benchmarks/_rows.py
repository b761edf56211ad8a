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

#: The project's own test of the same thing, by the key of the trial.
TESTS: dict[str, str] = {}
