"""What each subshell has of its own in the namespace of all."""

from __future__ import annotations


async def test_the_namespace_is_one(living) -> None:
    async def body(shell):
        await shell.run("from_sub = x + 1")

    await living.main.run("x = 1")
    await living.elsewhere("sub", body)
    assert await living.main.value("from_sub") == 2


async def test_numbers_inputs_and_results_are_each_subshells_own(living) -> None:
    async def body(shell):
        await shell.run("'s1'")
        ran = await shell.run("In[1], Out[1], _, get_ipython().execution_count, len(Out)")
        return ran, shell.count

    await living.main.run("'m1'")
    await living.main.run("'m2'")
    await living.main.run("'m3'")
    ran, count = await living.elsewhere("sub", body)
    assert ran.result == "(\"'s1'\", 's1', 's1', 3, 1)"
    assert count == 2
    ran = await living.main.run("In[1], Out[1], _, __, ___, _1, _i2, _i, _ii")
    assert ran.result == ("(\"'m1'\", 'm1', 'm3', 'm2', 'm1', 'm1', \"'m2'\", \"'m3'\", \"'m2'\")")
    assert list(await living.main.value("dict(Out)")) == [1, 2, 3, 4]


async def test_a_user_may_have_the_underscore(main) -> None:
    await main.run("_ = 'mine'")
    await main.run("5")
    assert await main.value("_") == "mine"
    await main.run("del _")
    await main.run("6")
    assert await main.value("_") == 6


async def test_out_can_be_changed_and_shown(main) -> None:
    await main.run("1")
    assert (await main.run("Out")).result == "{1: 1}"
    await main.run("Out[9] = 'nine'; del Out[1]")
    assert await main.value("dict(Out)") == {9: "nine"}
    assert (await main.run("In[1:2]")).result == "['1']"
    assert await main.value("repr(In)[:7]") == "['', '1"


async def test_out_forgets_the_oldest(main) -> None:
    main.kernel.shell.displayhook.cache_size = 5
    for _ in range(7):
        await main.run("'x'")
    assert await main.value("list(Out)") == [3, 4, 5, 6, 7]
    assert "_2" not in main.kernel.shell.user_ns
    assert main.kernel.shell.user_ns["_3"] == "x"


async def test_a_cell_that_is_not_stored_leaves_nothing(main) -> None:
    await main.run("'first'")
    ran = await main.run("'hidden'", store_history=False)
    assert ran.result == "'hidden'"
    assert await main.value("dict(Out)") == {1: "first"}
    assert await main.value("list(In)") == ["", "'first'"]
    ran = await main.run("'second'")
    assert await main.value("list(In)") == ["", "'first'", "'second'"]


async def test_reset_forgets_everything_but_ipython(main) -> None:
    await main.run("x = 5")
    await main.run("x")
    await main.run("%reset -f")
    assert "x" not in main.kernel.shell.user_ns
    ran = await main.run("len(Out), _")
    assert ran.result == "(0, '')"
    await main.run("'again'")
    assert await main.value("Out[5]") == "again"


async def test_reset_out(main) -> None:
    await main.run("5")
    await main.run("%reset -f out")
    assert await main.value("dict(Out)") == {}
    assert "_1" not in main.kernel.shell.user_ns


async def test_the_last_result_is_each_subshells_own(living) -> None:
    async def body(shell):
        await shell.run("1 / 0")
        return await shell.value("get_ipython().last_execution_succeeded")

    await living.main.run("1")
    assert await living.elsewhere("sub", body) is False
    assert await living.main.value("get_ipython().last_execution_succeeded") is True
