"""Preemption: between two statements of chosen modules, a thread may be stopped for others.

What a task does between two checkpoints is one step for the simulator. In reality another thread
may go on anywhere in it, and where two of them share something, a lock that is missing, or what is
told before it is so, shows there and nowhere else. So modules that one chooses are compiled anew,
with a call before each statement that touches anything, between what ``and``, ``or``, ``+=`` and
``x if y else z`` read and what they do next, and before each element of a comprehension. The code
of their functions is exchanged while schedules are explored, and put back afterwards; line numbers
stay as they are.

Few of these places are made use of in any one schedule: a switch at each of them would be more
orders than can be tried, and most of them the same. Which ones is drawn from those that were
reached in earlier schedules, without putting them back before all have had their turn, since a race
shows at some lines only. Every other one is beside a lock: what is done too early or too late is
done there. A thread that is stopped there waits until nothing else can happen, or is
chosen: that is one deviation of the schedule, which is replayed and left out in shrinking as others
are.

A thread that is stopped keeps its locks. Those that the chosen modules take, by ``with`` or by
``acquire``, are therefore stand-ins here, which block simulated threads. Others may call into the
chosen modules with a real lock: whoever wanted that while a thread is stopped there would block all
threads, for ever. So that is looked for before a thread is stopped, as far as it can be seen.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import linecache
import math
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, Final

import attrs

from ._errors import RealLock
from ._loops import Loop
from ._simulation import Simulation, Turn

_STOP: Final = "__may_be_preempted__"
_LOCK: Final = "__lock_of_simulation__"
"""Names that the code of chosen modules is given; they are left there, and do nothing then."""

_MANY: Final = 16
"""Stops in a schedule, at most, of a small module. A race takes two threads in two places at once,
one of them the right one: with 4, the corpus's mutants were missed half as often again."""

_STEP: Final = Loop.step.__code__
"""The function that makes a task's step: what calls that isn't the task's."""

_KINDS_OF_LOCK: Final = (type(threading.Lock()), type(threading.RLock()))
_OF_LOCKS: Final = frozenset({"acquire", "release", "locked"})
_TOUCHES: Final = (ast.Attribute, ast.Subscript, ast.Call, ast.Await)
_CONSTRUCTORS: Final = frozenset({"__init__", "__attrs_post_init__"})


@attrs.frozen
class Stop:
    """Where a thread is to be stopped.

    Attributes:
        place: before which statement: ``package.module:line``; where a line has several places,
            the second is ``package.module:line.2``.
        times: at the how many-th time that it is reached: since the last decision, or, if there is
            none, in the run.
        decision: how many decisions have been made then; None: any number.
    """

    place: str
    times: int = 1
    decision: int | None = None

    def __str__(self) -> str:
        return self.place if self.times == 1 else f"{self.place}*{self.times}"

    @classmethod
    def parse(cls, text: str, decision: int | None = None) -> Stop:
        """Read what ``str()`` has written.

        Raises:
            ValueError: it isn't that.
        """
        place, star, times = text.partition("*")
        if star and not (times.isascii() and times.isdigit() and int(times)):
            raise ValueError(f"{text!r} doesn't say how many times a place is reached")
        return cls(place, int(times) if star else 1, decision)


