"""Imports run in one direction: a package imports itself and those on its left."""

from pathlib import Path

import pytest

from experiments.compiled import imported

ROOT = Path(__file__).parent.parent
ORDER = (
    {"research.core"},
    {"research.nets"},
    {"research.data", "research.rl"},
    {"research.evaluation"},
    {"research.learners"},
    {"research.training"},
    {"research"},
    {"configs"},
    {"experiments"},
)
RANK = {package: rank for rank, packages in enumerate(ORDER) for package in packages}
FILES = sorted(path for top in ("research", "configs", "experiments") for path in (ROOT / top).rglob("*.py"))


def package(module: str) -> str:
    """The package of ORDER that a module belongs to."""
    return max((name for name in RANK if f"{module}.".startswith(f"{name}.")), key=len)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def upwards(here: str, there: str) -> bool:
    """Whether an import runs up: to a package on the right, or beside it to another of the same rank."""
    a, b = package(here), package(there)
    return RANK[b] > RANK[a] or (RANK[b] == RANK[a] and a != b)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_downwards(path):
    here = module(path)
    if here == "research":  # its `load` imports research.training when it is called
        return
    wrong = sorted(name for name in imported(path) if upwards(here, name))
    assert not wrong, f"{here} may not import {', '.join(wrong)}"


def test_no_circles():
    edges = {module(path): imported(path) for path in FILES if module(path) != "research"}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in sorted(edges.get(name, ())):
                visit(other, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_an_import_that_runs_up_is_found():
    assert upwards("research.nets.cnn", "research.data.text") and upwards("research.data.feed", "research.rl.replay")
    assert upwards("research.evaluation.gan", "research.training.run")
    assert not upwards("research.learners.gan", "research.evaluation.gan")


def test_a_worker_runs_whole_files(request):
    """Else each of the workers would compile what the tests of a file share: see PARTS in conftest.py."""
    assert not getattr(request.config.option, "loadgroup", False) or "@test_layout" in request.node.nodeid
