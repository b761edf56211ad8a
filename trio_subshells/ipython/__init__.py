"""The flagship kernel: IPython on trio, with subshells. Needs the extra ``ipython``."""

from __future__ import annotations

from ._kernel import IPythonKernel

__all__ = ["IPythonKernel"]
