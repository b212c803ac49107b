"""Settings of the site; build it with ``make docs``."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

from fcm_estimators import __version__

project = "fcm-estimators"
author = "The fcm-estimators developers"
copyright = "2026, the fcm-estimators developers"  # noqa: A001
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "**/_build", "jupyter_execute"]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = "fcm-estimators"
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2, "home_page_in_toc": True}
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Browsers draw MathML themselves, so pages need no network for their equations.
html_math_renderer = "mathml"

# Tutorials run when the site is built; what ran before is kept until its page changes.
nb_execution_mode = "cache"
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"
# Which language the cells are in is known once they have run.
suppress_warnings = ["myst-nb.lexer"]

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say it in words
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def _inline(translator, node):
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _displayed(translator, node):
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app):
    """Write equations as MathML."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
