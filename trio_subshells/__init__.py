"""An actor framework on trio, and on it the runtime of a Jupyter kernel with real subshells."""

from __future__ import annotations

__all__: list[str] = []
