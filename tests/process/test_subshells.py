"""Subshells (JEP 91): made, listed, at work at once, each with its own order, count and history."""

from __future__ import annotations

import pytest

from ._client import Client, Kernel

#: Sets up the ways by which cells of different subshells wait for each other.
GATE = "import threading; gate = threading.Event()"


def test_subshells_are_created_listed_and_deleted(client: Client) -> None:
    assert client.list_subshells() == []
    subshells = client.create_subshells(3)
    assert len(set(subshells)) == 3
    assert all(subshell for subshell in subshells)
    assert sorted(client.list_subshells()) == sorted(subshells)
    assert client.delete_subshell(subshells[1]).ok() == {"status": "ok"}
    assert sorted(client.list_subshells()) == sorted([subshells[0], subshells[2]])
    assert "unknown" not in client.delete_subshell(subshells[0]).ok()
    client.delete_subshell(subshells[2]).ok()
    assert client.list_subshells() == []


def test_an_unknown_or_deleted_subshell_can_not_be_deleted(client: Client) -> None:
    assert "nobody" in client.delete_subshell("nobody").error()["evalue"]
    subshell = client.create_subshell()
    client.delete_subshell(subshell).ok()
    assert subshell in client.delete_subshell(subshell).error()["evalue"]
    assert subshell in client.execute("1", subshell=subshell).error()["evalue"]


def test_ids_are_not_used_again(client: Client) -> None:
    seen = set()
    for _ in range(10):
        subshell = client.create_subshell()
        client.delete_subshell(subshell).ok()
        seen.add(subshell)
    assert len(seen) == 10


def test_the_subshell_may_be_named_in_the_content(client: Client) -> None:
    client.execute("import threading").ok()
    header, content = client.create_subshells(2)
    where = "threading.get_ident()"
    ident_of = {it: client.evaluate(where, subshell=it) for it in (None, header, content)}
    assert len(set(ident_of.values())) == 3

    def ident(**named: str | None) -> str:
        return client.execute(
            where, subshell=named["header"], subshell_id=named["content"]
        ).result()

    assert ident(header=None, content=content) == ident_of[content]
    assert ident(header=header, content=content) == ident_of[header]
    assert ident(header=header, content=None) == ident_of[header]
    assert ident(header=None, content=None) == ident_of[None]


def test_a_null_subshell_is_the_main_shell(client: Client) -> None:
    client.execute("import threading").ok()
    request = client.request(
        "execute_request",
        {"code": "threading.current_thread() is threading.main_thread()"},
        header={"subshell_id": None},
    )
    assert request.result() == "True"


def test_all_subshells_share_one_namespace(client: Client) -> None:
    one, other = client.create_subshells(2)
    client.execute("shared = ['main']").ok()
    client.execute("shared.append('one')", subshell=one).ok()
    client.execute("shared.append('other'); mine = 5", subshell=other).ok()
    assert client.execute("shared, mine").result() == "(['main', 'one', 'other'], 5)"


def test_all_shells_work_at_once(client: Client) -> None:
    subshells = [None, *client.create_subshells(4)]
    client.execute(f"import threading; barrier = threading.Barrier({len(subshells)})").ok()
    # Nobody gets through before all are there: only shells that run at once answer.
    cells = [client.execute("barrier.wait(60) >= 0", subshell=it) for it in subshells]
    assert [cell.result() for cell in cells] == ["True"] * len(subshells)


def test_awaiting_shells_work_at_once(client: Client) -> None:
    one, other = client.create_subshells(2)
    client.execute("import trio, threading; barrier = threading.Barrier(3)").ok()
    code = "await trio.to_thread.run_sync(barrier.wait, 60) >= 0"
    cells = [client.execute(code, subshell=it) for it in (None, one, other)]
    assert [cell.result() for cell in cells] == ["True"] * 3


def test_requests_of_one_subshell_run_in_order(client: Client) -> None:
    one, other = client.create_subshells(2)
    client.execute("seen = {'one': [], 'other': []}").ok()
    sent = []
    for number in range(40):
        sent.append(client.execute(f"seen['one'].append({number})", subshell=one))
        sent.append(client.execute(f"seen['other'].append({number})", subshell=other))
    for cell in sent:
        cell.ok()
    assert client.evaluate("seen['one'] == seen['other'] == list(range(40))") == "True"
    replies = [m.parent_id for m in client.memory if m.type == "execute_reply"]
    for name, cells in (("one", sent[::2]), ("other", sent[1::2])):
        ids = [cell.id for cell in cells]
        assert [it for it in replies if it in set(ids)] == ids, name


