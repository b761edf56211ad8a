"""What a cell may do and what is heard of it: results, displays, streams, errors, history."""

from __future__ import annotations

import base64

import pytest

from ._client import Client


def test_what_is_published_comes_in_order(client: Client) -> None:
    cell = client.execute("print('one'); display('two'); print('three'); 'four'")
    reply = cell.ok()
    assert [m.type if m.type != "status" else m.state for m in cell.published()] == [
        "busy",
        "execute_input",
        "stream",
        "display_data",
        "stream",
        "execute_result",
        "idle",
    ]
    [given] = [m for m in cell.published() if m.type == "execute_input"]
    assert given.content["code"] == "print('one'); display('two'); print('three'); 'four'"
    assert given.content["execution_count"] == reply["execution_count"] == 1


def test_a_result_carries_the_count_of_its_cell(client: Client) -> None:
    for count in (1, 2):
        cell = client.execute("6 * 7")
        assert cell.ok()["execution_count"] == count
        [result] = [m for m in cell.published() if m.type == "execute_result"]
        assert result.content["execution_count"] == count
        assert result.content["data"] == {"text/plain": "42"}


def test_streams_are_told_apart(client: Client) -> None:
    cell = client.execute("import sys; print('out'); print('err', file=sys.stderr)")
    cell.ok()
    assert cell.stream("stdout") == "out\n"
    assert cell.stream("stderr") == "err\n"


def test_a_lot_of_output_arrives_whole_and_in_order(client: Client) -> None:
    cell = client.execute("for number in range(20_000): print(number)")
    cell.ok()
    assert cell.stream() == "".join(f"{number}\n" for number in range(20_000))


def test_output_arrives_while_the_cell_runs(client: Client) -> None:
    cell = client.execute("print('question'); answer = input(); print('answer', answer)")
    cell.wait_published("stream", "question")
    client.answer(cell.wait_input_request(), "42")
    cell.ok()
    assert cell.stream() == "question\nanswer 42\n"


def test_text_beyond_ascii_survives(client: Client) -> None:
    text = "grüße 🐙 \\ud800 日本"
    cell = client.execute(f"print('{text}'); '{text}'")
    cell.ok()
    assert cell.stream().startswith("grüße 🐙 ")
    client.execute("print('after')").ok()


def test_top_level_await_runs_on_trio(client: Client) -> None:
    cell = client.execute(
        "import trio, sniffio\n"
        "await trio.lowlevel.checkpoint()\n"
        "async with trio.open_nursery() as nursery:\n"
        "    nursery.start_soon(trio.lowlevel.checkpoint)\n"
        "sniffio.current_async_library()"
    )
    assert cell.result() == "'trio'"


def test_an_error_is_replied_and_published_alike(client: Client) -> None:
    cell = client.execute("def f():\n    raise ValueError('mine')\nf()")
    error = cell.error()
    assert (error["ename"], error["evalue"]) == ("ValueError", "mine")
    assert "ValueError" in "".join(error["traceback"])
    assert error["execution_count"] == 1
    assert cell.output_types() == ["error"]
    [published] = [m.content for m in cell.published() if m.type == "error"]
    for field in ("ename", "evalue", "traceback"):
        assert published[field] == error[field]


def test_a_syntax_error_is_an_error_like_others(client: Client) -> None:
    cell = client.execute("1 +")
    assert cell.error()["ename"] == "SyntaxError"
    assert cell.output_types() == ["error"]


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise KeyboardInterrupt"])
def test_an_exception_that_is_no_error_does_not_end_the_kernel(client: Client, code: str) -> None:
    client.execute(code).finished()
    assert client.execute("1 + 1").result() == "2"


def test_silent_is_silent(client: Client) -> None:
    cell = client.execute("quiet = 1; quiet", silent=True)
    assert cell.ok()["execution_count"] in {0, 1}
    assert [m.type for m in cell.published()] == ["status", "status"]
    cell = client.execute("quiet")
    assert cell.result() == "1"
    assert cell.reply()["execution_count"] == 1


