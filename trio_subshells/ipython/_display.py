"""Where IPython shows things: results, displays and payloads, each on its way to the right cell."""

# IPython's functions have no annotations of their own.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.payload import PayloadManager

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult

    from ._shell import TrioShell

_UNDERSCORES = ("_", "__", "___")


class CellDisplayHook(DisplayHook):
    """`sys.displayhook`: publishes a result, and keeps it as ``_`` and in ``Out``."""

    shell: TrioShell

    def __init__(self, shell: TrioShell, cache_size: int = 1000, **kwargs: Any) -> None:
        # Not DisplayHook's own: it overwrites a `_` of the user's that is there already.
        super(DisplayHook, self).__init__(shell=shell, **kwargs)
        self.shell = shell
        self.cache_size = cache_size
        self.do_full_cache = int(cache_size > 0)
        self._is_active = False

    def __call__(self, result: Any = None) -> None:
        """Show the value of an expression statement. None shows nothing."""
        if result is None:
            return
        activity = self.shell.tracker.current()
        if activity is None or activity.cell is None:
            sys.stdout.write(f"{result!r}\n")
            return
        if self._silenced(activity.source):
            return
        # An error in a __repr__ is the end of the cell, not something that the cell prints.
        activity.collects, collected = True, activity.collects
        try:
            data, metadata = self.compute_format_data(result)
        finally:
            activity.collects = collected
        self.update_user_ns(result)
        self.fill_exec_result(result)
        if data:
            activity.cell.result(data, metadata=metadata)
            text = data.get("text/plain")
            if text is not None and activity.cell.store_history:
                history = activity.session.history
                history.output_hist_reprs[activity.cell.execution_count] = text

    def update_user_ns(self, result: Any) -> None:
        """Make `result` the latest one of its subshell."""
        shell = self.shell
        session = shell.session
        results = session.results
        if result is shell.user_ns.get("_oh") or result is results:
            return  # Out, which would contain itself
        session.recent_results[:] = [result, *session.recent_results[:2]]
        self.put_underscores()
        cell = shell.tracker.cell()
        if cell is None or not cell.store_history or not self.cache_size:
            return
        number = cell.execution_count
        results[number] = result
        if session.info.is_main:
            shell.push({f"_{number}": result}, interactive=False)
        if len(results) > self.cache_size:
            self.cull_cache()

    def put_underscores(self) -> None:
        """Put the current subshell's ``_``, ``__`` and ``___`` into the namespace.

        Unless the user has one of these names in use, as gettext has.
        """
        shell = self.shell
        names, ours = shell.user_ns, shell.user_ns_hidden
        if "_" in builtins.__dict__ or any(
            name in names and names[name] is not ours.get(name) for name in _UNDERSCORES
        ):
            return
        recent = dict(zip(_UNDERSCORES, shell.session.recent_results, strict=True))
        ours.update(recent)
        names.update(recent)

    def cull_cache(self) -> None:
        """Forget the oldest results."""
        results = self.shell.session.results
        for number in sorted(results)[: max(2, int(self.cache_size * self.cull_fraction))]:
            self._forget(number)

    def flush(self) -> None:
        """Forget all results of the current subshell, as ``%reset out`` does."""
        session = self.shell.session
        for number in list(session.results):
            self._forget(number)
        session.recent_results[:] = ["", "", ""]
        self.put_underscores()

    def _forget(self, number: int) -> None:
        session = self.shell.session
        session.results.pop(number, None)
        if session.info.is_main:
            self.shell.user_ns.pop(f"_{number}", None)
            self.shell.user_ns_hidden.pop(f"_{number}", None)

    def _silenced(self, source: str) -> bool:
        # Tokenizing is slow, and hardly ever needed.
        return ";" in source and self.semicolon_at_end_of_expression(source)

    # What IPython's base class keeps as attributes, of the current subshell.

    @property
    def exec_result(self) -> ExecutionResult | None:
        """What the result is filled into."""
        return self.shell.session.running_result

    @exec_result.setter
    def exec_result(self, result: ExecutionResult | None) -> None:
        self.shell.session.running_result = result


def _recent_result(index: int) -> property:
    def get(hook: CellDisplayHook) -> Any:
        return hook.shell.session.recent_results[index]

    def put(hook: CellDisplayHook, result: Any) -> None:
        hook.shell.session.recent_results[index] = result

    return property(get, put)


for _index, _name in enumerate(_UNDERSCORES):
    setattr(CellDisplayHook, _name, _recent_result(_index))


class CellDisplayPublisher(DisplayPublisher):
    """`display()`: publishes to the cell on whose behalf it is called."""

    shell: TrioShell

    def publish(  # type: ignore[override]
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        *,
        transient: Mapping[str, Any] | None = None,
        update: bool = False,
        **options: Any,
    ) -> None:
        """Publish ``display_data``, or ``update_display_data``.

        Args:
            data: representations by mimetype.
            metadata: by mimetype.
            transient: for this message only; its ``display_id`` names the display.
            update: replace what has that ``display_id``, wherever it is shown.
            options: ``buffers``, binary data; what else IPython may pass has no meaning here.
        """
        self._validate_data(data, metadata)
        transient = transient or {}
        if update and not transient.get("display_id"):
            raise ValueError(
                "an update needs the display_id of what it updates, as in "
                "display(value, display_id='progress', update=True)"
            )
        cell = self.shell.tracker.cell()
        if cell is None:
            sys.stdout.write(f"{data.get('text/plain', '')}\n")
            return
        cell.publish(
            "update_display_data" if update else "display_data",
            {"data": data, "metadata": metadata or {}, "transient": transient},
            buffers=options.get("buffers") or (),
        )

    def clear_output(self, wait: bool = False) -> None:
        """Clear the cell's output; with `wait`, as soon as there is new output."""
        cell = self.shell.tracker.cell()
        if cell is not None:
            cell.clear_output(wait=wait)

    def _setup_execution_tracking(self) -> None:
        """Do nothing: outputs aren't kept here but in the notebook."""


class CellPayloads(PayloadManager):
    """What a cell asks of its frontend in the reply: a page, the next input, the end."""

    parent: TrioShell

    def write_payload(self, data: dict[str, Any], single: bool = True) -> None:
        """Add to the cell's payload; with `single`, in place of what has the same source."""
        if not isinstance(data, dict):
            raise TypeError(f"a payload is a dict, not {type(data).__name__}")
        payload = self.read_payload()
        if single and "source" in data:
            payload[:] = [each for each in payload if each.get("source") != data["source"]]
        payload.append(data)

    def read_payload(self) -> list[Any]:
        """The current cell's payload."""
        cell = self.parent.tracker.cell()
        return [] if cell is None else cell.payload

    def clear_payload(self) -> None:
        """Take it all back."""
        self.read_payload().clear()
