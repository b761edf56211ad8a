"""Each mutant is caught, by a test of the suite, as that test is; and the table tells of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from . import _corpus, _run, _table
from ._corpus import Mutant

MUTANTS = _corpus.load()
MOST_DEVIATIONS = 5

Results = Callable[[Mutant], _run.Result]


@pytest.fixture(scope="session")
def mutant_results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Runs mutants, two at a time, from the first that is asked for."""
    pool = ThreadPoolExecutor(2)
    running: dict[str, Future[_run.Result]] = {}
    if not hasattr(request.config, "workerinput"):  # a worker of pytest-xdist: others run the rest
        for item in request.session.items:
            call = getattr(item, "callspec", None)
            if "mutant_results" in getattr(item, "fixturenames", ()) and call is not None:
                mutant = call.params["mutant"]
                running[mutant.name] = pool.submit(_run.run, mutant)

    def result(mutant: Mutant) -> _run.Result:
        if mutant.name not in running:
            running[mutant.name] = pool.submit(_run.run, mutant)
        return running[mutant.name].result()

    try:
        yield result
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_patch_fits(mutant: Mutant) -> None:
    assert mutant.patched() != mutant.healthy()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_is_caught(mutant: Mutant, mutant_results: Results) -> None:
    mutant.patched()  # if that can't be done, this says why
    result = mutant_results(mutant)
    again = f"run it with: python tests/mutants run {mutant.name}"
    assert not result.passed, f"{mutant.caught_by} doesn't notice: {mutant.what} {again}"
    assert result.caught, f"{result.failure}\n{result.output}\n{again}"
    assert result.deviations <= MOST_DEVIATIONS, f"{result}\n{result.output}\n{again}"


def test_the_table_tells_of_each() -> None:
    names = [each.name for each in MUTANTS]
    assert _table.names_in_the_table() == names, "make it anew: python tests/mutants table NEW_NAME"
