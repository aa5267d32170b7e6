"""Sphinx settings of the site that `make docs` builds: Markdown pages as they stand, and the API from docstrings.

The source folder is the repository itself, so that a relative link means the same here and on a git host.
"""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
import sys
import typing
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.nodes import Element
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # autodoc imports the packages of this checkout

import adamp  # noqa: E402

typing.TYPE_CHECKING = True  # tasks.base imports torch's types only then, and its signatures name them
importlib.import_module("tasks.base")
typing.TYPE_CHECKING = False

project = "adamp"
version = release = adamp.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**",
    "findings/README.md",
    "results/*/*.md",
    "results/benchmarks/**.md",
]
exclude_patterns = [".*", "results/reports", "results/runs", "results/sweeps", "results/tuning"]

nitpicky = True  # every type and every reference in a docstring has a target
nitpick_ignore_regex = [("py:.*", r"(torch|collections|typing|types)\..*")]  # other projects: no network to look
myst_heading_anchors = 3

default_role = "name"
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_use_ivar = True
napoleon_custom_sections = ["Reference"]
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"adamp {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


class NameRole(PyXRefRole):
    """Single backticks in a docstring: code, and a link where the text is the name of a documented object."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the node of a role's (name, source text, text, ...)."""
        text = args[2]
        if re.fullmatch(r"[A-Za-z_][\w.]*", text):
            return super().__call__("py:obj", *args[1:], **kwargs)
        return [nodes.literal(text, text.replace("\0", "\\"))], []


def is_stale(name: str) -> bool:
    """Return whether a dotted name of our packages names nothing (any more)."""
    return re.fullmatch(r"(adamp|tasks|evidence|launch)(\.[A-Za-z_]\w*)+", name) is not None and not pydoc.locate(name)


def resolve_name(app: Sphinx, env: BuildEnvironment, node: Element, text: nodes.Node) -> nodes.Node | None:
    """Leave names without a page as code, but for stale ones."""
    return None if node["reftype"] != "obj" or is_stale(node["reftarget"]) else text


def check_names(app: Sphinx, tree: nodes.document) -> None:
    """Warn of code on a page that names nothing."""
    for literal in tree.findall(nodes.literal):
        if is_stale(literal.astext()):
            logging.getLogger(__name__).warning("%s does not exist", literal.astext(), location=literal)


def keep_numbers_together(app: Sphinx, page: str, source: list[str]) -> None:
    """Let no line end inside "1.0 ± 0.2" or "[0.8, 1.2]" in a narrow column."""
    number = r"[-+\d.,]+"
    source[0] = re.sub(rf"({number}) ± ({number})", "\\1\u00a0±\u00a0\\2", source[0])
    source[0] = re.sub(rf"\[({number}) ({number})\]", "[\\1\u00a0\\2]", source[0])


def skip_plain_attributes(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leave attributes to the docstring of their class."""
    routine = inspect.isroutine(obj) and obj.__name__ == name
    return True if what == "class" and not (routine or isinstance(obj, property)) else None


def shorten_defaults(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Write "..." for a default that has no literal."""
    return (re.sub(r"<[a-z][^<>]*>", "...", signature), returns) if signature else None


def require_documentation(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of a public name that no page documents, and of an object on a page that says nothing about itself."""
    warn = logging.getLogger(__name__).warning
    documented = env.domains["py"].objects  # type: ignore[attr-defined]
    for name in sorted(set(adamp.__all__) - {"__version__"}):
        if f"adamp.{name}" not in documented:
            warn("adamp.%s is on no page of docs/api", name)
    for name, entry in documented.items():
        if entry.objtype not in ("attribute", "data") and not inspect.getdoc(pydoc.locate(name)):
            warn("%s has no docstring", name)


def write_front_page(app: Sphinx, error: Exception | None) -> None:
    """Let the folder open at the root document."""
    if error is None:
        (app.outdir / "index.html").write_text('<meta http-equiv="refresh" content="0; url=docs/index.html">\n')


def setup(app: Sphinx) -> None:
    """Connect the checks."""
    app.add_role("name", NameRole())
    app.connect("missing-reference", resolve_name)
    app.connect("doctree-read", check_names)
    app.connect("source-read", keep_numbers_together)
    app.connect("autodoc-skip-member", skip_plain_attributes)
    app.connect("autodoc-process-signature", shorten_defaults)
    app.connect("env-check-consistency", require_documentation)
    app.connect("build-finished", write_front_page)