class Preemption:
    """Where threads may be stopped in an exploration, and what it has learned of that.

    Args:
        modules: modules and packages, or their names; of a package, all that is in it.

    Raises:
        ValueError: there is no such module, or its source can't be read.
    """

    def __init__(self, modules: Sequence[ModuleType | str]) -> None:
        self._code = _code_of(
            [each if isinstance(each, str) else each.__name__ for each in modules]
        )
        self._most: dict[int, int] = {}
        self._decks: tuple[list[int], list[int]] = ([], [])

    @property
    def reached(self) -> dict[str, int]:
        """The places that were reached so far, and how many times in one schedule at most."""
        return {self._code.places[number]: most for number, most in self._most.items()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Exchange the code of the modules' functions, and put it back at the end."""
        code = self._code
        for module in code.modules:
            vars(module)[_STOP] = _go_on
            vars(module)[_LOCK] = _lock_of
        for function, _, other in code.functions:
            function.__code__ = other
        try:
            yield
        finally:
            for function, own, _ in code.functions:
                function.__code__ = own
            for module in code.modules:
                vars(module)[_STOP] = _go_on

    def _draw(self, rng: random.Random) -> list[Stop]:
        """Where to stop threads in the next schedule."""
        stops = []
        if self._most:
            most = max(_MANY, len(self._most) // 16)
            for _ in range(int(math.exp(rng.uniform(0, math.log(most + 1))))):
                number = self._deal(rng)
                # Rather early than late: what begins is mostly what is done only once.
                times = 1 + int(self._most[number] * rng.random() ** 2)
                stops.append(Stop(self._code.places[number], times))
        return stops

    def _deal(self, rng: random.Random) -> int:
        beside_locks = self._code.beside_locks.intersection(self._most)
        at_lock = bool(beside_locks) and rng.random() < 0.5
        deck = self._decks[at_lock]
        if not deck:
            deck += sorted(beside_locks if at_lock else self._most)
            rng.shuffle(deck)
        return deck.pop()

    def watch(
        self,
        simulation: Simulation,
        stops: Iterable[Stop],
        chance: Callable[[str], random.Random] | None,
    ) -> None:
        """Stop the threads of a simulation that is about to run.

        Args:
            simulation: the one.
            stops: where.
            chance: makes the generator by which other places are drawn; None: there are none.
        """
        if chance is not None:
            rng = chance("preemption")
            simulation.patient = rng.random() < 0.5
            stops = [*stops, *self._draw(rng)]
        wanted: dict[int, list[Stop]] = {}
        for stop in stops:
            number = self._code.numbers.get(stop.place)
            if number is not None:
                wanted.setdefault(number, []).append(stop)
        watch = _Watch(simulation, wanted, self._code)
        simulation.locks = watch.locks
        for module in self._code.modules:
            vars(module)[_STOP] = watch.reached

        def learn() -> None:
            for number, count in watch.counts.items():
                self._most[number] = max(count, self._most.get(number, 0))

        simulation.at_end.append(learn)


class _Watch:
    """Who reaches what in one run.

    Attributes:
        counts: how many times each place was reached.
        locks: the stand-ins for locks.
    """

    def __init__(self, simulation: Simulation, wanted: dict[int, list[Stop]], code: _Code) -> None:
        self.counts: dict[int, int] = {}
        self.locks = Locks(simulation)
        self._simulation = simulation
        self._wanted = wanted
        self._places = code.places
        self._modules = {each.__name__ for each in code.modules}
        self._since: dict[int, tuple[int, int]] = {}

    def reached(self, number: int) -> None:
        """Called by the modules' code. Returns None, as what stands for False."""
        simulation = self._simulation
        if not simulation.stepping or len(simulation.threads) < 2 or simulation.failure is not None:
            return
        counts = self.counts
        counts[number] = count = counts.get(number, 0) + 1
        if number in self._wanted:
            self._look(number, count)

    def _look(self, number: int, count: int) -> None:
        """Somewhere where threads are to be stopped: is this the time?"""
        simulation = self._simulation
        decisions = simulation.decisions
        decision, times = self._since.get(number, (decisions, 0))
        times = times + 1 if decision == decisions else 1
        self._since[number] = decisions, times
        wanted = self._wanted[number]
        for stop in wanted:
            if stop.decision is None:  # or later, when there is somebody else who can go on
                is_now = count >= stop.times
            else:
                is_now = times == stop.times and decisions == stop.decision
            if is_now and simulation.could_preempt():
                error = _real_lock(sys._getframe(2), self._modules, self._places[number])
                if error is not None:
                    simulation.fail(error)
                    return
                wanted.remove(stop)
                simulation.stops.append(Stop(self._places[number], count))
                simulation.preempt(str(Stop(self._places[number], times)))
                return


def _go_on(number: int) -> None:
    """What the modules' code calls where nothing is simulated."""


# ------------------------------------------------------------------------------------------- locks


class Locks:
    """The locks that simulated threads have taken in the chosen modules, of one run."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._all: dict[int, StandIn] = {}

    def of(self, lock: Any) -> StandIn:
        """What stands for a lock, which is kept."""
        stand_in = self._all.get(id(lock))
        if stand_in is None:
            stand_in = self._all[id(lock)] = StandIn(self._simulation, lock)
        return stand_in


class StandIn:
    """A `threading.Lock` or `threading.RLock` for simulated threads, in place of the real one."""

    def __init__(self, simulation: Simulation, lock: Any) -> None:
        self._simulation = simulation
        self._real = lock
        self._reentrant = isinstance(lock, _KINDS_OF_LOCK[1])
        self._owner = 0
        self._depth = 0
        self._waiting: list[Turn] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As the real one's, in virtual seconds."""
        simulation = self._simulation
        me = threading.get_ident()
        if self._reentrant and self._owner == me:
            self._depth += 1
            return True
        if simulation.is_over:  # what its threads do while they are taken apart
            return True
        end = simulation.clock.now + timeout if timeout >= 0 else None
        while self._owner:
            if not blocking or (end is not None and simulation.clock.now >= end):
                return False
            if not simulation.stepping:
                raise RuntimeError(
                    "a lock is held by a simulated thread that waits for something, and what has "
                    "come with time wants it: the simulator can't let it wait"
                )
            turn = simulation.resumption()
            self._waiting.append(turn)
            if end is not None:
                simulation.add_at(end, turn)
            try:
                simulation.block_for_lock(turn)
            finally:
                simulation.remove(turn)
                if turn in self._waiting:
                    self._waiting.remove(turn)
        self._owner, self._depth = me, 1
        simulation.locked += 1
        return True

    def release(self) -> None:
        """As the real one's."""
        if not self._owner:
            self._real.release()  # raises, or releases what was taken before all this
            return
        self._depth -= 1
        if self._depth:
            return
        self._owner = 0
        self._simulation.locked -= 1
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            self._simulation.remove(turn)  # it may be there at a time
            self._simulation.add(turn)

    def locked(self) -> bool:
        """Whether somebody has it."""
        return bool(self._owner)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _lock_of(lock: Any) -> Any:
    """What the modules' code takes instead of a lock; what isn't one stays as it is."""
    if isinstance(lock, _KINDS_OF_LOCK):
        simulation = Simulation.current
        if simulation is not None and simulation.locks is not None and simulation.is_here():
            return simulation.locks.of(lock)
    return lock


def _real_lock(frame: FrameType | None, modules: Container[str], place: str) -> RealLock | None:
    """What is wrong with stopping a thread, if it has come there with a lock that isn't simulated.

    Args:
        frame: where it is.
        modules: whose locks are simulated.
        place: its name.
    """
    while frame is not None and frame.f_code is not _STEP:
        module = frame.f_globals.get("__name__")
        if module not in modules:
            for first, last, what in _blocks(frame.f_code):
                if first <= frame.f_lineno <= last and _is_lock(what, frame):
                    return RealLock(
                        f"a thread can't be stopped at {place}: it has come there with a lock, "
                        f"{what}, from {module}:{frame.f_lineno}, where locks aren't simulated; "
                        "whoever wants the same one would wait for ever. Stop threads in that "
                        f"module, too: preempt=[..., {module!r}]"
                    )
        frame = frame.f_back
    return None


def _is_lock(what: str, frame: FrameType) -> bool:
    try:
        return isinstance(eval(what, frame.f_globals, frame.f_locals), _KINDS_OF_LOCK)
    except Exception:
        return False  # it is called otherwise by now


@functools.lru_cache(1000)
def _blocks(code: CodeType) -> list[tuple[int, int, str]]:
    """The blocks of a function's ``with`` that may be locks': first line, last line, and whose."""
    try:
        source = inspect.getsource(code)
        tree = ast.parse("if True:\n" + source if source[0].isspace() else "\n" + source)
    except (OSError, SyntaxError):
        return []
    before = code.co_firstlineno - 2
    return [
        (each.body[0].lineno + before, (each.end_lineno or 0) + before, ast.unparse(what))
        for each in ast.walk(tree)
        if isinstance(each, ast.With)
        for what in (item.context_expr for item in each.items)
        if isinstance(what, ast.Name | ast.Attribute)
    ]


# --------------------------------------------------------------------------------------- compiling


def _modules(names: Sequence[str]) -> list[ModuleType]:
    """The modules of these names, and those in them, that have been imported."""
    found: dict[str, ModuleType] = {}
    for name in names:
        if not isinstance(sys.modules.get(name), ModuleType):
            raise ValueError(
                f"there is no module {name!r} among those that have been imported: preempt takes "
                "modules and packages, or their full names"
            )
        for full, module in sorted(sys.modules.items()):
            ours = full == name or full.startswith(f"{name}.")
            if ours and isinstance(module, ModuleType) and getattr(module, "__file__", None):
                found[full] = module
    return list(found.values())


@attrs.frozen(eq=False)
class _Code:
    """Modules that have been compiled anew.

    Attributes:
        modules: which.
        places: where threads may be stopped in them.
        numbers: the position of each of these.
        beside_locks: the positions of those where something like a lock is taken.
        functions: those of the modules, each with its own code and with the other.
    """

    modules: list[ModuleType]
    places: list[str]
    numbers: dict[str, int]
    beside_locks: set[int]
    functions: list[tuple[FunctionType, CodeType, CodeType]]


_codes: dict[tuple[str, ...], _Code] = {}
"""Of the names that were given: small tests explore often."""


def _code_of(names: Sequence[str]) -> _Code:
    modules = _modules(names)
    known = _codes.get(tuple(names))
    if known is None or known.modules != modules:
        known = _codes[tuple(names)] = _compile(modules)
    return known


def _compile(modules: list[ModuleType]) -> _Code:
    """Compile modules with calls where a thread may be stopped."""
    short = Counter(_short(each.__name__) for each in modules)
    places: list[str] = []
    beside_locks: set[int] = set()
    codes: dict[int, dict[tuple[str, int], CodeType]] = {}
    for module in modules:
        name = _short(module.__name__)
        instrument = _Instrument(name if short[name] == 1 else module.__name__, len(places))
        codes[id(vars(module))] = _functions(_compile_module(module, instrument))
        places += instrument.places
        beside_locks |= instrument.beside_locks
    functions = []
    for function in [each for each in gc.get_objects() if type(each) is FunctionType]:
        own = function.__code__
        known = codes.get(id(function.__globals__), {})
        other = known.get((own.co_qualname, own.co_firstlineno))
        if other is not None and other.co_freevars == own.co_freevars:
            # What `types.coroutine` has made of it is in its flags.
            iterable = own.co_flags & inspect.CO_ITERABLE_COROUTINE
            functions.append((function, own, other.replace(co_flags=other.co_flags | iterable)))
    numbers = {place: number for number, place in enumerate(places)}
    return _Code(modules, places, numbers, beside_locks, functions)


def _compile_module(module: ModuleType, instrument: _Instrument) -> CodeType:
    assert module.__file__ is not None
    path = inspect.getsourcefile(module) or module.__file__
    source = "".join(linecache.getlines(path, vars(module)))
    if not source:
        raise ValueError(f"there is no source of {module.__name__!r} to be read: {path!r}")
    tree = ast.fix_missing_locations(instrument.visit(ast.parse(source, path)))
    return compile(tree, path, "exec", dont_inherit=True)


def _functions(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """The code of all functions in a module's, by what is known of them elsewhere."""
    found: dict[tuple[str, int], CodeType] = {}
    twice: set[tuple[str, int]] = set()
    todo = [code]
    while todo:
        for each in todo.pop().co_consts:
            if isinstance(each, CodeType):
                todo.append(each)
                key = each.co_qualname, each.co_firstlineno
                if key in found:
                    twice.add(key)
                found[key] = each
    for key in twice:  # several lambdas in a line
        del found[key]
    return found


def _short(module: str) -> str:
    """Its name in schedules: with the package that it is in, and no other."""
    return ".".join(module.split(".")[-2:])


class _Instrument(ast.NodeTransformer):
    """Puts the calls into functions.

    Attributes:
        places: the names of those places, in the order of their numbers.
        beside_locks: the numbers of those before something like a lock is taken, and after it.
    """

    def __init__(self, module: str, first: int) -> None:
        self.places: list[str] = []
        self.beside_locks: set[int] = set()
        self._module = module
        self._first = first
        self._on_line: dict[int, int] = {}
        self._within = False
        self._constructs = False

    # --- what is only looked into

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        outside = self._within, self._constructs
        self._within, self._constructs = True, node.name in _CONSTRUCTORS
        has_docstring = ast.get_docstring(node, clean=False) is not None
        docstring = node.body[: int(has_docstring)]
        node.body = [*docstring, *self._block(node.body[len(docstring) :])]
        self._within, self._constructs = outside
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        outside, self._within = self._within, False
        node.body = [self.visit(each) for each in node.body]
        self._within = outside
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node  # where one is called, nobody can say

    # --- statements

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, name, self._block(value))
            elif isinstance(value, list):
                value[:] = [
                    self.visit(each) if isinstance(each, ast.AST) else each for each in value
                ]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        block: list[ast.stmt] = []
        after_lock = False
        for statement in statements:
            takes_lock = _may_take_lock(statement)
            private = self._constructs and _sets_attribute(statement)  # nobody else knows it yet
            if self._within and not private and _touches(statement):
                block.append(ast.copy_location(ast.Expr(self._call(statement)), statement))
                if takes_lock or after_lock:
                    self.beside_locks.add(self._first + len(self.places) - 1)
            after_lock = takes_lock
            block.append(self.visit(statement))
        return block

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        if self._within and _contains(node.test):
            node.test = self._before(node.test)
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        for item in node.items:
            item.context_expr = self._lock(item.context_expr)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if self._within and isinstance(node.target, ast.Attribute | ast.Subscript):
            node.value = self._before(node.value)
        return node

    # --- expressions

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        if self._within:
            first, *others = node.values
            node.values = [
                first,
                *(self._before(each) if _contains(each) else each for each in others),
            ]
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        if self._within:
            if _contains(node.body):
                node.body = self._before(node.body)
            if _contains(node.orelse):
                node.orelse = self._before(node.orelse)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        """Before each element, in the midst of walking through what others may change."""
        self.generic_visit(node)
        if self._within and _contains(node.iter) and not node.is_async:
            call = self._call(node.iter)
            node.ifs.insert(0, ast.copy_location(ast.UnaryOp(ast.Not(), call), node.iter))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _OF_LOCKS:
            node.func.value = self._lock(node.func.value)
        return node

    # --- what is put there

    def _call(self, node: ast.stmt | ast.expr) -> ast.expr:
        line = node.lineno
        count = self._on_line[line] = self._on_line.get(line, 0) + 1
        self.places.append(f"{self._module}:{line}" + (f".{count}" if count > 1 else ""))
        number = self._first + len(self.places) - 1
        name = ast.copy_location(ast.Name(_STOP, ast.Load()), node)
        argument = ast.copy_location(ast.Constant(number), node)
        return ast.copy_location(ast.Call(name, [argument], []), node)

    def _before(self, node: ast.expr) -> ast.expr:
        return ast.copy_location(ast.BoolOp(ast.Or(), [self._call(node), node]), node)

    def _lock(self, node: ast.expr) -> ast.expr:
        name = ast.copy_location(ast.Name(_LOCK, ast.Load()), node)
        return ast.copy_location(ast.Call(name, [node], []), node)


_BLOCKS: Final = ("body", "orelse", "finalbody", "handlers", "cases")


def _touches(statement: ast.stmt) -> bool:
    """Whether a statement, without those that are in it, reads or changes what others may see."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.While):
        return False
    return any(
        _contains(each)
        for name, value in ast.iter_fields(statement)
        if name not in _BLOCKS and name != "annotation"
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, ast.AST)
    )


def _may_take_lock(statement: ast.stmt) -> bool:
    """Whether a statement enters what is no call's result, as locks are entered."""
    return isinstance(statement, ast.With) and not all(
        isinstance(each.context_expr, ast.Call) for each in statement.items
    )


def _sets_attribute(statement: ast.stmt) -> bool:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return bool(targets) and all(isinstance(each, ast.Attribute) for each in targets)


def _contains(node: ast.AST) -> bool:
    return any(isinstance(each, _TOUCHES) for each in ast.walk(node))
