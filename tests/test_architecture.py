"""The house's rule: imports run down only, and heavy packages stay where they belong."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lit_illada"

# a room may import the rooms below it in this list of what it may reach
MAY_IMPORT = {
    "errors": set(),
    "processes": set(),
    "slurm": {"errors"},
    "choice": set(),
    "key_hints": set(),
    "overrides": {"errors", "lazy", "runtime"},
    "lazy": set(),
    "share": set(),
    "periodic": set(),
    "runtime": {"errors"},
    "stats": set(),
    "numbers": set(),
    "field_docs": set(),
    "explain": {"choice", "config", "errors", "field_docs", "run_folder", "tree"},
    "batch": set(),
    "cache": set(),
    "model": {"batch", "cache", "choice", "errors", "runtime"},
    "data": {"batch", "choice", "errors", "runtime"},
    "objective": {"batch", "choice", "errors", "lazy"},
    "generation": {"batch", "cache", "choice", "errors", "lazy", "periodic", "runtime"},
    "scoring": {"batch", "choice", "errors", "generation", "stats", "numbers", "objective", "runtime"},
    # model: parallel.py alone knows which parts of it are cut
    "training": {"batch", "choice", "errors", "runtime", "generation", "stats", "model", "objective", "run_folder"}
    | {"lazy", "processes", "scoring"},
    "loops": {"choice", "errors", "runtime", "share", "stats", "numbers", "tree", "data", "generation"},
    "tree": {"key_hints", "overrides", "choice", "errors", "runtime"},
    "config": {"overrides", "choice", "tree", "errors", "runtime", "share", "scoring", "training"}
    | {"data", "generation", "loops", "model", "objective"},
    "checkpoints": {"tree", "config", "data", "errors", "model", "run_folder", "runtime", "training"},
    "board": {"errors"},
    "memory": {"model", "training"},
    "requirements": set(),
    "doctor": {"errors", "runtime", "model", "requirements", "training"},
    "estimate": {"build", "checkpoints", "config", "errors", "memory", "model", "sweep_costs", "sweep_speed"}
    | {"training", "tree"},
    "run_folder": {"errors", "runtime"},
    "sweep": {"overrides", "errors", "runtime", "stats", "share", "slurm", "tree"},
    "sweep_report": {"errors", "sweep"},
}
OPTIONAL = {"flash_attn", "liger_kernel", "torchao", "datasets", "submitit", "lm_eval"}


def imports_of(path):
    """(imported module, whether it stands inside a function) of every import statement of a file."""
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


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_only(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = MAY_IMPORT.get(room)
    for module, _ in imports_of(path):
        target = room_of(module) if module.startswith("lit_illada") else None
        if allowed is not None and target not in (None, "__version__", room):
            assert target in allowed, f"{path.relative_to(PACKAGE)} imports {module}: up, or across"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_cli_and_optional_packages_are_imported_inside_functions(path):
    if path.parent.name == "cli":
        return
    for module, is_inside in imports_of(path):
        if is_inside:
            assert module.split(".")[0] in OPTIONAL, f"{path.relative_to(PACKAGE)} imports {module} inside a function"


@pytest.mark.parametrize(("package", "files"), [("hydra", {"config.py"}), ("omegaconf", {"config.py", "tree.py"})])
def test_hydra_and_omegaconf_stay_where_configs_are_made(package, files):
    users = {path.name for path in FILES for module, _ in imports_of(path) if module.split(".")[0] == package}
    assert users == files


def test_the_command_line_module_imports_nothing_heavy():
    heavy = {"torch", "lightning", "hydra", "omegaconf", "tokenizers", "webdataset", "numpy", "scipy", "rich"}
    for path in (PACKAGE / "cli").glob("*.py"):
        at_top = {module.split(".")[0] for module, is_inside in imports_of(path) if not is_inside}
        assert not at_top & heavy, path


def test_the_room_table_names_rooms_that_exist():
    assert all((PACKAGE / room).exists() or (PACKAGE / f"{room}.py").exists() for room in MAY_IMPORT)
