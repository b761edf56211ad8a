"""The corpus as it is in the ``.toml`` files: reading it, and patching the source of a module."""

from __future__ import annotations

import ast
import difflib
import tomllib
from pathlib import Path
from typing import Any

import attrs

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

FIELDS = {"name", "what", "source", "file", "caught_by", "edits"}
SAFEGUARD = "safeguard"


class InvalidMutant(Exception):
    """An entry of the corpus that can't be used; says which, why, and what would be right."""


@attrs.frozen
class Edit:
    """One place of a patch.

    Attributes:
        old: whole lines as they stand there today, exactly once.
        new: what stands there instead; empty: nothing.
    """

    old: str
    new: str


@attrs.frozen
class Mutant:
    """One bug.

    Attributes:
        name: its name, an identifier.
        what: what is wrong, in a sentence.
        source: the address of the thread that tells of it, or ``"safeguard"``.
        see: the address of a thread about something of the kind; or empty.
        file: what is patched, from the root of the repository.
        caught_by: the node id of the test that catches it.
        edits: the patch.
    """

    name: str
    what: str
    source: str
    see: str
    file: str
    caught_by: str
    edits: tuple[Edit, ...]

    @property
    def module(self) -> str:
        """The name of the patched module."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def healthy(self) -> str:
        """The source of the module as it is."""
        return (ROOT / self.file).read_text("utf-8")

    def patched(self) -> str:
        """The source of the module with the bug.

        Raises:
            InvalidMutant: the patch doesn't fit today's source.
        """
        source = self.healthy()
        for edit in self.edits:
            count = source.count(edit.old)
            if count != 1:
                raise InvalidMutant(
                    f"{self.name} is stale: this text must be in {self.file} exactly once, and it "
                    f"is there {count} times. Look at what has become of it (git log -p {self.file}"
                    "), and write `old` and `new` in the corpus anew; or take the mutant away, if "
                    f"the bug can't be made any more:\n{edit.old}"
                )
            source = source.replace(edit.old, edit.new)
        try:
            ast.parse(source, self.file)
        except SyntaxError as error:
            raise InvalidMutant(
                f"{self.name}: the patched {self.file} isn't Python: {error}"
            ) from None
        return source

    def diff(self) -> str:
        """The patch, for people."""
        return "".join(
            difflib.unified_diff(
                self.healthy().splitlines(keepends=True),
                self.patched().splitlines(keepends=True),
                self.file,
                f"{self.file} ({self.name})",
            )
        )


def load() -> list[Mutant]:
    """All mutants, in the order of the files' names and of the files.

    Raises:
        InvalidMutant: an entry isn't as it must be, or two have one name.
    """
    found: dict[str, Mutant] = {}
    for path in sorted(HERE.glob("*.toml")):
        entries = tomllib.loads(path.read_text("utf-8")).get("mutant", [])
        for entry in entries:
            mutant = _mutant(path.name, entry)
            if mutant.name in found:
                raise InvalidMutant(f"{path.name}: there is another mutant called {mutant.name}")
            found[mutant.name] = mutant
    return list(found.values())


def find(name: str) -> Mutant:
    """One of them, by its name.

    Raises:
        InvalidMutant: there is none.
    """
    mutants = {each.name: each for each in load()}
    if name not in mutants:
        near = difflib.get_close_matches(name, mutants)
        hint = f"; is it {near[0]}?" if near else ""
        raise InvalidMutant(f"there is no mutant called {name}{hint}")
    return mutants[name]


def _mutant(file: str, entry: dict[str, Any]) -> Mutant:
    where = f"{file}, {entry.get('name', 'a mutant without a name')}"
    missing, unknown = FIELDS - entry.keys(), entry.keys() - FIELDS - {"see"}
    if missing or unknown:
        raise InvalidMutant(
            f"{where}: missing: {sorted(missing)}; unknown: {sorted(unknown)}; a mutant has "
            f"{sorted(FIELDS)}, and may have 'see'"
        )
    for each in (entry["source"], entry.get("see", "")):
        if each not in (SAFEGUARD, "") and not each.startswith("https://"):
            raise InvalidMutant(f"{where}: {each!r} is neither an address nor {SAFEGUARD!r}")
    if not entry["name"].isidentifier():
        raise InvalidMutant(f"{where}: the name must be an identifier")
    test = entry["caught_by"].partition("::")
    if not test[2] or not (ROOT / test[0]).is_file():
        raise InvalidMutant(
            f"{where}: {entry['caught_by']!r} isn't a test: path::name, from the root"
        )
    edits = tuple(_edit(where, each) for each in entry["edits"])
    if not edits:
        raise InvalidMutant(f"{where}: nothing is edited")
    return Mutant(**{**entry, "see": entry.get("see", ""), "edits": edits})


def _edit(where: str, entry: dict[str, Any]) -> Edit:
    if entry.keys() != {"old", "new"}:
        raise InvalidMutant(f"{where}: an edit has `old` and `new`, and not {sorted(entry)}")
    if not entry["old"].endswith("\n") or not (entry["new"].endswith("\n") or not entry["new"]):
        raise InvalidMutant(f"{where}: an edit is about whole lines: end them, before the quotes")
    return Edit(entry["old"], entry["new"])
