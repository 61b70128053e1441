"""What is installed: three packages and their metadata, imports that run one way, and an error that names an intruder."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("layers", "zoo", "tasks")
MAY_IMPORT = {
    "layers": {"layers", "torch", "einops"},
    "layers.testing": {"layers", "torch", "torchvision", "einops", "hypothesis", "pytest", "pytest_torch"},
    "zoo": {
        "zoo",
        "layers",
        "torch",
        "einops",
        "numpy",
        "safetensors",
        "torchvision",
        "timm",
        "transformers",
        "gguf",
        "tokenizers",
        "PIL",
        "onnx",
        "onnxruntime",
        "torchao",
        "executorch",
    },  # the last ten when they are needed
}
"""First names of the modules that a package may import, besides Python's own. `tasks` may import whatever is declared."""


def python(*arguments, cwd, **environment):
    """Run Python in `cwd`, with the packages of this tree behind whatever `cwd` holds."""
    paths = {"PYTHONPATH": os.pathsep.join([str(cwd), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | paths | environment, capture_output=True, text=True
    )


# ---------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tree, without a network."""
    pytest.importorskip("setuptools", minversion="77", reason="the wheel is built by setuptools 77 or later, as in tox")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "tests", "bench"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        (source / name / "notes.txt").write_text("not for the wheel")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = python("-c", build, cwd=source)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert path.name == "zooproof-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    kinds = "*.py", "*.cpp", "page.*"
    files = [path for package in PACKAGES for kind in kinds for path in (ROOT / package).rglob(kind)]
    ours = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert "layers/testing/plugin.py" in ours
    assert {name for name in wheel if not name.startswith("zooproof-0.1.0.dist-info/")} == ours


def test_metadata_says_what_the_project_file_says(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = message_from_bytes(wheel["zooproof-0.1.0.dist-info/METADATA"])
    assert metadata["Name"] == "zooproof"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert "zooproof-0.1.0.dist-info/licenses/LICENSE" in wheel
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(required) == sorted(project["dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert wheel["zooproof-0.1.0.dist-info/entry_points.txt"].split() == b"[pytest11] zooproof = layers.testing.plugin".split()


def test_every_requirement_has_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert [line for line in lines if ">=" not in line] == []


# --------------------------------------------------------------------------------------------------------- the imports


def imported(path):
    """First names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    folder = ROOT / package.replace(".", "/")
    files = [p for p in folder.rglob("*.py") if package != "layers" or "testing" not in p.relative_to(folder).parts]
    assert len(files) > 2
    found = {(str(p.relative_to(ROOT)), name) for p in files for name in imported(p) if name not in sys.stdlib_module_names}
    assert {(p, name) for p, name in found if name not in MAY_IMPORT[package]} == set()


def test_tasks_import_what_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in ("translation", "hub", "serving"))
    declared = {line.partition(">=")[0] for lines in [project["dependencies"], *extras] for line in lines}
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    allowed = {modules.get(name, name) for name in declared} | set(PACKAGES) | sys.stdlib_module_names
    found = {(p.name, name) for p in (ROOT / "tasks").rglob("*.py") for name in imported(p)}
    assert {(p, name) for p, name in found if name not in allowed} == set()


def loaded(*statements):
    """First names of the modules that are loaded once Python has run the statements."""
    script = "\n".join(["import sys", *statements, "print(*{name.partition('.')[0] for name in sys.modules})"])
    done = python("-c", script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_layers_load_without_the_other_rooms_and_the_kit():
    files = [p for p in (ROOT / "layers").glob("*.py") if p.stem != "__init__"]
    names = loaded(*(f"import layers.{p.stem}" for p in files))
    assert {"layers", "torch"} <= names
    assert names.isdisjoint({"zoo", "tasks", "torchvision", "hypothesis", "pytest", "safetensors", "accelerate"})


def test_help_is_quick_because_it_loads_nothing_heavy():
    programs = ("image_classification", "text_classification", "translation")
    helps = (f"try: {program}.main(['--help'])\nexcept SystemExit: pass" for program in programs)
    names = loaded(f"from tasks import {', '.join(programs)}", *helps)
    assert "tasks" in names
    assert names.isdisjoint({"torch", "torchvision", "sklearn", "matplotlib", "accelerate", "tokenizers"})


# -------------------------------------------------------------------------------------------------------- an intruder


@pytest.mark.parametrize("name", ["layers", "zoo"])
@pytest.mark.parametrize("intruder", ["{}/__init__.py", "{}.py"])
def test_a_foreign_package_is_named(tmp_path, name, intruder):
    path = tmp_path / intruder.format(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    done = python("-m", "tasks.image_classification", "--help", cwd=tmp_path)
    assert done.returncode != 0
    assert f"package {name!r} is hidden by {path}" in done.stderr


@pytest.mark.parametrize("name", ["layers", "zoo"])
def test_a_folder_in_the_way_is_an_error(tmp_path, name):
    """A folder without __init__.py hides a package that an editable install brings in last; here that one is left out."""
    for package in {*PACKAGES} - {name}:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / name).mkdir()
    done = python("-S", "-c", "import tasks", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert f"package {name!r} is hidden by" in done.stderr
