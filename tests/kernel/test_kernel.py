"""The base class: what is right for a kernel that doesn't know better."""

from __future__ import annotations

import pytest

import trio_subshells as ts
from trio_subshells.kernel._io import SUBSHELL_FEATURES, describe

from .helpers import CellsKernel, served


class Least(ts.Kernel):
    """The least that a kernel is."""

    implementation = "least"
    language_info = ts.LanguageInfo(name="least")

    async def execute(self, cell: ts.Cell) -> None:
        return


async def test_the_least_kernel_opts_in_to_nothing() -> None:
    async with served(Least()) as at:
        info = (await at.client.request("kernel_info_request").done()).content
        assert info["supported_features"] == []
        assert info["banner"] == info["implementation_version"] == ""
        content = (await at.client.execute("", user_expressions={"x": "1"})).content
        assert content["status"] == "ok"
        assert "least" in content["user_expressions"]["x"]["evalue"]


def test_a_kernel_must_execute() -> None:
    class Idle(ts.Kernel):
        implementation = "idle"

    with pytest.raises(TypeError, match="execute"):
        Idle()  # type: ignore[abstract]


def test_what_a_kernel_says_of_itself() -> None:
    class Talkative(CellsKernel):
        banner = "Hello"
        help_links = (ts.HelpLink("Help", "https://example.org"),)
        supported_features = ("debugger",)
        language_info = ts.LanguageInfo(
            name="talk", version="2", codemirror_mode={"name": "talk"}, nbconvert_exporter="script"
        )

    content = describe(Talkative())
    assert content["supported_features"] == [*SUBSHELL_FEATURES, "debugger"]
    assert content["debugger"] is True
    assert content["help_links"] == [{"text": "Help", "url": "https://example.org"}]
    assert content["language_info"] == {
        "name": "talk",
        "version": "2",
        "mimetype": "text/plain",
        "file_extension": ".txt",
        "codemirror_mode": {"name": "talk"},
        "nbconvert_exporter": "script",
    }
