"""The example kernels, as processes: what their authors left out has a default that is right."""

from __future__ import annotations

from collections.abc import Callable

from ._client import Kernel


def test_the_echo_kernel_is_a_whole_kernel(start_kernel: Callable[..., Kernel]) -> None:
    client = start_kernel("echo").connect()
    info = client.request("kernel_info_request").ok()
    assert (info["implementation"], info["language_info"]["name"]) == ("echo", "echo")
    assert "kernel subshells" in info["supported_features"]
    for subshell in (None, *client.create_subshells(2)):
        cell = client.execute("what you say", subshell=subshell)
        assert cell.ok()["execution_count"] == 1
        assert cell.stream() == "what you say"
        asked = {"code": "wh", "cursor_pos": 2}
        assert client.request("complete_request", asked, subshell=subshell).ok()["matches"] == []
        asked = {"code": "wh", "cursor_pos": 2, "detail_level": 0}
        assert not client.request("inspect_request", asked, subshell=subshell).ok()["found"]
        asked = {"code": "wh"}
        completeness = client.request("is_complete_request", asked, subshell=subshell).finished()
        assert completeness["status"] == "unknown"
        asked = {"output": False, "raw": True, "hist_access_type": "tail", "n": 5}
        entries = client.request("history_request", asked, subshell=subshell).ok()["history"]
        assert [entry[1:] for entry in entries] == [[1, "what you say"]]
    for subshell in client.list_subshells():
        client.delete_subshell(subshell).ok()
    assert client.list_subshells() == []
