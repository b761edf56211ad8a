"""The picture of a failing schedule: a sequence diagram, as SVG and as Mermaid text.

A lane is a task; where there are many, those that matter least share one. An arrow is a message,
from the line that sent it down to the line that took it: what is overtaken is seen to cross. Time
goes down. A bar across the picture marks each decision that made the difference; the lane of the
task that had to wait is marked until that goes on. `_scenes` has chosen what is drawn.

The SVG needs nothing but a viewer: no fonts, no scripts, no links. It is drawn for light and for
dark surroundings, by a media query in its style sheet.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Final
from xml.sax.saxutils import escape, quoteattr

import attrs

from ._record import Message, Row, Said, Sent, Spawned, Taken, Woke, is_ours, shorten
from ._scenes import Gap, Item, Line, Passing, Scene, Switch
from ._story import (
    Finding,
    by_words,
    code_of,
    gap_words,
    headline,
    passing_words,
    place_of,
    raised_words,
    seconds,
    switch_words,
    thread_words,
    waiter_words,
    waiting_words,
)

# All in pixels. Widths of text are those of a monospaced font, and a good guess for others.
_MARGIN: Final = 24
_MONO: Final = 7.0
_SANS: Final = 6.2
_MOST_CODE: Final = 34
_MOST_BY: Final = 40
_MOST_LABEL: Final = 28
_LINE: Final = 15
_PAD: Final = 5
_BETWEEN: Final = 12
_TIMES: Final = 64
_LEAST_WIDTH: Final = 720
_ANSWERS: Final = frozenset({"answer", "end", "reply", "publish", "status", "input"})
_MOST_LANES: Final = 7

_STYLE: Final = """
    text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
    .code, .replay { font: 11.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
    .bold { font-weight: 600; }
    .title { font-size: 16px; font-weight: 600; fill: #b3141f; }
    .muted { fill: #656d76; }
    .ground { fill: #ffffff; }
    .head { fill: #eaeef2; stroke: #afb8c1; }
    .life { stroke: #c4ccd4; stroke-width: 1.5; }
    .run { stroke: #8c959f; stroke-width: 7; }
    .held { stroke: #e0a100; stroke-width: 7; stroke-dasharray: 4 4; }
    .box { fill: #f6f8fa; stroke: #afb8c1; }
    .value { fill: #1a7f37; }
    .failed { fill: #ffebe9; stroke: #cf222e; stroke-width: 2; }
    .error { fill: #b3141f; font-weight: 600; }
    .message { stroke: #0969da; stroke-width: 1.6; fill: none; }
    .answer { stroke: #0969da; stroke-width: 1.6; stroke-dasharray: 6 3; fill: none; }
    .lost { stroke: #cf222e; stroke-width: 1.6; stroke-dasharray: 6 3; fill: none; }
    .wake { stroke: #8c959f; stroke-width: 1.2; stroke-dasharray: 1.5 3; fill: none; }
    .tip { fill: #0969da; }
    .tipwake { fill: #8c959f; }
    .tipswitch { fill: #bf8700; }
    .label, .why { stroke-width: 4px; paint-order: stroke; stroke-linejoin: round; }
    .label { fill: #0550ae; stroke: #ffffff; }
    .switch { fill: #fff3cd; stroke: #e0a100; }
    .why { fill: #664d03; stroke: #fff3cd; font-weight: 600; }
    .turn { stroke: #bf8700; stroke-width: 2.5; fill: none; }
    .passing { fill: #eef4fb; }
    .end { stroke: #8c959f; stroke-width: 1.8; }
    .thread { fill: none; stroke: #8c959f; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .title, .error { fill: #ff7b72; }
      .muted { fill: #9198a1; }
      .ground { fill: #0d1117; }
      .head { fill: #262c36; stroke: #545d68; }
      .life { stroke: #3d444d; }
      .run { stroke: #6e7681; }
      .held { stroke: #bb8009; }
      .box { fill: #161b22; stroke: #545d68; }
      .value { fill: #56d364; }
      .failed { fill: #3b1416; stroke: #f85149; }
      .message, .answer { stroke: #58a6ff; }
      .lost { stroke: #f85149; }
      .wake, .end, .thread { stroke: #7d8590; }
      .tip { fill: #58a6ff; }
      .tipwake { fill: #7d8590; }
      .tipswitch { fill: #d29922; }
      .label { fill: #79c0ff; stroke: #0d1117; }
      .switch { fill: #34290a; stroke: #9e6a03; }
      .why { fill: #f2cc60; stroke: #34290a; }
      .turn { stroke: #d29922; }
      .passing { fill: #131c2a; }
    }
"""


def svg(scene: Scene, finding: Finding) -> str:
    """The picture, as the text of an SVG file."""
    return _Picture(scene, finding).draw()


@attrs.define(eq=False)
class _Lane:
    """A lane, of one task (`turns` has one name), or of all those that share one."""

    turns: tuple[str, ...]
    label: str
    thread: str
    half: float = 0
    x: float = 0

    @property
    def shared(self) -> bool:
        return len(self.turns) > 1


@attrs.define(eq=False)
class _Drawn:
    """An item in its place: `top` and `bottom` are those of its box."""

    item: Item
    top: float = 0
    bottom: float = 0
    texts: list[tuple[str, str]] = attrs.field(factory=list)

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


class _Picture:
    def __init__(self, scene: Scene, finding: Finding) -> None:
        self._scene = scene
        self._finding = finding
        self._out: list[str] = []
        self._drawn = [_Drawn(item) for item in scene.items]
        self._order = list(_lanes(scene))
        self._lanes = {turn: lane for lane in self._order for turn in lane.turns}
        self._rows = {
            id(each.item.row): each for each in self._drawn if isinstance(each.item, Line)
        }
        self._taken: dict[Message, _Drawn] = {}
        self._sent: dict[Message, _Drawn] = {}
        for each in self._drawn:
            if isinstance(each.item, Line):
                for effect in each.item.row.effects:
                    if isinstance(effect, Taken):
                        self._taken[effect.message] = each
                    elif isinstance(effect, Sent):
                        self._sent[effect.message] = each

    # ---------------------------------------------------------------------------- layout

    def draw(self) -> str:
        for each in self._drawn:
            if isinstance(each.item, Line):
                each.texts = list(_texts(self._scene, self._lanes, each.item))
        self._widths()
        heads = self._heads()
        self._heights(heads)
        bottom = (self._drawn[-1].bottom if self._drawn else heads) + 26
        self._lifelines(heads, bottom)
        self._wakes()
        self._stripes()
        self._held()
        self._messages()
        self._boxes()
        self._reasons()
        foot = self._foot(bottom)
        height = foot + _MARGIN
        text = "\n".join(self._out)
        width = self._width
        name = escape(" ".join(headline(self._scene)))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img">\n'
            f"<title>{name}</title>\n"
            f"<desc>{escape(self._finding.how)}; {escape(self._finding.replay)}</desc>\n"
            f"<style>{_STYLE}</style>\n{_MARKERS}"
            f'<rect class="ground" width="100%" height="100%"/>\n{text}\n</svg>\n'
        )

    def _widths(self) -> None:
        for lane in self._order:
            lane.half = (len(lane.label) * 7.5 + 24) / 2
        for each in self._drawn:
            if isinstance(each.item, Line) and each.texts:
                lane = self._lanes[each.item.step.turn]
                lane.half = max(lane.half, max(len(t) for _, t in each.texts) * _MONO / 2 + 10)
        rooms = [30.0] * len(self._order)
        for sender, receiver, text in self._labels():
            start, end = self._order.index(sender), self._order.index(receiver)
            gap = start if end > start else start - 1  # the one beside the sender
            rooms[gap] = max(rooms[gap], len(text) * _SANS + 34)
        x = float(_MARGIN + _TIMES)
        for lane, room in zip(self._order, rooms, strict=True):
            lane.x = x + lane.half
            x = lane.x + lane.half + room
        last = self._order[-1] if self._order else None
        right = last.x + last.half if last is not None else 0
        self._width = max(_LEAST_WIDTH, right + _MARGIN)
        shift = (self._width - _MARGIN - right) / 2
        for lane in self._order:
            lane.x += shift

    def _labels(self) -> Iterator[tuple[_Lane, _Lane, str]]:
        """The messages whose labels need room between two lanes."""
        for message in {**self._sent, **self._taken}:
            sender = self._lanes.get(message.sender)
            receiver = self._lanes.get(message.receiver or "")
            if message.receiver is None and message.kind == "request" and len(self._order) > 1:
                receiver = self._order[0 if sender is self._order[-1] else -1]
            if sender is not None and receiver is not None and sender is not receiver:
                yield sender, receiver, _label(message)

    def _heads(self) -> float:
        """The title and the heads of the lanes; returns where the lanes begin."""
        y = float(_MARGIN + 12)
        most = int((self._width - 2 * _MARGIN) / 8.2)
        for text in headline(self._scene):
            self._text(_MARGIN, y, "title", shorten(text, most))
            y += 21
        most = int((self._width - 2 * _MARGIN) / _MONO)
        place = self._scene.place
        if place is not None:
            self._text(_MARGIN, y, "code", shorten(f"{place.short}  {place.code}", most))
            y += 18
        self._text(_MARGIN, y, "muted", f"found by {self._finding.how}")
        y += 17
        self._text(_MARGIN, y, "replay muted", shorten(self._finding.replay, most))
        y += 24
        threads = {lane.thread for lane in self._order}
        if len(threads) > 1:
            for thread in dict.fromkeys(lane.thread for lane in self._order):
                lanes = [lane for lane in self._order if lane.thread == thread]
                left, right = lanes[0].x - lanes[0].half, lanes[-1].x + lanes[-1].half
                name = thread_words(self._scene, thread)
                most = max(8, int((right - left) / _SANS))
                self._text((left + right) / 2, y, "muted", shorten(name, most), middle=True)
                self._out.append(
                    f'<path class="thread" d="M{left:.1f} {y + 10:.1f}v-4H{right:.1f}v4"/>'
                )
            y += 16
        for lane in self._order:
            width = len(lane.label) * 7.5 + 24
            self._rect("head", lane.x - width / 2, y, width, 24, 6)
            self._text(lane.x, y + 16.5, "bold", lane.label, middle=True)
        return y + 24

    def _heights(self, y: float) -> None:
        y += 16
        most = int((self._width - 2 * _MARGIN - 24) / 6.6)
        former: Item | None = None
        for each in self._drawn:
            item = each.item
            height: float = 0
            match item:
                case Line():
                    lines = max(1, len(each.texts), sum(_is_sent(e) for e in item.row.effects))
                    if isinstance(former, Line) and former.step is item.step:
                        y -= _BETWEEN / 2
                    height = lines * _LINE + 2 * _PAD
                case Switch():
                    words = textwrap.wrap(switch_words(self._scene, item), most)
                    each.texts = [("why", line) for line in words]
                    height = len(words) * 16 + (26 if item.kept in self._lanes else 10)
                case Passing():
                    height = 22
                case Gap():
                    height = 12
            each.top = y
            each.bottom = y + height
            y += height + _BETWEEN
            former = item

    # ---------------------------------------------------------------------------- drawing

    def _lifelines(self, top: float, bottom: float) -> None:
        for lane in self._order:
            end = bottom
            for each in self._drawn:
                if not lane.shared and _ends(each.item, lane.turns[0]):
                    end = each.bottom + 9
            self._out.append(f'<path class="life" d="M{lane.x:.1f} {top:.1f}V{end:.1f}"/>')
            if end < bottom:
                x = lane.x
                self._out.append(
                    f'<path class="end" d="M{x - 5:.1f} {end - 5:.1f}l10 10m0 -10l-10 10"/>'
                )

    def _held(self) -> None:
        """Mark the lanes of those that had to wait, until they go on."""
        former: dict[str, _Drawn] = {}
        for index, each in enumerate(self._drawn):
            item = each.item
            if isinstance(item, Line):
                before = former.get(item.step.turn)
                lane = self._lanes[item.step.turn]
                if (
                    before is not None
                    and isinstance(before.item, Line)
                    and (before.item.step is item.step)
                ):
                    self._out.append(
                        f'<path class="run" d="M{lane.x:.1f} {before.bottom:.1f}V{each.top:.1f}"/>'
                    )
                former[item.step.turn] = each
            elif isinstance(item, Switch) and item.kept in self._lanes:
                lane = self._lanes[item.kept]
                start = former[item.kept].bottom if item.kept in former else each.top
                end = next(
                    (
                        later.top
                        for later in self._drawn[index:]
                        if isinstance(later.item, Line) and later.item.step.turn == item.kept
                    ),
                    self._drawn[-1].bottom,
                )
                self._out.append(f'<path class="held" d="M{lane.x:.1f} {start:.1f}V{end:.1f}"/>')

    def _stripes(self) -> None:
        time = ""
        for each in self._drawn:
            item = each.item
            if isinstance(item, Line | Passing) and (now := seconds(item.step.time)) != time:
                time = now
                self._text(_MARGIN + 4, each.middle + 4, "bold", now)
            match item:
                case Switch():
                    self._switch(each, item)
                case Passing():
                    x = _MARGIN + _TIMES
                    self._rect("passing", x, each.top, self._width - x - _MARGIN, 22, 4)
                    words = passing_words(self._scene, item.step, item.row)
                    self._text(x + 10, each.top + 15, "muted", words)
                case Gap():
                    self._out.append(f"<g><title>{escape(gap_words(self._scene, item))}</title>")
                    count = item.lines + item.passings
                    lines = "line" if count == 1 else "lines"
                    self._text(_MARGIN + 4, each.top + 10, "muted", f"⋮ {count} {lines}")
                    self._out.append("</g>")

    def _switch(self, each: _Drawn, switch: Switch) -> None:
        left = _MARGIN
        self._rect("switch", left, each.top, self._width - 2 * _MARGIN, each.bottom - each.top, 5)
        y = each.bottom - 12
        kept = self._lanes.get(switch.kept)
        on = self._lanes.get(switch.turn)
        if kept is not None:
            self._out.append(f'<circle class="tipswitch" cx="{kept.x:.1f}" cy="{y:.1f}" r="4.5"/>')
        if kept is not None and on is not None:
            self._out.append(
                f'<path class="turn" d="M{kept.x:.1f} {y:.1f}H{on.x:.1f}" '
                'marker-end="url(#tipswitch)"/>'
            )

    def _reasons(self) -> None:
        for each in self._drawn:
            if isinstance(each.item, Switch):
                y = each.top + 17
                for style, text in each.texts:
                    self._text(_MARGIN + 12, y, style, text)
                    y += 16

    def _wakes(self) -> None:
        for each in self._drawn:
            if isinstance(each.item, Line):
                for effect in each.item.row.effects:
                    if isinstance(effect, Woke | Spawned):
                        self._wake(each, each.item, effect.turn)

    def _messages(self) -> None:
        for message, at in self._sent.items():
            self._message(message, at)
        for message, at in self._taken.items():
            if message not in self._sent:
                self._arrival(message, at)

    def _wake(self, each: _Drawn, item: Line, turn: str) -> None:
        target = self._next(each, turn)
        if target is None:
            return
        lane = self._lanes[turn]
        messages = [
            *(effect.message for effect in item.row.effects if isinstance(effect, Sent)),
            *(effect.message for effect in item.row.effects if isinstance(effect, Taken)),
        ]
        if item.step.turn == turn or any(turn in (m.receiver, m.sender) for m in messages):
            return  # the message's own arrow says so
        x, y = self._edge(each, lane)
        end_x, end_y = lane.x, target.top
        self._out.append(
            f'<path class="wake" d="M{x:.1f} {y:.1f}L{end_x:.1f} {end_y:.1f}" '
            'marker-end="url(#tipwake)"/>'
        )

    def _next(self, each: _Drawn, turn: str) -> _Drawn | None:
        """Where a task goes on, if that is drawn without anything left out in between."""
        for later in self._drawn[self._drawn.index(each) + 1 :]:
            if isinstance(later.item, Line) and later.item.step.turn == turn:
                return later
        return None

    def _message(self, message: Message, at: _Drawn) -> None:
        sender = self._lanes[message.sender]
        receiver = self._lanes.get(message.receiver or "")
        if message.receiver is None and message.kind == "request":
            self._never_served(message, at)
        if receiver is None or receiver is sender:
            return
        x, y = self._edge(at, receiver)
        y = self._height(at, message)
        target = self._taken.get(message)
        style = "answer" if message.kind in _ANSWERS else "message"
        if message.taken is None:
            end_x, end_y = receiver.x + (6 if receiver.x < x else -6), y + 10
            self._line("lost", x, y, end_x, end_y, None)
            self._cross(end_x, end_y)
        elif target is not None:
            end_x, end_y = self._edge(target, sender)
            self._line(style, x, y, end_x, end_y, "tip")
        else:
            self._line(style, x, y, receiver.x + (2 if receiver.x < x else -2), y + 10, "tip")
        self._label(message, x, y, right=receiver.x > sender.x)

    def _never_served(self, message: Message, at: _Drawn) -> None:
        """A request that nobody has taken: its arrow leads nowhere."""
        lane = self._lanes[message.sender]
        right = lane is not self._order[-1]
        x, y = lane.x + (self._half(at) if right else -self._half(at)), at.middle
        end_x = x + (24 if right else -24)
        self._line("lost", x, y, end_x, y, None)
        self._cross(end_x, y)
        label = shorten(message.text, _MOST_LABEL)
        anchor = "start" if right else "end"
        away = 10 if right else -10
        self._text(end_x + away, y + 4, "label", label, anchor=anchor)

    def _cross(self, x: float, y: float) -> None:
        self._out.append(
            f'<path class="lost" style="stroke-dasharray:none" '
            f'd="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/>'
        )

    def _height(self, at: _Drawn, message: Message) -> float:
        """Where a message leaves its box, beside others that do."""
        assert isinstance(at.item, Line)
        sent = [effect.message for effect in at.item.row.effects if isinstance(effect, Sent)]
        return at.top + (at.bottom - at.top) * (sent.index(message) + 0.5) / len(sent)

    def _arrival(self, message: Message, at: _Drawn) -> None:
        """A message that is drawn where it arrives only."""
        assert isinstance(at.item, Line)
        sender = self._lanes.get(message.sender)
        receiver = self._lanes[at.item.step.turn]
        if sender is None or sender is receiver:
            return
        x, y = self._edge(at, sender)
        style = "answer" if message.kind in _ANSWERS else "message"
        self._line(style, sender.x, y - 10, x, y, "tip")
        away = 6 if sender.x < receiver.x else -6
        self._label(message, sender.x + away, y - 10, right=sender.x < receiver.x)

    def _edge(self, each: _Drawn, toward: _Lane) -> tuple[float, float]:
        """Where an arrow leaves or reaches a box."""
        assert isinstance(each.item, Line)
        lane = self._lanes[each.item.step.turn]
        half = self._half(each)
        return lane.x + (half if toward.x > lane.x else -half), each.middle

    def _half(self, each: _Drawn) -> float:
        return max(len(text) for _, text in each.texts) * _MONO / 2 + 8 if each.texts else 8

    def _label(self, message: Message, x: float, y: float, *, right: bool) -> None:
        anchor = "start" if right else "end"
        self._text(x + (8 if right else -8), y - 4, "label", _label(message), anchor=anchor)

    def _line(
        self, style: str, x: float, y: float, end_x: float, end_y: float, tip: str | None
    ) -> None:
        marker = f' marker-end="url(#{tip})"' if tip else ""
        self._out.append(
            f'<path class="{style}" d="M{x:.1f} {y:.1f}L{end_x:.1f} {end_y:.1f}"{marker}/>'
        )

    def _boxes(self) -> None:
        for each in self._drawn:
            item = each.item
            if not isinstance(item, Line):
                continue
            lane = self._lanes[item.step.turn]
            half = self._half(each)
            place = item.row.place
            tip = f"{place.short}, in {place.function}: {place.code}" if place is not None else ""
            style = "failed" if item.row.raised is self._scene.failure else "box"
            self._out.append(f"<g><title>{escape(tip)}</title>")
            self._rect(style, lane.x - half, each.top, 2 * half, each.bottom - each.top, 4)
            y = each.top + _PAD + 11.5
            for kind, text in each.texts:
                self._text(lane.x - half + 8, y, kind, text)
                y += _LINE
            self._out.append("</g>")

    def _foot(self, y: float) -> float:
        """Who waits at the end, and what the signs mean; returns where that ends."""
        y += 14
        most = int((self._width - 2 * _MARGIN) / _MONO)
        if self._scene.waiting:
            self._text(_MARGIN, y, "error", waiting_words(self._scene))
            for each in self._scene.waiting[:8]:
                y += 17
                text = waiter_words(self._scene, each, most - 2)
                self._text(_MARGIN + 12, y, "code", text)
            y += 24
        x = float(_MARGIN)
        for style, tip, words in (
            ("message", "tip", "message, to where it is taken"),
            ("answer", "tip", "answer, or published"),
            ("wake", "tipwake", "wakes, or starts"),
            ("held", None, "has to wait"),
        ):
            self._line(style, x, y - 4, x + 30, y - 4, tip)
            self._text(x + 40, y, "muted", words)
            x += 40 + len(words) * _SANS + 26
        return y

    def _text(
        self,
        x: float,
        y: float,
        style: str,
        text: str,
        *,
        middle: bool = False,
        anchor: str = "start",
    ) -> None:
        if middle:
            anchor = "middle"
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._out.append(
            f'<text class={quoteattr(style)} x="{x:.1f}" y="{y:.1f}"{where} xml:space="preserve">'
            f"{escape(_printable(text))}</text>"
        )

    def _rect(
        self, style: str, x: float, y: float, width: float, height: float, radius: int
    ) -> None:
        self._out.append(
            f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="{radius}"/>'
        )


_MARKERS: Final = (
    "<defs>\n"
    + "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{size}" '
        f'markerHeight="{size}" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path class="{name}" d="M0 0L10 5L0 10z"/></marker>\n'
        for name, size in (("tip", 10), ("tipwake", 8), ("tipswitch", 13))
    )
    + "</defs>\n"
)


def mermaid(scene: Scene) -> str:
    """The picture as the text of a Mermaid sequence diagram."""
    lanes = list(_lanes(scene))
    names = {turn: f"T{number}" for number, lane in enumerate(lanes) for turn in lane.turns}
    return "\n".join(
        ["sequenceDiagram", *(f"    {line}" for line in _mermaid(scene, lanes, names))]
    )


def _mermaid(scene: Scene, lanes: list[_Lane], names: dict[str, str]) -> Iterator[str]:
    if not lanes:
        return
    all_lanes = f"T0,T{len(lanes) - 1}" if len(lanes) > 1 else "T0"
    by_turn = {turn: lane for lane in lanes for turn in lane.turns}
    threads = dict.fromkeys(lane.thread for lane in lanes)
    for thread in threads:
        if len(threads) > 1:
            yield f"box {_quoted(thread_words(scene, thread))}"
        for number, lane in enumerate(lanes):
            if lane.thread == thread:
                yield f"participant T{number} as {_quoted(lane.label)}"
        if len(threads) > 1:
            yield "end"
    time = ""
    for item in scene.items:
        if isinstance(item, Line | Passing) and (now := seconds(item.step.time)) != time:
            time = now
            yield f"Note over {all_lanes}: {_quoted(now)}"
        match item:
            case Line():
                texts = "<br/>".join(_quoted(text) for _, text in _texts(scene, by_turn, item))
                yield f"Note over {names[item.step.turn]}: {texts}"
                yield from _mermaid_arrows(item, names)
            case Switch():
                yield "rect rgba(255, 193, 7, 0.3)"
                yield f"    Note over {all_lanes}: {_quoted(switch_words(scene, item))}"
                yield "end"
            case Passing():
                words = passing_words(scene, item.step, item.row)
                yield f"Note over {all_lanes}: {_quoted(words)}"
            case Gap():
                yield f"Note over {all_lanes}: … {_quoted(gap_words(scene, item))}"


def _mermaid_arrows(line: Line, names: dict[str, str]) -> Iterator[str]:
    for effect in line.row.effects:
        if isinstance(effect, Sent):
            message = effect.message
            to = names.get(message.receiver or "")
            if message.receiver is None and message.kind == "request":
                yield (
                    f"Note right of {names[message.sender]}: {_quoted(message.text)} (never served)"
                )
            if to is None or to == names[message.sender]:
                continue
            arrow = "-->>" if message.kind in _ANSWERS else "->>"
            text = message.text
            if message.taken is None:
                arrow, text = "-x", f"{text} (never taken)"
            yield f"{names[message.sender]}{arrow}{to}: {_quoted(text)}"


def _quoted(text: str) -> str:
    """A text with nothing in it that Mermaid would take for its own."""
    return "".join(
        f"#{ord(each)};" if each in '#;<>&%"{}`\\' else each for each in _printable(text)
    )


def _lanes(scene: Scene) -> Iterator[_Lane]:
    """The tasks that take part: those of a thread side by side, and near to whom they talk to."""
    turns: dict[str, None] = {}
    pairs: list[tuple[str, str]] = []
    for item in scene.items:
        match item:
            case Line(step=step, row=row):
                turns[step.turn] = None
                for partner in _partners(row):
                    turns[partner] = None
                    pairs.append((step.turn, partner))
            case Switch(step=step, kept=kept):
                if kept:
                    turns[kept] = None
                on = "" if step.inside else item.turn
                if on:
                    turns[on] = None
                    pairs += [(kept or on, on)] * 2
    own = _that_matter(scene, turns) if len(turns) > _MOST_LANES else set(turns)
    threads = dict.fromkeys(scene.threads.get(turn, "") for turn in turns if turn in own)
    order = [
        turn
        for thread in threads
        for turn in turns
        if turn in own and scene.threads.get(turn, "") == thread
    ]
    pairs = [pair for pair in pairs if own.issuperset(pair)]
    for turn in _short_ways(order, pairs, scene.threads):
        label = shorten(scene.label(turn), _MOST_LABEL)
        yield _Lane((turn,), label, scene.threads.get(turn, ""))
    others = tuple(turn for turn in turns if turn not in own)
    if others:
        theirs = {scene.threads.get(turn, "") for turn in others}
        last = list(threads)[-1]
        yield _Lane(others, f"{len(others)} others", last if theirs == {last} else "")


def _that_matter(scene: Scene, turns: Iterable[str]) -> set[str]:
    """Who has a lane of their own if not all can."""
    weights = dict.fromkeys(turns, 0.0)
    for item in scene.items:
        match item:
            case Line(step=step, failure=failure):
                weights[step.turn] += 1000 if failure else 1
            case Switch(kept=kept):
                for turn in {kept, item.turn} & weights.keys():
                    weights[turn] += 100
    return set(sorted(weights, key=lambda turn: -weights[turn])[: _MOST_LANES - 1])


def _short_ways(
    order: list[str], pairs: list[tuple[str, str]], threads: dict[str, str]
) -> list[str]:
    """Swap neighbours in a thread as long as that makes the arrows shorter."""

    def length() -> int:
        position = {turn: number for number, turn in enumerate(order)}
        return sum(abs(position[one] - position[other]) for one, other in pairs)

    best = length()
    better = True
    while better:
        better = False
        for i in range(len(order)):
            for j in range(i + 1, len(order)):
                if threads.get(order[i], "") != threads.get(order[j], ""):
                    continue
                moved = order[:]
                moved.insert(j, moved.pop(i))
                order, former = moved, order
                if (now := length()) < best:
                    best, better = now, True
                else:
                    order = former
    return order


def _partners(row: Row) -> Iterator[str]:
    for effect in row.effects:
        if isinstance(effect, Sent | Taken):
            message = effect.message
            yield message.sender
            if message.receiver is not None:
                yield message.receiver


def _texts(scene: Scene, lanes: Mapping[str, _Lane], line: Line) -> Iterator[tuple[str, str]]:
    """The lines in a box, each with its style."""
    if lanes[line.step.turn].shared:
        yield "bold", shorten(scene.label(line.step.turn), _MOST_LABEL)
    code = code_of(line)
    exchanged = [] if code else list(_exchanged(line.row))
    if exchanged:
        code = exchanged[0][1]
    place = line.row.place
    number = "" if place is None else f"{place.line}  "
    if place is not None and is_ours(place.file):
        number = f"{place.short.rpartition('/')[2]}  "
    yield "code", number + shorten(code, _MOST_CODE) if code else f"({line.end or 'goes on'})"
    for style, text in exchanged[1:]:
        yield style, shorten(text, _MOST_CODE)
    answered = any(
        isinstance(each, Taken) and each.message.kind == "answer" for each in line.row.effects
    )
    if line.row.assigned and not answered:
        yield "code value", shorten(line.row.assigned, _MOST_CODE)
    for effect in line.row.effects:
        if isinstance(effect, Said) and effect.text != "cancels":
            style = "code error" if effect.text.startswith(("raises ", "fault: ")) else "muted"
            yield style, shorten(effect.text, _MOST_CODE)
            if effect.by is not None:
                yield "muted", shorten(by_words(scene, effect.by), _MOST_BY)
            if effect.inside is not None:
                yield "muted", f"in {effect.inside.short}"
    if line.row.raised is not None:
        words, by, where = raised_words(scene, line.row).partition(" by ")
        yield "code error", words.rstrip(",")
        if by:
            yield "muted", shorten(f"by {where}", _MOST_BY)
    if place is None and (inner := place_of(line)) is not None:
        yield "code muted", inner.short


def _exchanged(row: Row) -> Iterator[tuple[str, str]]:
    """What a kernel and its clients do without a line of the user's; each with its style."""
    effects = [each for each in row.effects if isinstance(each, Sent | Taken)]
    served: Message | None = None
    for kind, group in groupby(effects, _kind):
        messages = [each.message for each in group]
        texts = ", ".join(each.text for each in messages)
        match kind[0] is Sent, messages[0].kind:
            case False, "request":
                served = messages[0]
                yield "code", f"serves {texts}"
            case True, "reply":
                yield "code", f"replies {texts}"
            case sends, "forward" | "publish" | "status" | "prompt" | "input":
                yield "code", f"{'sends' if sends else 'hears'} {texts}"
            case _:
                continue
        about = messages[0].about
        if about is not None and about is not served:
            served = about
            yield "muted", f"of {about.name}"


def _kind(effect: Sent | Taken) -> tuple[object, ...]:
    """What is told together."""
    message = effect.message
    return type(effect), message.about, message.kind in {"publish", "status"} or message.kind


def _is_sent(effect: object) -> bool:
    return isinstance(effect, Sent)


def _label(message: Message) -> str:
    return shorten(message.text, _MOST_LABEL)


def _ends(item: Item, turn: str) -> bool:
    return isinstance(item, Line) and item.end == "ends" and item.step.turn == turn


def _printable(text: str) -> str:
    """XML has no control characters."""
    return "".join(each if each.isprintable() else "�" for each in text)
