"""The house rules that a reader relies on: who may import whom."""

import ast
from pathlib import Path

import pytest

QA = Path(__file__).parent.parent / "qa"
# Each file may import those before it: examples → windows → … → what a person sees.
ORDER = ["__init__", "methods", "study", "checkpoint", "squad", "windows", "labels", "spans"]
ORDER += ["metrics", "pretrained", "bertscore", "certainty"]
ORDER += ["kernels", "adalora", "model"]
ORDER += ["loop", "storage", "search", "runs"]
ORDER += ["comparison", "pictures", "page", "report", "displays", "answer", "export"]
ONLY = {
    "rich": {"report", "displays"},
    "optuna": {"storage", "search"},
    "peft": {"methods", "kernels", "model", "runs"},
    "argparse": {"study"},
    "bert_score": {"bertscore"},
    "matplotlib": {"pictures"},
    "jinja2": {"page"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module == "qa":
                found |= {f"qa.{alias.name}" for alias in node.names if alias.name in ORDER}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name):
    for module in imports(QA / f"{name}.py"):
        top, _, rest = module.partition(".")
        if top == "qa":
            assert ORDER.index(rest or "__init__") < ORDER.index(name), f"{name} imports {module}"
        if top in ONLY:
            assert name in ONLY[top], f"{name} imports {module}"


def test_every_file_has_its_place():
    assert {path.stem for path in QA.glob("*.py")} == set(ORDER)


def test_the_loop_is_read_at_a_glance():
    tree = ast.parse((QA / "loop.py").read_text())
    fit = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "fit")
    loop = next(n for n in fit.body if isinstance(n, ast.While))
    assert loop.end_lineno - loop.lineno < 80


def test_nothing_imports_the_evaluate_script_or_the_library_by_name():
    for path in QA.parent.glob("**/*.py"):
        if ".venv" not in path.parts and "evaluate" in imports(path):
            raise AssertionError(f"{path} imports evaluate by name")
