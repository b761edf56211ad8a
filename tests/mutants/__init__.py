"""The mutant corpus: concurrency bugs, each a small patch, that the project's own tests must catch.

A mutant is a bug that somebody has shipped, with the thread that tells of it, or the removal of one
safeguard of ours. They are in the ``.toml`` files here, one for each area::

    [[mutant]]
    name = "request_stays_unanswered"
    what = "One sentence: what is wrong."
    source = "https://…"            # the thread; or "safeguard", if ours is taken away
    see = "https://…"               # optional: a thread about something of the kind
    file = "trio_subshells/…/_x.py"
    caught_by = "tests/simulated/test_x.py::test_y"

    [[mutant.edits]]
    old = '''
    what stands there today, in whole lines, exactly once'''
    new = '''
    what stands there instead'''

``caught_by`` is a test that asserts something of healthy code, and that pytest runs with all
others; it knows nothing of the mutant. Most explore schedules, and then the mutant must be caught
within as many as the test explores anyway, with its own seed.

``python tests/mutants`` shows, runs and measures mutants; ``--help`` says how. Nothing on the disk
is changed for that: the patched module is compiled from memory.
"""
