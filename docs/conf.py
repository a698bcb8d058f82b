"""The site, for `sphinx-build`: these pages, and what docs/reference.py draws from docstrings, commands and events.

Nothing is loaded from another host, so that the site works from a folder; a warning ends the build (`just docs`).
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from datatask.schema.version import VERSION  # noqa: E402 - found by the line above

project = "datatask"
author = "datatask developers"
project_copyright = author
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "reference"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"datatask {VERSION}"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["misc.highlighting_failure"]  # consoles and templates hold several languages

smartquotes = False  # `--help` is two hyphens
default_role = "code"  # docstrings mark code as pages do
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 100
