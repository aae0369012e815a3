"""Configuration of the pages: `make docs` builds them into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "ppap_framework"
author = "the authors of ppap_framework"
project_copyright = "Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "ppap_pages",  # connects to events of the others
]
exclude_patterns = ["_build", "_ext", "results/*/**", "adapters", "checkpoints", "diagnosis"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "ppap_framework"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

default_role = "code"
smartquotes = False  # `--cfg` in a heading is an option, not a dash
highlight_language = "text"
pygments_style = "friendly"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
maximum_signature_line_length = 80
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_numpy_docstring = False

# Only our own names are checked: no inventory of another project is at hand while building.
nitpick_ignore_regex = [("py:.*", ".*")]

# Files of this repository, which the build itself looks for.
linkcheck_ignore = [r"https://github\.com/ppap-framework/ppap-framework/blob/"]
