"""Sphinx reads this; `sphinx-build -W -b html docs docs/_build/html` builds without network."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "layerfs"
author = "The layerfs developers"
copyright = "The layerfs developers, Apache-2.0"  # noqa: A001  Sphinx's name for it
release = metadata.version("layerfs")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "layerfs_tables"]
exclude_patterns = ["_build", "extensions"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# In docstrings `x` is code: names of ours, of the kernel and of commands alike.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"layerfs {release}"
html_show_sphinx = False
