"""What threads share, with and without a mistake; the tests of preemption stop threads in here."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any


class Counter:
    """Counts in several ways, each of them a read and a write."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()

    def add_in_place(self) -> None:
        self.count += 1

    def add_in_two_statements(self) -> None:
        count = self.count
        self.count = count + 1

    def add_under_lock(self) -> None:
        with self.lock:
            self.add_in_two_statements()

    def add_between_calls(self) -> None:
        self.lock.acquire()
        try:
            self.add_in_two_statements()
        finally:
            self.lock.release()


class Once:
    """Gives something to one only, if it did."""

    def __init__(self) -> None:
        self.left = 1

    def by_and(self) -> bool:
        return self.left > 0 and self.take()

    def by_or(self) -> bool:
        return not (self.left < 1 or not self.take())

    def by_condition(self) -> bool:
        return self.take() if self.left else False

    def by_loop(self) -> bool:
        while self.left:
            return self.take()
        return False

    def take(self) -> bool:
        self.left -= 1
        return True


class Table:
    """Numbers by name."""

    def __init__(self) -> None:
        self.numbers = {"one": 1, "two": 2}

    def total(self) -> int:
        return sum(number for number in self.numbers.values() if number > 0)

    def grow(self) -> None:
        self.numbers["three"] = 3


class Pair:
    """Two numbers that are to be the same for all who look at them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.first = self.second = 0

    def increase(self) -> None:
        with self.lock, self.lock:
            self.first += 1
            self.second += 1

    def look(self) -> bool:
        with self.lock:
            return self.look_without_lock()

    def look_without_lock(self) -> bool:
        return self.first == self.second


class Shapes:
    """What a function can be."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def all_of_them(self) -> list[str]:
        self.log.append("method")
        with self.manager():
            self.log.append(self.attribute)
        for each in self.generator():
            self.log.append(each)
        self.log.append(self.closure()())
        self.log.append(self.statically())
        self.log.append(Derived().name())
        return self.log

    @contextmanager
    def manager(self) -> Iterator[None]:
        self.log.append("manager")
        yield

    @property
    def attribute(self) -> str:
        return str.lower("PROPERTY")

    def generator(self) -> Iterator[str]:
        yield str.lower("GENERATOR")

    def closure(self) -> Callable[[], str]:
        log = self.log

        def inner() -> str:
            return f"closure {len(log)}"

        return inner

    @staticmethod
    def statically() -> str:
        """Has a docstring, too."""
        return str.lower("STATIC")


class Base:
    def name(self) -> str:
        return type(self).__name__


class Derived(Base):
    def name(self) -> str:
        return super().name().lower()


@types.coroutine
def passing(value: Any) -> Generator[None, None, Any]:
    """A coroutine of the old kind; waits for nothing."""
    if False:
        yield
    return value.copy()


def fails() -> None:
    len([])
    raise ValueError(str.lower("HERE"))
