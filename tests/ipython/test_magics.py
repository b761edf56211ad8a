"""Magics whose frontend is elsewhere."""

from __future__ import annotations

from pathlib import Path


async def test_help_is_a_page(main) -> None:
    await main.run("def f():\n    'What f does.'")
    (page,) = (await main.run("f?")).payload
    assert page["source"] == "page"
    assert page["start"] == 0
    assert "What f does." in page["data"]["text/plain"]


async def test_less_shows_a_file(main, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("some notes")
    for magic in ("less", "more"):
        (page,) = (await main.run(f"%{magic} {file}")).payload
        assert page["data"] == {"text/plain": "some notes"}
    ran = await main.run("%less")
    assert ran.error is not None
    assert "needs the name of a file" in ran.error.evalue


async def test_load_proposes_the_next_input(main, tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text("x = 1\n")
    (payload,) = (await main.run(f"%load {file}")).payload
    assert payload["source"] == "set_next_input"
    assert payload["text"].endswith("x = 1\n")
    assert payload["replace"] is True


async def test_edit_names_the_file(main, tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text("x = 1\n")
    (payload,) = (await main.run(f"%edit -n 1 {file}")).payload
    assert payload["source"] == "edit_magic"
    assert Path(payload["filename"]) == file.resolve()


async def test_clear_clears_the_output(main) -> None:
    assert len((await main.run("%clear")).all("clear_output")) == 1


async def test_of_one_source_the_latest_payload_counts(main) -> None:
    ran = await main.run(
        "get_ipython().set_next_input('a')\nget_ipython().set_next_input('b', replace=True)"
    )
    assert ran.payload == [{"source": "set_next_input", "text": "b", "replace": True}]
