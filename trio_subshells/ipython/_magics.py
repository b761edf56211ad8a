"""Magics that IPython has for a terminal, as they are in a kernel, whose frontend is elsewhere."""

# IPython's functions and decorators have no annotations of their own.
# mypy: disable-error-code="no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magics.code import CodeMagics, MacroToEdit
from IPython.utils import openpy

if TYPE_CHECKING:
    from ._shell import TrioShell


@magics_class
class KernelMagics(Magics):
    """``%clear``, ``%less``, ``%more``, ``%man`` and ``%edit``."""

    shell: TrioShell

    @line_magic
    def clear(self, line: str) -> None:
        """Clear the cell's output."""
        self.shell.display_pub.clear_output()

    @line_magic
    def less(self, line: str) -> None:
        """Show a file in the pager: ``%less FILE``. Python files are highlighted."""
        self.shell.show_in_pager(self._read(line))

    def _read(self, line: str) -> str:
        if not line:
            raise UsageError("%less needs the name of a file")
        if line.endswith(".py"):
            code = openpy.read_py_file(line, skip_encoding_cookie=False)
            return str(self.shell.pycolorize(code))
        return Path(line).read_text(encoding="utf-8", errors="replace")

    @line_magic
    def more(self, line: str) -> None:
        """Show a file in the pager, as ``%less``."""
        self.shell.show_in_pager(self._read(line))

    @line_magic
    def man(self, line: str) -> None:
        """Show the manual page of a command in the pager: ``%man COMMAND``."""
        if not line:
            raise UsageError("%man needs the name of a command")
        self.shell.show_in_pager(self.shell.getoutput(f"man {line} | col -b", split=False))

    @line_magic
    def edit(self, line: str) -> None:
        """Have the frontend open an editor: ``%edit [-n LINE] [-p] [-r] [WHAT]``.

        What to edit is named as in IPython: a file, an object, a variable that holds code, or
        numbers of inputs (with ``-r`` as they were typed). What is edited isn't executed: the
        kernel doesn't learn when the editor is closed.
        """
        options, rest = self.parse_options(line, "prn:")
        try:
            found = CodeMagics._find_edit_target(self.shell, rest, options, ["", ""])
        except MacroToEdit as macro:
            raise UsageError("%edit can't edit a macro in a kernel's frontend") from macro
        if found is None or found[0] is None:
            return  # IPython has said why
        filename, line_number, _ = found
        path = str(Path(filename).resolve())
        self.shell.write_payload(source="edit_magic", filename=path, line_number=line_number)
