"""The picture: well-formed, complete, and without anything that a viewer would run or fetch."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from xml.etree import ElementTree as ET

import pytest

from trio_subshells.testing import Report

from . import bugs, stories
from .stories import report_of

SVG = "{http://www.w3.org/2000/svg}"
BODIES = [
    bugs.lost_update,
    bugs.abba,
    bugs.early_timeout,
    stories.overtaken,
    stories.terminated,
    stories.crowded,
    stories.miscounted,
]


@pytest.fixture(scope="module")
def reports() -> Callable[[Callable[[], Awaitable[object]]], Report]:
    found: dict[object, Report] = {}

    def report(body: Callable[[], Awaitable[object]]) -> Report:
        if body not in found:
            found[body] = report_of(body)
        return found[body]

    return report


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_the_svg_is_well_formed_and_inside_its_frame(body, reports) -> None:
    root = ET.fromstring(reports(body).svg)
    assert root.tag == f"{SVG}svg"
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter(f"{SVG}rect"):
        if element.get("class") != "ground":
            assert float(element.get("x")) >= 0
            assert float(element.get("x")) + float(element.get("width")) <= width
            assert float(element.get("y")) + float(element.get("height")) <= height
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("x")) <= width
        assert 0 <= float(element.get("y")) <= height


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_boxes_do_not_cover_each_other(body, reports) -> None:
    root = ET.fromstring(reports(body).svg)
    boxes = [
        tuple(float(box.get(name)) for name in ("x", "y", "width", "height"))
        for box in root.iter(f"{SVG}rect")
        if box.get("class") in {"box", "failed", "switch", "passing"}
    ]
    assert boxes
    for one in boxes:
        for other in boxes:
            if one is not other:
                apart = (
                    one[0] + one[2] <= other[0]
                    or other[0] + other[2] <= one[0]
                    or one[1] + one[3] <= other[1]
                    or other[1] + other[3] <= one[1]
                )
                assert apart


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_the_svg_runs_and_fetches_nothing(body, reports) -> None:
    root = ET.fromstring(reports(body).svg)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    drawing = {"svg", "g", "defs", "marker", "style", "title", "desc"}
    assert tags <= drawing | {"text", "rect", "path", "circle"}
    (style,) = root.iter(f"{SVG}style")
    assert "url(" not in (style.text or "")
    assert "prefers-color-scheme: dark" in (style.text or "")
    markers = {marker.get("id") for marker in root.iter(f"{SVG}marker")}
    assert set(re.findall(r"url\(#([^)]+)\)", reports(body).svg)) <= markers


def test_what_decides_is_drawn(reports) -> None:
    svg = reports(bugs.lost_update).svg
    (words,) = [text for text in texts(svg) if text.startswith("here ")]
    assert "goes on instead of" in words
    classes = [element.get("class") for element in ET.fromstring(svg).iter()]
    assert classes.count("switch") == 1
    assert classes.count("failed") == 1
    assert "held" in classes


def test_messages_are_arrows_with_their_text(reports) -> None:
    svg = reports(stories.overtaken).svg
    assert "Set(value='two')" in texts(svg)
    classes = [element.get("class") for element in ET.fromstring(svg).iter()]
    assert classes.count("message") >= 3  # two, and the one that explains them
    assert classes.count("answer") >= 2


def test_threads_are_named_where_there_are_several(reports) -> None:
    assert "thread main" in texts(reports(stories.terminated).svg)
    assert "thread main" not in texts(reports(stories.overtaken).svg)


def test_many_tasks_share_a_lane(reports) -> None:
    report = reports(stories.crowded)
    heads = [each for each in ET.fromstring(report.svg).iter() if each.get("class") == "head"]
    lanes = [line for line in report.mermaid.splitlines() if "participant" in line]
    assert len(heads) == len(lanes) == 7
    (others,) = [text for text in texts(report.svg) if text.endswith(" others")]
    assert lanes[-1].endswith(f" as {others}")
    assert "add#2" in texts(report.svg)  # who isn't on a lane of their own is named in the box


def test_a_kernels_messages_are_arrows(reports) -> None:
    found = texts(reports(stories.miscounted).svg)
    assert {"execute_request '1'", "execute_request '2'", "ok"} <= set(found)
    assert {"the test's thread", "thread kernel", "thread subshell …2"} <= set(found)
    heads = {"test", "main shell", "subshell …2", "control"}
    assert heads <= set(found)
    assert "seen = 0" in found


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_mermaid_has_lanes_and_only_what_mermaid_knows(body, reports) -> None:
    first, *lines = [line.strip() for line in reports(body).mermaid.splitlines()]
    assert first == "sequenceDiagram"
    lanes = {line.split()[1] for line in lines if line.startswith("participant ")}
    assert lanes
    depth = 0
    for line in lines:
        if line.startswith(("rect ", "box ")):
            depth += 1
        elif line == "end":
            depth -= 1
        elif note := re.fullmatch(r"Note (?:over|right of) (T\d+)(?:,(T\d+))?: .+", line):
            assert {name for name in note.groups() if name} <= lanes
        elif arrow := re.fullmatch(r"(T\d+)(?:->>|-->>|-x)(T\d+): .+", line):
            assert set(arrow.groups()) <= lanes
        else:
            assert line.startswith("participant ")
        assert depth in (0, 1)
    assert depth == 0


def test_mermaid_takes_no_text_for_its_own(reports) -> None:
    mermaid = reports(stories.overtaken).mermaid
    for line in mermaid.splitlines():
        text = re.sub(r"#\d+;", "", line.replace("<br/>", "")).partition(": ")[2]
        assert not set(text) & set('#;<>&{}"%`\\')
