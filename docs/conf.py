"""The documentation's site: `make docs` builds it into build/docs, and runs its tutorials."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from har_jax.version import __version__  # noqa: E402

project = "har_jax"
author = "the developers of har_jax"
copyright = "2026, the developers of har_jax"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["README.md"]
html_theme = "sphinx_book_theme"
html_title = "har_jax"
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
# The pages are read on their own too: they name each other, and files of the repository, as text.
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

# Tutorials are executed in the build, below one directory that they share; nothing is cached, so
# that what stands there was seen. Without progress bars.
nb_execution_mode = os.environ.get("TUTORIALS", "force")
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
os.environ.setdefault("HAR_TUTORIALS", str(ROOT / "build" / "tutorials"))
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

default_role = "code"  # docstrings write `x` as Markdown does
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Shapes are axis strings of jaxtyping, such as Float[Array, "B S D"]: no references to anything.
nitpicky = False
