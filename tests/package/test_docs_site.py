"""The documentation site: every public symbol is on a reference page, every page in the menu, and it builds."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PUBLIC = ("optax_unf", *(f"optax_unf.{name}" for name in ("compare", "infer", "meta", "nn", "nominal", "tasks")))


def public_symbols(module_name: str) -> list[str]:
    """Names that a module defines without an underscore, or imports as themselves (`from a import b as b`)."""
    source = ast.parse(Path(importlib.import_module(module_name).__file__).read_text())
    found = []
    for node in source.body:
        if isinstance(node, ast.ImportFrom):
            found += [alias.asname for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append(node.name)
    return found


def documented() -> list[str]:
    """What the reference pages show, by the paths that they give."""
    return [
        path
        for page in sorted((DOCS / "reference").glob("*.md"))
        for path in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]


def the_object(path: str):
    parent, _, name = path.rpartition(".")
    module = importlib.import_module(parent)
    return importlib.import_module(path) if not hasattr(module, name) else getattr(module, name)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_symbol_is_on_a_reference_page(module):
    symbols = public_symbols(module)
    assert len(symbols) > 3
    shown = {id(the_object(path)) for path in documented()}
    # Modules of the package have pages of their own.
    missing = [
        name for name in symbols if f"{module}.{name}" not in PUBLIC and id(the_object(f"{module}.{name}")) not in shown
    ]
    assert missing == []


def test_no_symbol_is_shown_twice():
    paths = documented()
    assert len({id(the_object(path)) for path in paths}) == len(paths)


def test_every_public_symbol_has_a_docstring():
    # What the site's own reader finds: of constants and instances, the string that stands below them.
    package = pytest.importorskip("griffe").load("optax_unf", search_paths=[ROOT])
    found = {path: package[path.removeprefix("optax_unf.")] for path in documented()}
    # The page itself describes nf_relu, a function that another one returns.
    assert [path for path, symbol in found.items() if not symbol.has_docstring] == ["optax_unf.nn.nf_relu"]


def test_the_home_page_has_the_figures_of_the_readme():
    def table(text):
        return re.findall(r"^\| (?:Adam|Muon).*", text, re.MULTILINE)

    home = table((DOCS / "index.md").read_text())
    assert len(home) == 3
    assert home == table((ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_pages_outside_of_the_site_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    reference = "".join(page.read_text() for page in (site / "reference").rglob("*.html"))
    for path in documented():
        assert f'id="{path}"' in reference
        if inspect.isfunction(the_object(path)) and path != "optax_unf.nn.nf_relu":
            assert f'<span class="nf">{path.rpartition(".")[2]}</span><span class="p">(' in reference
    # Formulas are drawn, and nothing is fetched from elsewhere when a page is read.
    assert "<math" in reference
    assert "arithmatex" not in reference
    for page in site.rglob("*.html"):
        assert not re.search(
            r"<(?:script|link|img)[^>]*(?:src|href)=[\"']?(?:https?:)?//(?!localhost)", page.read_text()
        )
