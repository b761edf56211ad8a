"""Random plans: what clients do to a kernel, in few steps that a person can read.

A plan is made of a number, and of nothing else: the same number is the same plan. Each leaves out
most of what there is to do (swarm testing: Groce et al., 2012), so that what is left meets itself
more often.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from .programs import ASKING, ENDING, ENDLESS, FAILING, PRINTING, QUIET

GHOST = "ghost"
"""A subshell that there never was."""


@attrs.frozen
class Step:
    """One thing that a client does.

    Attributes:
        action: what.
        shell: to which subshell, by a letter; None: to the main shell, or to none.
        words: that a cell, or a handler, is to do.
        options: of the request.
        target: the number of the step that is waited for.
        seconds: how long.
        second: whether the second client does it.
    """

    action: str
    shell: str | None = None
    words: tuple[str, ...] = ()
    options: Mapping[str, Any] = attrs.field(factory=dict)
    target: int = 0
    seconds: float = 0
    second: bool = False

    def __str__(self) -> str:
        parts = [self.action]
        if self.words:
            parts.append(repr(", ".join(self.words)))
        if self.shell is not None:
            parts.append(self.shell if self.action in ("create", "delete") else f"in {self.shell}")
        if self.target:
            parts.append(str(self.target))
        if self.seconds:
            parts.append(f"for {self.seconds:g} s")
        if self.options:
            parts.append("with " + ", ".join(f"{key}={each}" for key, each in self.options.items()))
        if self.second:
            parts.append("(second client)")
        return " ".join(parts)


@attrs.frozen
class Plan:
    """What clients do, one step after the other; they wait for answers only where it says so.

    Attributes:
        number: that it was made of.
        steps: what they do.
        tasks: whether subshells are tasks of the main shell's loop.
        two: whether there is a second client.
        named: whether an answer to a prompt says which prompt it answers.
        prompt: whether prompts are answered at once; else two at a time, the second one first.
        most: how many subshells there may be at once; None: as many as may be.
        end: what happens when all is done: ``delete``, ``shutdown``, ``restart`` or ``leave``.
    """

    number: int
    steps: tuple[Step, ...]
    tasks: bool = False
    two: bool = False
    named: bool = True
    prompt: bool = True
    most: int | None = None
    end: str = "shutdown"

    def __str__(self) -> str:
        kind = [
            "subshells are tasks" if self.tasks else "",
            "" if self.named else "answers to prompts don't name them",
            "" if self.prompt else "prompts are answered late",
            "" if self.most is None else f"at most {self.most} subshells",
        ]
        lines = [f"plan {self.number}: {'; '.join([*filter(None, kind), f'end: {self.end}'])}"]
        lines += [f"  {number:2}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join(lines)


def make_plan(number: int) -> Plan:
    """The plan of a number."""
    return _Maker(number).make()


class _Maker:
    def __init__(self, number: int) -> None:
        self._number = number
        self._random = random.Random(f"plan {number}")
        self._steps: list[Step] = []
        self._letters = ""
        self._two = self._chance(0.2)
        self._stuck = self._chance(0.1)
        self._tasks = self._chance(0.15)
        self._words = self._vocabulary()
        actions = {
            "execute": 8.0,
            "create": 2.0,
            "delete": 2.0,
            "interrupt": 2.0,
            "list": 1.0,
            "info": 1.0,
            "request": 1.0,
            "comm": 1.0,
            "wait": 2.0,
            "begun": 2.0,
            "pause": 1.0,
            "shutdown": 0.3,
        }
        if self._two:
            actions |= {"vanish": 0.3, "stop reading": 0.3}
        kept = {"execute", *self._random.sample(sorted(actions), 5)}
        self._actions = {each: weight for each, weight in actions.items() if each in kept}

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _vocabulary(self) -> list[str]:
        kinds = [PRINTING, ENDING, ENDLESS, ASKING, FAILING]
        words = [
            *self._random.sample(PRINTING, 1),
            *(self._random.choice(kind) for kind in self._random.sample(kinds, 3)),
        ]
        if self._tasks:  # a thread that is blocked for ever blocks its deletion, too
            words = [each for each in words if each not in ("block", "both", "catch", "input")]
        return words

    def make(self) -> Plan:
        """Make it."""
        if self._chance(0.8):
            self._add_create()
        names, weights = zip(*self._actions.items(), strict=True)
        for _ in range(self._random.randint(4, 9)):
            self._add(self._random.choices(names, weights)[0])
            if len(self._steps) >= 11:
                break
        return Plan(
            self._number,
            tuple(self._steps),
            tasks=self._tasks,
            two=self._two,
            named=self._chance(0.8),
            prompt=self._chance(0.6),
            most=1 if self._chance(0.1) else None,
            end=self._random.choice(["delete", "shutdown", "shutdown", "restart", "leave"]),
        )

    def _shell(self) -> str | None:
        if self._chance(0.04):
            return GHOST
        return self._random.choice([None, *self._letters])

    def _add_create(self) -> None:
        letter = chr(ord("a") + len(self._letters))
        self._letters += letter
        self._steps.append(Step("create", letter, second=self._second()))

    def _second(self) -> bool:
        return self._two and self._chance(0.4)

    def _some(self, words: Sequence[str], most: int) -> tuple[str, ...]:
        chosen = tuple(self._random.choice(words) for _ in range(self._random.randint(1, most)))
        # It can't be struck when it returns, as a real call would be: so it is the last thing.
        return (*chosen, "stuck") if self._stuck and self._chance(0.4) else chosen

    def _add(self, action: str) -> None:
        shell = self._shell()
        second = self._second()
        match action:
            case "create" if len(self._letters) < 3:
                self._add_create()
            case "delete" if shell is not None:
                options = {"timeout": 0.5} if self._chance(0.2) else {}
                self._steps.append(Step("delete", shell, options=options, second=second))
            case "execute":
                self._steps.append(
                    Step(
                        "execute",
                        shell,
                        self._some(self._words, 3),
                        self._options(),
                        second=second,
                    )
                )
            case "request":
                kind = self._random.choice(["complete", "is_complete", "history", "kernel_info"])
                words = self._some(QUIET, 1) if "complete" in kind else ()
                if self._tasks:
                    words = tuple(each for each in words if each != "block")
                self._steps.append(Step(kind, shell, words or ("nap",), second=second))
            case "comm":
                quiet = [each for each in QUIET if not (self._tasks and each == "block")]
                self._steps.append(
                    Step("comm_open", shell, (self._random.choice(quiet),), second=second)
                )
            case "interrupt":
                whom = shell if self._chance(0.5) else None
                self._steps.append(Step("interrupt", whom, second=second))
            case "wait" | "begun" if len(self._steps) > 1:
                target = self._random.randint(1, len(self._steps))
                self._steps.append(Step(action, target=target))
            case "pause":
                self._steps.append(
                    Step("pause", seconds=self._random.choice([0.01, 0.1, 0.6, 2, 8]))
                )
            case "list" | "info":
                self._steps.append(Step(action, second=second))
            case "shutdown":
                self._steps.append(
                    Step("shutdown", options={"restart": self._chance(0.5)}, second=second)
                )
            case "vanish" | "stop reading":
                self._steps.append(Step(action, second=True))

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._chance(0.2):
            options["timeout"] = self._random.choice([0.03, 0.3, 2])
            if self._chance(0.3):
                options["give_up_after"] = 1.0
        if self._chance(0.2):
            options["stop_on_error"] = False
        if self._chance(0.1):
            options["silent"] = True
        if self._chance(0.1):
            options["store_history"] = False
        if self._chance(0.15):
            options["allow_stdin"] = False
        if self._chance(0.1):
            options["user_expressions"] = {"x": "six"}
        return options