def test_different_kinds_of_request_keep_the_order_of_their_subshell(client: Client) -> None:
    subshell = client.create_subshell()
    client.execute(GATE).ok()
    cell = client.execute("print('in'); assert gate.wait(60)", subshell=subshell)
    cell.wait_published("stream", "in")
    later = client.request("is_complete_request", {"code": "1"}, subshell=subshell)
    client.execute("gate.set()").ok()
    cell.ok()
    later.finished()
    replies = [m.parent_id for m in client.memory if m.channel == "shell"]
    assert replies.index(cell.id) < replies.index(later.id)


def test_a_busy_main_shell_delays_nobody(client: Client, kernel: Kernel) -> None:
    client.execute(GATE + "; progress = 7").ok()
    cell = client.execute("print('in'); assert gate.wait(60)")
    cell.wait_published("stream", "in")
    # Both channels of a client that is already there, then a client that has yet to connect, as the
    # subshell console of JupyterLab does.
    for client_ in (client, kernel.connect()):
        client_.request("kernel_info_request").ok()
        client_.request("kernel_info_request", channel="control").ok()
        subshell = client_.create_subshell()
        assert client_.execute("progress", subshell=subshell).result() == "7"
        asked = {"code": "progr", "cursor_pos": 5}
        reply = client_.request("complete_request", asked, subshell=subshell).ok()
        assert "progress" in reply["matches"]
        asked = {"code": "progress", "cursor_pos": 5, "detail_level": 0}
        assert client_.request("inspect_request", asked, subshell=subshell).ok()["found"]
        client_.delete_subshell(subshell).ok()
        assert client_.list_subshells() == []
    assert not cell.is_answered
    client.execute("gate.set()", subshell=client.create_subshell()).ok()
    cell.ok()


def test_kernel_info_overtakes_the_queue_of_the_main_shell(client: Client) -> None:
    client.execute(GATE).ok()
    cell = client.execute("print('in'); assert gate.wait(60)")
    cell.wait_published("stream", "in")
    queued = client.execute("1")
    client.request("kernel_info_request").ok()
    assert not cell.is_answered
    assert not queued.is_answered
    client.execute("gate.set()", subshell=client.create_subshell()).ok()
    cell.ok()
    queued.ok()


def test_a_pure_python_loop_in_the_main_shell_delays_nobody(client: Client) -> None:
    client.execute("running = True").ok()
    subshell = client.create_subshell()
    cell = client.execute("print('in')\nwhile running: pass")
    cell.wait_published("stream", "in")
    client.request("kernel_info_request").ok()
    client.request("kernel_info_request", channel="control").ok()
    client.execute("running = False", subshell=subshell).ok()
    cell.ok()


def test_a_busy_subshell_delays_nobody(client: Client) -> None:
    client.execute(GATE).ok()
    busy, idle = client.create_subshells(2)
    cell = client.execute("print('in'); assert gate.wait(60)", subshell=busy)
    cell.wait_published("stream", "in")
    client.request("kernel_info_request").ok()
    assert client.execute("1 + 1").result() == "2"
    assert client.execute("2 + 2", subshell=idle).result() == "4"
    client.delete_subshell(client.create_subshell()).ok()
    assert not cell.is_answered
    client.execute("gate.set()").ok()
    cell.ok()


def test_output_goes_to_the_cell_that_wrote_it(client: Client) -> None:
    subshells = [None, *client.create_subshells(3)]
    client.execute(f"import threading; barrier = threading.Barrier({len(subshells)})").ok()
    cells = {
        number: client.execute(
            f"def work_{number}():\n"  # the namespace is shared: only locals are a cell's own
            f"    for turn in range(50):\n"
            f"        barrier.wait(60)\n"
            f"        print({number}, turn)\n"
            f"        display({number})\n"
            f"work_{number}()",
            subshell=subshell,
        )
        for number, subshell in enumerate(subshells)
    }
    for number, cell in cells.items():
        cell.ok()
        assert cell.stream() == "".join(f"{number} {turn}\n" for turn in range(50))
        shown = [m.content["data"] for m in cell.published() if m.type == "display_data"]
        assert shown == [{"text/plain": str(number)}] * 50


