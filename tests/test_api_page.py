"""The page of public names says what the docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

API = Path(__file__).parent.parent / "docs" / "api"


def test_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_api_page", API / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    page = make.page()
    assert page == (API / "README.md").read_text(), "run: python docs/api/make.py"
    assert "| |" not in page.replace("| name | what it is |", ""), "a public name has no docstring"
