"""The Mermaid text of a report, drawn by Mermaid itself, which JupyterLab has in it."""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING

from tests.testing import stories

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from .conftest import Lab

# Every character that Mermaid takes for its own; threads, and a message that is lost; many lanes.
BODIES = [stories.overtaken, stories.terminated, stories.crowded, stories.miscounted]


def test_mermaid_draws_every_report(
    lab: Lab, page: Page, photograph: Callable[[str], None]
) -> None:
    texts = [stories.report_of(body).mermaid for body in BODIES]
    blocks = [f"# {number}\n\n```mermaid\n{text}\n```\n" for number, text in enumerate(texts)]
    (lab.notebooks / "reports.md").write_text("\n".join(blocks), encoding="utf-8")
    page.goto(lab.address_of("reports.md"))
    page.locator(".jp-FileEditor").wait_for()
    page.evaluate(
        "() => window.jupyterapp.commands.execute('docmanager:open', "
        "{path: 'reports.md', factory: 'Markdown Preview'})"
    )
    drawn = page.locator(".jp-RenderedMermaid")
    drawn.nth(len(texts) - 1).wait_for()
    pictures = page.locator(".jp-RenderedMermaid img")
    pictures.nth(len(texts) - 1).wait_for()
    assert drawn.count() == pictures.count() == len(texts)
    assert page.locator(".jp-RenderedMermaid.jp-mod-warning").count() == 0
    photograph("reports")
    for picture, text in zip(pictures.all(), texts, strict=True):
        svg = urllib.parse.unquote(picture.get_attribute("src") or "")
        for name in re.findall(r"participant T\d+ as ([\w ]+)$", text, re.MULTILINE):
            assert name in svg
