"""Which files of tests may notice a bug in a module: by what imports what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("", "tests/shared")
"""Folders where an import looks first."""


def file_of(module: str) -> str | None:
    """The file of a module of this repository."""
    for place in PLACES:
        base = ROOT / place / module.replace(".", "/")
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.exists():
                return str(file.relative_to(ROOT))
    return None


@cache
def statements(file: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    tree = ast.parse((ROOT / file).read_bytes())
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Modules that a statement may import."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield alias.name
        elif node.module:
            yield f"{node.module}.{alias.name}"
            yield node.module


@cache
def imports(file: str) -> frozenset[str]:
    """Files of this repository that a file imports itself."""
    found = {file_of(name) for node in statements(file) for name in names(node)}
    return frozenset(other for other in found if other and "testing" not in other)


@cache
def steps(file: str) -> dict[str, int]:
    """How many imports away every other file is."""
    far, edge = {file: 0}, [file]
    while edge:
        new = {other: far[one] + 1 for one in edge for other in sorted(imports(one)) if other not in far}
        far |= new
        edge = list(new)
    return far


def tests(package: str) -> list[str]:
    """Without those of the kit, and those that compile for minutes."""
    files = sorted((ROOT / "tests" / package).rglob("test_*.py"))
    found = [str(file.relative_to(ROOT)) for file in files]
    return [file for file in found if "testing" not in file and "test_compiled" not in file]


OWN = {
    "layers/backends.py": "attention", "layers/checks.py": "masks", "layers/recurrent_kernels.py": "recurrent",
    "layers/weight_rows.py": "weights", "zoo/__init__.py": "zoo", "zoo/model.py": "zoo",
}  # fmt: skip
"""Modules whose tests have another name."""


def nearest(module: str, others: int = 4) -> list[list[str]]:
    """Files of tests in two stages: the one that is named after the module, and of defaults; others that import it directly.

    Tests of the module's own package come first, and files that import little.
    """
    home, stem = module.partition("/")[0], OWN.get(module, Path(module).stem)
    files = [file for package in ("layers", "zoo") for file in tests(package) if module in steps(file)]
    slow = lambda file: "/deployment/" in file and "/deployment/" not in module  # noqa: E731
    files.sort(key=lambda f: (slow(f), steps(f)[module], not f.startswith(f"tests/{home}/"), len(steps(f)), f))
    own = [file for file in files if file.startswith(f"tests/{home}/") and Path(file).stem == f"test_{stem}"] or files[:1]
    own += [file for file in files if file == f"tests/{home}/test_defaults.py" and module in imports(file)]
    return [stage for stage in (own, [file for file in files if file not in own][:others]) if stage]


def libraries(files: list[str]) -> list[str]:
    """Statements that import what is not of this repository, from these files and all that they import."""
    found = {}
    for file in dict.fromkeys(other for one in files for other in steps(one)):
        for node in statements(file):
            if node.col_offset == 0 and not any(file_of(name) for name in names(node)) and getattr(node, "level", 0) == 0:
                found[ast.unparse(node)] = None
    return list(found)
