"""Settings of the documentation site; `make docs` builds it into docs/_build/html.

The pages are plain Markdown that reads the same where there is no site. Nothing in the built site asks the network for
anything: formulas become MathML, fonts are the reader's own, and the search index is a file beside the pages.
"""

from __future__ import annotations

import inspect
import pydoc
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import lightning_sgdinf

ROOT = Path(__file__).resolve().parents[1]
LOGGER = logging.getLogger(__name__)

project = "lightning-sgdinf"
author = "The lightning-sgdinf authors"
copyright = f"2026, {author}. MIT License"
release = lightning_sgdinf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["toc.not_included"]  # a page may be written before it is listed

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_update_mathjax = False

highlight_language = "none"  # a block says its language, or is shown as it is
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path: list[str] = []
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses for files

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
default_role = "py:obj"  # single backticks in docstrings name things
nitpick_ignore_regex = [("py:class", ".*")]  # types in signatures: those of torch and others are not on this site


def inline_math(translator: Any, node: nodes.math) -> None:
    """A formula in a line of text, as MathML."""
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def display_math(translator: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own, as MathML."""
    translator.body.append(f'<div style="overflow-x: auto">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    # What docutils does not know of LaTeX: classes of operators, sizes of brackets.
    text = re.sub(r"\\mathrel\{(.*?)\}", r"\1", node.astext())
    text = re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])", "", text).replace(r"\dots", r"\ldots")
    try:
        return str(tex2mathml(text, as_block=as_block))
    except MathError as error:
        LOGGER.warning("formula: %s: %s", error, node.astext(), location=node)
        return ""


def with_text_of_module(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Classes whose docstring ends in "see the module's text" are documented by both."""
    del app, what, name, options
    if inspect.isclass(value) and any("see the module's text" in line for line in lines):
        lines += ["", *inspect.getdoc(sys.modules[value.__module__]).splitlines()]


def with_code_of_examples(app: Sphinx, docname: str, source: list[str]) -> None:
    """The page of examples shows each of them in full."""
    del app
    if docname == "examples":
        for path in sorted((ROOT / "examples").glob("[0-9]*.py")):
            source[0] += f"\n## {path.name}\n\n```{{literalinclude}} ../examples/{path.name}\n:language: python\n```\n"


def found_by_last_name(app: Sphinx, env: Any, node: Any, name: nodes.Node) -> nodes.Node | None:
    """What a docstring names without its module: a link where the site has it, plain where only the package has it."""
    if node.get("reftype") != "obj":
        return None
    target = node["reftarget"]
    for full, there in env.domains.python_domain.find_obj(env, None, None, target, None, 1):
        return make_refnode(app.builder, node["refdoc"], there.docname, there.node_id, name, full)
    modules = [module for path, module in list(sys.modules.items()) if path.startswith("lightning_sgdinf")]
    inner = any(hasattr(module, target.split(".")[0]) for module in modules)
    return name if inner or pydoc.locate(target) is not None else None


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("autodoc-process-docstring", with_text_of_module, priority=400)  # before napoleon
    app.connect("source-read", with_code_of_examples)
    app.connect("missing-reference", found_by_last_name)
