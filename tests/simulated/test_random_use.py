"""Kernels are used at random, by plans of a few steps, each under many schedules."""

from __future__ import annotations

import os
from typing import Final

import pytest

from trio_subshells.testing import ScheduleFailed, explore, simulated_kernel

from .driver import use
from .plans import Plan, make_plan
from .programs import ProgramKernel, TaskProgramKernel

PLANS: Final = int(os.environ.get("TRIO_SUBSHELLS_PLANS", "250"))
"""How many there are; a night may have more."""

SCHEDULES: Final = 10
"""For each plan."""

PREEMPTED: Final = ("trio_subshells.actors", "trio_subshells.kernel")


async def carry_out(plan: Plan) -> None:
    kernel = TaskProgramKernel() if plan.tasks else ProgramKernel()
    if plan.most is not None:
        kernel.max_subshells = plan.most
    async with simulated_kernel(kernel) as under_test:
        await use(under_test, plan)


@pytest.mark.parametrize("number", range(PLANS))
def test_random_use(number: int) -> None:
    plan = make_plan(number)
    try:
        explore(carry_out, plan, schedules=SCHEDULES, max_steps=30_000, preempt=PREEMPTED)
    except ScheduleFailed as failed:
        failed.add_note(str(plan))
        raise
