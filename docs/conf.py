"""Sphinx configuration: pages in MyST Markdown, the API from the docstrings of the façades."""

from __future__ import annotations

import importlib.metadata

project = "trio_subshells"
author = "trio_subshells contributors"
copyright = author  # noqa: A001 - Sphinx's name
release = importlib.metadata.version("trio-subshells")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"trio_subshells {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# `name` in a docstring is a link wherever there is something to link to
default_role = "py:obj"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# sphinxcontrib-trio marks coroutines and context managers by way of autodoc's documenter classes,
# which Sphinx 9 keeps behind this switch.
autodoc_use_legacy_class_based = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