def test_errors_and_results_go_to_the_cell_that_made_them(client: Client) -> None:
    subshells = [None, *client.create_subshells(3)]
    client.execute(f"import threading; barrier = threading.Barrier({len(subshells)})").ok()
    for turn in range(10):
        good = [
            client.execute(f"barrier.wait(60); {i + turn}", subshell=subshells[i]) for i in (0, 1)
        ]
        bad = [
            client.execute(f"barrier.wait(60); raise ValueError('{i}')", subshell=subshells[i])
            for i in (2, 3)
        ]
        assert [cell.result() for cell in good] == [str(turn), str(turn + 1)]
        assert [cell.error()["evalue"] for cell in bad] == ["2", "3"]


def test_each_subshell_has_its_own_execution_count(client: Client) -> None:
    one, other = client.create_subshells(2)
    for subshell, cells in ((None, 2), (one, 3), (other, 1)):
        for count in range(1, cells + 1):
            cell = client.execute("5", subshell=subshell)
            assert cell.ok()["execution_count"] == count
            counts = [
                m.content["execution_count"]
                for m in cell.published()
                if m.type in {"execute_input", "execute_result"}
            ]
            assert counts == [count, count]
    assert client.execute("5").ok()["execution_count"] == 3
    assert client.execute("5", subshell=one).ok()["execution_count"] == 4


def test_each_subshell_has_its_own_history(client: Client) -> None:
    one, other = client.create_subshells(2)
    for subshell, name in ((None, "main"), (one, "one"), (other, "other")):
        for number in range(3):
            client.execute(f"'{name} {number}'", subshell=subshell).ok()
    for subshell, name in ((None, "main"), (one, "one"), (other, "other")):
        asked = {"output": False, "raw": True, "hist_access_type": "tail", "n": 2}
        entries = client.request("history_request", asked, subshell=subshell).ok()["history"]
        assert [entry[2] for entry in entries] == [f"'{name} 1'", f"'{name} 2'"]
        assert [entry[1] for entry in entries] == [2, 3]


def test_stop_on_error_aborts_the_queue_of_its_own_subshell_only(client: Client) -> None:
    client.execute("import threading; gate = threading.Event(); ran = []").ok()
    failing, neighbour = client.create_subshells(2)
    fails = client.execute("print('in'); assert gate.wait(60); 1/0", subshell=failing)
    works = client.execute("print('in'); assert gate.wait(60)", subshell=neighbour)
    for cell in (fails, works):
        cell.wait_published("stream", "in")
    aborted = [client.execute(f"ran.append('f{i}')", subshell=failing) for i in range(3)]
    kept = [client.execute(f"ran.append('n{i}')", subshell=neighbour) for i in range(3)]
    client.execute("gate.set()").ok()
    assert fails.error()["ename"] == "ZeroDivisionError"
    works.ok()
    assert [cell.finished()["status"] for cell in aborted] == ["aborted"] * 3
    for cell in kept:
        cell.ok()
    assert client.execute("ran").result() == "['n0', 'n1', 'n2']"
    assert client.execute("'alive'", subshell=failing).result() == "'alive'"


@pytest.mark.parametrize("count", [30])
def test_many_subshells_at_once_leave_nothing_behind(
    client: Client, kernel: Kernel, count: int
) -> None:
    client.execute(f"import threading; barrier = threading.Barrier({count})").ok()
    client.delete_subshell(client.create_subshell()).ok()  # what is made on first use exists now
    client.execute("threads = set(threading.enumerate())").ok()
    descriptors = kernel.descriptors()
    created = [client.request("create_subshell_request", channel="control") for _ in range(count)]
    subshells = [request.ok()["subshell_id"] for request in created]
    assert sorted(client.list_subshells()) == sorted(subshells)
    cells = [client.execute("barrier.wait(60) >= 0", subshell=it) for it in subshells]
    assert {cell.result() for cell in cells} == {"True"}
    for deletion in [client.delete_subshell(it) for it in subshells]:
        deletion.ok()
    assert client.list_subshells() == []
    assert client.evaluate("set(threading.enumerate()) <= threads") == "True"
    kernel.wait_for_descriptors(descriptors)
