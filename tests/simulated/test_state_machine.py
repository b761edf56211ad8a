"""Clients that do anything, in any order: in the simulator, and with the same steps for real.

Hypothesis makes the steps, one rule for each thing that a client can do. When it has enough of
them, they are carried out as a plan (`driver`): the kernel is used, everything ended, and compared
with the specification of the protocol and with what the cells had to say. A failing plan is shrunk
to the steps that matter.

`TRIO_SUBSHELLS_EXAMPLES` says how many plans there are, and lets them be other ones each time.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any, Final

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from trio_subshells.testing import explore, real_kernel, simulated_kernel

from .driver import use
from .in_python import WORDS, as_python
from .plans import GHOST, Plan, Step
from .programs import ProgramKernel

EXAMPLES: Final = os.environ.get("TRIO_SUBSHELLS_EXAMPLES")
SCHEDULES: Final = 6
"""For each plan."""

TRIO_PYTHON: Final = (sys.executable, "-m", "trio_subshells")

HANG: Final = 120
PATIENCE: Final = 0.4
"""Seconds that a real kernel has before what goes on is ended."""

words = st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=3)
letters = st.sampled_from("abc")
options = st.fixed_dictionaries(
    {},
    optional={
        "timeout": st.sampled_from([0.05, 0.3]),
        "stop_on_error": st.just(False),
        "silent": st.just(True),
        "store_history": st.just(False),
    },
)


class Clients(RuleBasedStateMachine):
    """Makes a plan; then carries it out."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.created = ""

    def add(self, action: str, shell: str | None = None, **more: Any) -> None:
        self.steps.append(Step(action, shell, **more))

    def shell(self, letter: str) -> str | None:
        """A subshell that there is, or was; or the main shell."""
        return letter if letter in self.created else None

    @precondition(lambda self: len(self.created) < 3)
    @rule()
    def create(self) -> None:
        letter = "abc"[len(self.created)]
        self.created += letter
        self.add("create", letter)

    @precondition(lambda self: self.created)
    @rule(letter=letters)
    def delete(self, letter: str) -> None:
        self.add("delete", self.shell(letter) or GHOST)

    @rule(letter=letters, words=words, options=options)
    def execute(self, letter: str, words: list[str], options: dict[str, Any]) -> None:
        self.add("execute", self.shell(letter), words=tuple(words), options=options)

    @rule(words=words, first=letters, second=letters)
    def execute_twice(self, words: list[str], first: str, second: str) -> None:
        for letter in (first, second):
            self.add("execute", self.shell(letter), words=tuple(words))

    @rule(letter=letters, everything=st.booleans())
    def interrupt(self, letter: str, everything: bool) -> None:
        self.add("interrupt", None if everything else self.shell(letter))

    @rule(action=st.sampled_from(["list", "info"]))
    def look(self, action: str) -> None:
        self.add(action)

    @rule(letter=letters, action=st.sampled_from(["complete", "is_complete", "history"]))
    def ask(self, letter: str, action: str) -> None:
        self.add(action, self.shell(letter), words=("nap",))

    @rule(letter=letters)
    def say_on_a_comm(self, letter: str) -> None:
        self.add("comm_open", self.shell(letter), words=("nap",))

    @precondition(lambda self: self.steps)
    @rule(action=st.sampled_from(["wait", "begun"]), back=st.integers(0, 3))
    def wait(self, action: str, back: int) -> None:
        self.add(action, target=max(1, len(self.steps) - back))

    @rule(seconds=st.sampled_from([0.01, 0.1]))
    def pause(self, seconds: float) -> None:
        self.add("pause", seconds=seconds)

    def teardown(self) -> None:
        """Carry it out."""
        if not self.steps:
            return
        plan = Plan(0, tuple(self.steps))
        try:
            self.carry_out(plan)
        except Exception as error:
            error.add_note(str(plan))
            raise

    def carry_out(self, plan: Plan) -> None:
        raise NotImplementedError


class Simulated(Clients):
    def carry_out(self, plan: Plan) -> None:
        explore(in_the_simulator, plan, schedules=SCHEDULES, shrink=False)


class Real(Clients):
    def carry_out(self, plan: Plan) -> None:
        trio.run(for_real, plan)


async def in_the_simulator(plan: Plan) -> None:
    async with simulated_kernel(ProgramKernel()) as kernel:
        await use(kernel, plan)


async def for_real(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as directory, trio.fail_after(HANG):
        async with real_kernel(TRIO_PYTHON, env={"IPYTHONDIR": directory}) as kernel:
            await use(kernel, plan, code=as_python, patience=PATIENCE)


def examples(count: int) -> settings:
    """So many, unless more are wanted; then they are other ones each time."""
    return settings(
        max_examples=int(EXAMPLES or count),
        derandomize=EXAMPLES is None,
        stateful_step_count=10,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


TestSimulated = Simulated.TestCase
TestSimulated.settings = examples(20)

TestReal = pytest.mark.process(Real.TestCase)
TestReal.settings = examples(4)
