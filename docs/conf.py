"""The site: `pip install '.[docs]' && sphinx-build -W -b html docs docs/_build/html`, offline.

Tutorials are Python scripts (jupytext's py:percent) that the build executes: a false assertion fails it, and so do a
warning and a dead link. What is generated goes to docs/generated and is not committed.
"""

import os
import sys
import zlib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the kernels of the tutorials inherit it

from upalm import __version__  # noqa: E402

project = "upalm"
author = "The upalm developers"
project_copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "docstrings",
    "generated_pages",
    "notebooks",
]
exclude_patterns = [
    "_build",
    "_ext",
    "conf.py",
    "check_site.py",
    "results_tables.py",
    "results_figures.py",
    "**.ipynb_checkpoints",
]
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nb_custom_formats = {".py": "notebooks.read"}
nb_execution_mode = "cache"  # by the cells alone, not by the package: a fresh clone builds everything
nb_execution_raise_on_error = True
nb_execution_show_tb = True  # where it failed, in the log of a machine that is gone
nb_execution_timeout = 600  # seconds per cell, on a machine that has other work
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
viewcode_line_numbers = True

OTHERS = {
    "python": "https://docs.python.org/3",
    "jax": "https://docs.jax.dev/en/latest",
    "equinox": "https://docs.kidger.site/equinox",
    "optax": "https://optax.readthedocs.io/en/latest",
    "grain": "https://google-grain.readthedocs.io/en/latest",
    "orbax": "https://orbax.readthedocs.io/en/latest",
}
# Links to other projects need their lists of names: a build that may use the network asks for them. A list that cannot
# be had is replaced by an empty one. Then its names are plain text, and the build does not fail.
intersphinx_mapping, intersphinx_timeout = {}, 20
if os.environ.get("UPALM_DOCS_ONLINE"):
    NO_NAMES = HERE / "generated" / "no_names.inv"
    NO_NAMES.parent.mkdir(exist_ok=True)
    NO_NAMES.write_bytes(b"# Sphinx inventory version 2\n# Project: none\n# Version: 0\n# zlib\n" + zlib.compress(b""))
    intersphinx_mapping = {name: (url, (None, str(NO_NAMES))) for name, url in OTHERS.items()}

html_theme = "sphinx_book_theme"
html_title = "upalm"
html_static_path = ["_static"]
html_css_files = ["upalm.css"]
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navigation_with_keys": True,
    "navbar_persistent": [],  # the side bar has the search
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_show_sourcelink = False
