"""The repository is the package: what must stay true of its folders, imports, dependencies and links."""

import ast
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import omnigram

ROOT = Path(__file__).resolve().parents[1]
CODE = ("tokenizers", "model", "data", "train")  # the folders of code; tests/ is laid out like them
FOLDERS = (*CODE, "conf", "tests")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
MODULES = ["omnigram", "omnigram.conf"]
MODULES += [
    "omnigram." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES
]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, level) of each import in a file; level 0 is absolute."""
    yield from imports_of(ast.parse(path.read_text(encoding="utf-8")))


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def test_only_conf_is_a_package_of_its_own() -> None:
    with_init = {folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()}
    assert with_init == {"conf"}, "an __init__.py in tokenizers/ hides Hugging Face's package of that name"
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_root_holds_no_other_module() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_packages_are_the_folders_with_code() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in FILES}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == {"omnigram", "omnigram.conf"} | {f"omnigram.{folder}" for folder in folders}


def test_names_of_test_files_are_unique() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), "tests have no packages: two files of one name would be one module"


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_and_their_doctests_pass(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, "the first line of a file says what it is"
    assert doctest.testmod(module).failed == 0


def test_what_is_imported_is_this_checkout() -> None:
    assert Path(omnigram.__file__).resolve().parent == ROOT


@pytest.mark.parametrize("first", ["LlamaForCausalLM", "PreTrainedModel", "AutoModelForCausalLM", "Trainer"])
def test_whatever_of_transformers_is_imported_first_knows_the_decoder(first: str) -> None:
    known = "from transformers import AutoModelForCausalLM as auto; print([c.__name__ for c in auto._model_mapping])"
    code = f"import omnigram; from transformers import {first}; {known}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "OmnigramConfig" in done.stdout, done.stderr


def test_it_is_imported_once() -> None:
    """A second copy under another name would take the custom operators away from the first."""
    code = {str(path) for path in [ROOT / "__init__.py", *FILES]}
    names = [name for name, module in sys.modules.items() if getattr(module, "__file__", None) in code]
    assert [name for name in names if name.partition(".")[0] != "omnigram"] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_itself_relatively_and_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    depth = len(path.relative_to(ROOT).parts) - 1
    allowed = {"tokenizers": set(), "data": {"tokenizers"}, "model": {"tokenizers", "data"}, "train": set(CODE)}[folder]
    for module, level in imports(path):
        first = module.partition(".")[0]
        if level == 0:
            assert first not in ("omnigram", "model", "data", "train", "conf"), f"import {module} relatively"
        elif level == depth + 1 and first:  # .. of a file in a folder, ... of one in a sub-package
            assert first in allowed | {folder}, f"{folder}/ must not import {first}/"


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "notebooks"])
def test_others_import_the_package_by_its_name(folder: str) -> None:
    found = {path: list(imports(path)) for path in (ROOT / folder).rglob("*.py")}
    for path in (ROOT / folder).rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        found[path] = list(imports_of(ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE))))
    for path, modules in found.items():
        for module, level in modules:
            first = module.partition(".")[0]
            assert level == 0, f"{path}: import omnigram.…"
            assert first not in ("model", "data", "train", "conf"), f"{path}: import omnigram.{module}"


def test_links_for_type_checkers_point_at_the_package() -> None:
    links = ROOT / ".pythonpath" / "omnigram"
    there = {path.name: os.readlink(path) for path in links.iterdir() if path.is_symlink()}
    assert there == {name: f"../../{name}" for name in (*CODE, "conf", "__init__.py", "py.typed")}
    assert all((links / name).exists() for name in there)


def test_git_ignores_no_folder_of_code() -> None:
    lines = (ROOT / ".gitignore").read_text().split()
    assert not [line for line in lines if line.strip("/") in FOLDERS], "a bare data/ hides the folder of code"


def requirements(*extras: str) -> dict[str, Requirement]:
    texts = list(PROJECT["project"]["dependencies"])
    texts += [text for extra in extras for text in PROJECT["project"]["optional-dependencies"][extra]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def test_dependencies_are_what_is_imported() -> None:
    distributions = packages_distributions()
    declared = set(requirements("pictures", "evaluation", "wandb", "ray", "cluster"))
    for path in FILES:
        for module, level in imports(path):
            names = {canonicalize_name(name) for name in distributions.get(module.partition(".")[0], ())}
            if level == 0 and names:
                assert names & declared, f"{path.relative_to(ROOT)} imports {module}, pyproject.toml does not name it"


def test_no_dependency_is_idle() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "__init__.py", *FILES])
    modules: dict[str, set[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules.setdefault(canonicalize_name(name), set()).add(module)
    for name in requirements("pictures", "evaluation", "ray", "cluster"):
        known = modules.get(name, set()) | {name.replace("-", "_")}  # packages of data alone are named by their folder
        assert any(re.search(rf"\b{re.escape(module)}\b", code) for module in known), f"nothing reads {name}"


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for name, requirement in requirements(
        "pictures", "evaluation", "notebook", "ray", "cluster", "test", "check"
    ).items():
        assert Version(pins[name]) in requirement.specifier, name
    assert all(Version(version).local is None for version in pins.values()), "local builds are of one machine alone"


def test_the_tree_of_the_readme_names_every_file_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("## The tree")[2].split("```")[1]
    named: set[str] = set()
    folders: list[str] = []
    for line in tree.splitlines():
        found = re.match(r"( *)([\w./]+)(?=  |$)", line)
        if found:
            depth, name = len(found[1]) // 2, found[2]
            folders = folders[:depth]
            if name.endswith("/"):
                folders.append(name)
            elif name.endswith(".py"):
                named.add("".join(folders) + name)
    benchmarks = (path for path in (ROOT / "benchmarks").rglob("*.py") if "__pycache__" not in path.parts)
    there = {path.relative_to(ROOT).as_posix() for path in (*FILES, *benchmarks)}
    inits = {path for path in there if path.endswith("__init__.py")}  # where they only gather names
    assert named - there == set()
    assert there - named - inits == set()
