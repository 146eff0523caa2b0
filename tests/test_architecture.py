"""Imports run one way, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lit_illada"

# A package or module imports only those before it.
ORDER = (
    "errors batch runtime stats overrides config_files schema tasks model data objective slurm run_folder report "
    "sweep loops scoring generation training alignment config checkpoints cost build api evaluation bench commands cli"
).split()
WITHOUT_TORCH = set("errors tasks stats runtime config_files schema slurm run_folder report sweep loops config".split())
MOST_ROOT_MODULES = 10
OPTIONAL = {
    "flash_attn",
    "liger_kernel",
    "torchao",
    "datasets",
    "submitit",
    "lm_eval",
    "wandb",
    "math_verify",
    "gguf",
    "reasoning_gym",
    "litdata",
    "streaming",
    "transformers",
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts)


def imports_of(path):
    """(imported module, whether inside a function) of every import statement of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [alias.name for alias in node.names] if node.module == "lit_illada" else [""]
            for name in names:
                yield f"{node.module}.{name}".rstrip("."), node in inside


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_order_names_every_package_and_module():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__", "__main__"}
    assert names == set(ORDER)


def test_the_package_root_holds_few_modules():
    modules = [path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    assert len(modules) <= MOST_ROOT_MODULES, [path.name for path in modules]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_order_of_packages(path):
    package = package_of(path)
    if package in ("__init__", "__main__"):
        return
    for module, _ in imports_of(path):
        parts = module.split(".")
        if parts[0] == "lit_illada" and len(parts) > 1 and parts[1] not in ("__version__", package):
            assert ORDER.index(parts[1]) < ORDER.index(package), f"{path.relative_to(PACKAGE)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_cli_and_optional_packages_are_imported_inside_functions(path):
    if package_of(path) in ("cli", "__init__"):
        return
    for module, is_inside in imports_of(path):
        if is_inside:
            assert module.split(".")[0] in OPTIONAL, f"{path.relative_to(PACKAGE)} imports {module} inside a function"


@pytest.mark.parametrize("package", sorted(WITHOUT_TORCH))
def test_a_package_without_torch_imports_without_it(package):
    files = [path for path in FILES if package_of(path) == package]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]
    modules = [name.removesuffix(".__init__") for name in names]
    script = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr


def test_the_command_line_imports_nothing_heavy_at_module_level():
    heavy = {"torch", "lightning", "hydra", "omegaconf", "tokenizers", "webdataset", "numpy", "scipy", "rich"}
    for path in (PACKAGE / "cli").glob("*.py"):
        at_top = {module.split(".")[0] for module, is_inside in imports_of(path) if not is_inside}
        assert not at_top & heavy, path


PRINTING = {"runtime/terminal.py", "runtime/console.py"}
RAW = {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write", "Text.from_markup"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_is_printed_through_the_modules_that_escape_it(path):
    name = path.relative_to(PACKAGE).as_posix()
    if name in PRINTING:
        return
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {
        alias.name: node.module for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    } | {alias.name: None for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not imported.keys() & {"rich", "rich.console", "rich.markup"}, name
    assert not {"rich", "rich.markup"} & set(imported.values()), name
    assert imported.get("Console") != "rich.console", f"{name}: use runtime.console.Console"
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        where, called = f"{name}:{call.lineno}", ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert called not in RAW, f"{where}: use print_lines or print_content of runtime.terminal"
        assert keywords.get("markup") != "True", f"{where}: markup would be executed in names from elsewhere"
        if called == "TextColumn":
            assert keywords.get("markup") == "False", f"{where}: markup would be executed in names from elsewhere"
        if imported.get(called) in ("rich.live", "rich.progress") and called in ("Live", "Progress"):
            assert "console" in keywords, f"{where}: give it a runtime.console.Console"