def test_without_history_the_count_stays(client: Client) -> None:
    assert client.execute("1").ok()["execution_count"] == 1
    client.execute("2", store_history=False).ok()
    assert client.execute("3").ok()["execution_count"] == 2


def test_user_expressions_are_evaluated_or_tell_their_own_error(client: Client) -> None:
    cell = client.execute("x = 20", user_expressions={"good": "x + 1", "bad": "nobody"})
    values = cell.ok()["user_expressions"]
    assert values["good"]["status"] == "ok"
    assert values["good"]["data"] == {"text/plain": "21"}
    assert values["bad"]["status"] == "error"
    assert values["bad"]["ename"] == "NameError"


def test_a_display_is_updated_by_its_id(client: Client) -> None:
    cell = client.execute("handle = display('before', display_id='the-id'); handle.update('after')")
    cell.ok()
    assert cell.output_types() == ["display_data", "update_display_data"]
    shown, updated = [m for m in cell.published() if "display_data" in m.type]
    assert shown.content["data"] == {"text/plain": "'before'"}
    assert updated.content["data"] == {"text/plain": "'after'"}
    assert shown.content["transient"] == updated.content["transient"] == {"display_id": "the-id"}


def test_a_display_is_updated_from_a_later_cell_and_another_subshell(client: Client) -> None:
    client.execute("handle = display('first', display_id=True)").ok()
    for subshell in (None, client.create_subshell()):
        cell = client.execute("handle.update('later')", subshell=subshell)
        cell.ok()
        assert cell.output_types() == ["update_display_data"]


@pytest.mark.parametrize("wait", [False, True])
def test_clear_output_names_its_cell(client: Client, wait: bool) -> None:
    cell = client.execute(
        f"from IPython.display import clear_output\nprint('old')\nclear_output(wait={wait})"
    )
    cell.ok()
    assert cell.output_types() == ["stream", "clear_output"]
    [clear] = [m for m in cell.published() if m.type == "clear_output"]
    assert clear.content == {"wait": wait}


def test_rich_displays_come_in_all_their_forms(client: Client) -> None:
    cell = client.execute(
        "class Rich:\n"
        "    def __repr__(self): return 'plain'\n"
        "    def _repr_html_(self): return '<b>rich</b>'\n"
        "    def _repr_png_(self): return b'\\x89PNG'\n"
        "Rich()"
    )
    cell.ok()
    [result] = [m for m in cell.published() if m.type == "execute_result"]
    data = result.content["data"]
    assert data.keys() == {"text/plain", "text/html", "image/png"}
    assert (data["text/plain"], data["text/html"]) == ("plain", "<b>rich</b>")
    assert base64.b64decode(data["image/png"]) == b"\x89PNG"


def test_magics_and_payloads(client: Client) -> None:
    cell = client.execute("%%timeit -n1 -r1\npass")
    cell.ok()
    assert "per loop" in cell.stream()
    payload = client.execute("get_ipython().set_next_input('next')").ok()["payload"]
    assert [(it["source"], it["text"]) for it in payload] == [("set_next_input", "next")]
    assert client.execute("1").ok().get("payload", []) == []


