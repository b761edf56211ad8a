"""Who answers a request: exactly one of those who could."""

from __future__ import annotations

import threading
from unittest import mock

import pytest

from trio_subshells.actors import Letter
from trio_subshells.kernel._channels import ClientSocket
from trio_subshells.kernel._output import OutputPort
from trio_subshells.kernel._pending import AnswerRight, PendingTable, Stage
from trio_subshells.wire import WireSession


class _Nobody:
    def publish(self, frames: object) -> None:
        raise AssertionError("nothing is published here")


PORT = OutputPort(WireSession(b""), _Nobody(), lambda port: None)


def test_what_was_begun_is_settled_by_whoever_serves_it() -> None:
    right = AnswerRight()
    assert right.begin(PORT)
    right.begun()
    assert right.settle()
    assert not right.settle()
    assert not right.begin(PORT)
    assert right.give_up() is None


def test_what_waits_can_be_given_up_and_is_not_served_then() -> None:
    right = AnswerRight()
    assert right.give_up() is Stage.WAITING
    assert not right.begin(PORT)
    right.begun()
    assert not right.settle()


def test_what_is_served_can_be_given_up_and_is_not_answered_then() -> None:
    right = AnswerRight()
    right.begin(PORT)
    right.begun()
    assert right.give_up() is Stage.SERVED
    assert right.give_up() is None
    assert not right.settle()


def test_nobody_gives_up_what_is_just_being_begun() -> None:
    right = AnswerRight()
    right.begin(PORT)
    assert right.give_up() is None
    right.begun()
    assert right.settle()


@pytest.mark.parametrize("begun", [False, True])
def test_of_all_who_want_to_answer_one_does(begun: bool) -> None:
    for _ in range(300):
        right = AnswerRight()
        if begun:
            right.begin(PORT)
            right.begun()
        barrier = threading.Barrier(3)
        got: list[str] = []

        def serve(right: AnswerRight, barrier: threading.Barrier, got: list[str]) -> None:
            barrier.wait()
            if (begun or right.begin(PORT)) and right.settle():
                got.append("subshell")

        def give_up(right: AnswerRight, barrier: threading.Barrier, got: list[str]) -> None:
            barrier.wait()
            if right.give_up() is not None:
                got.append("channel")

        threads = [
            threading.Thread(target=target, args=(right, barrier, got))
            for target in (serve, give_up, give_up)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1


def test_of_what_this_process_is_refused_no_client_hears() -> None:
    session = WireSession(b"")
    clients, output, letter = map(mock.create_autospec, (ClientSocket, OutputPort, Letter))
    table = PendingTable(session, clients, output)
    request, content = session.message("execute_request", {"code": ""}), {"status": "aborted"}
    table.answer_here(request, content, letter)
    assert letter.mock_calls == [mock.call.reply(content)]
    assert clients.mock_calls == output.mock_calls == []
    table.answer_here(request, content)
    states = [("busy", request.header), ("idle", request.header)]
    assert [each.args for each in output.status.mock_calls] == states
    clients.send.assert_called_once()