def test_completion_and_inspection_know_the_namespace(client: Client) -> None:
    client.execute("class Octopus:\n    '''Eight arms.'''\n    tentacle = 8\nocto = Octopus()").ok()
    code = "x = '🐙'; octo.tent"
    reply = client.request("complete_request", {"code": code, "cursor_pos": len(code)}).ok()
    completed = {
        code[: reply["cursor_start"]] + match + code[reply["cursor_end"] :]
        for match in reply["matches"]
    }
    assert "x = '🐙'; octo.tentacle" in completed
    asked = {"code": "Octopus", "cursor_pos": 3, "detail_level": 0}
    reply = client.request("inspect_request", asked).ok()
    assert reply["found"] is True
    assert "Eight arms." in reply["data"]["text/plain"]
    asked = {"code": "nobody_at_all", "cursor_pos": 3, "detail_level": 0}
    reply = client.request("inspect_request", asked).ok()
    assert (reply["found"], reply["data"]) == (False, {})


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("a = 1", "complete"),
        ("await trio.sleep(0)", "complete"),
        ("for x in y:", "incomplete"),
        ("a = ]", "invalid"),
    ],
)
def test_is_complete(client: Client, code: str, status: str) -> None:
    reply = client.request("is_complete_request", {"code": code}).finished()
    assert reply["status"] == status
    assert reply.get("indent", "").strip() == ""
    assert ("indent" in reply) == (status == "incomplete")


def test_stop_on_error_aborts_what_is_queued_and_nothing_later(client: Client) -> None:
    client.execute("import threading; gate = threading.Event(); ran = []").ok()
    opener = client.create_subshell()
    failing = client.execute("print('in'); assert gate.wait(60); 1/0")
    failing.wait_published("stream", "in")
    queued = [client.execute(f"ran.append({number})") for number in range(3)]
    # The shell channel takes requests in the order of one client: once this one is answered, the
    # three before it are queued behind the failing cell.
    client.execute("gate.set()", subshell=opener).ok()
    assert failing.error()["ename"] == "ZeroDivisionError"
    assert [cell.finished()["status"] for cell in queued] == ["aborted"] * 3
    assert client.execute("ran").result() == "[]"


def test_without_stop_on_error_the_queue_goes_on(client: Client) -> None:
    client.execute("import threading; gate = threading.Event(); ran = []").ok()
    opener = client.create_subshell()
    failing = client.execute("print('in'); assert gate.wait(60); 1/0", stop_on_error=False)
    failing.wait_published("stream", "in")
    queued = [client.execute(f"ran.append({number})") for number in range(3)]
    client.execute("gate.set()", subshell=opener).ok()
    failing.error()
    for cell in queued:
        cell.ok()
    assert client.execute("ran").result() == "[0, 1, 2]"


def test_stop_on_error_leaves_other_kinds_of_request_alone(client: Client) -> None:
    client.execute("import threading; gate = threading.Event()").ok()
    opener = client.create_subshell()
    failing = client.execute("print('in'); assert gate.wait(60); 1/0")
    failing.wait_published("stream", "in")
    question = client.request("is_complete_request", {"code": "1"})
    client.execute("gate.set()", subshell=opener).ok()
    failing.error()
    assert question.finished()["status"] in {"complete", "aborted"}


def test_history_by_tail_range_and_search(client: Client) -> None:
    for code in ("alpha = 1", "alpha + 1", "'beta'", "alpha + 1"):
        client.execute(code).ok()

    def history(**asked: object) -> list[list[object]]:
        content = {"output": False, "raw": True, **asked}
        entries = client.request("history_request", content).ok()["history"]
        assert isinstance(entries, list)
        return entries

    tail = history(hist_access_type="tail", n=3)
    assert [entry[2] for entry in tail] == ["alpha + 1", "'beta'", "alpha + 1"]
    session, line = tail[0][:2]
    assert line == 2
    ranged = history(hist_access_type="range", session=session, start=2, stop=4)
    assert [entry[2] for entry in ranged] == ["alpha + 1", "'beta'"]
    found = history(hist_access_type="search", pattern="alpha +*")
    assert [entry[2] for entry in found] == ["alpha + 1", "alpha + 1"]
    found = history(hist_access_type="search", pattern="alpha +*", unique=True)
    assert [entry[2] for entry in found] == ["alpha + 1"]
    with_output = history(hist_access_type="tail", n=1, output=True)
    # Whether the output itself is kept is IPython's setting; the shape is the protocol's.
    given, _output = with_output[0][2]
    assert given == "alpha + 1"
