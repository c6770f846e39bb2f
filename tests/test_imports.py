"""Imports point one way, heavy packages stay where they belong, and a front worker starts without them.

LAYERS is the architecture in short; a new module of gateway/ gets its line there.
"""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"national_ids"},
    {"errors", "sse", "events", "sinks", "recognisers", "files", "ledger", "patience", "literals", "lengths"},
    {"terms"},
    {"tomlfile", "frames", "process", "wire", "stream", "tasks", "tokens", "privacy", "logs", "metrics"},
    {"config", "stats", "dialects", "control", "output_scan", "redact"},
    {"spoken"},
    {"facts", "auth", "weights", "affinity"},
    {"purge"},
    {"cache", "local", "names"},
    {"policy", "upstreams"},
    {"health", "catalog", "explain", "restore"},
    {"dispatch", "replay"},
    {"reply", "incoming"},
    {"responses", "again"},
    {"pipeline"},
    {"transfers"},
    {"http"},
    {"app", "supervisor", "bench", "flows", "terminal"},
    {"policy_cli", "purge_cli"},
    {"cli"},
    {"__main__"},
)
"""Files and folders of gateway/, lowest first. Each may import what stands above it here, and a folder itself."""

PROCESSES = {
    "app": "front",
    "cache.worker": "cache",
    "local.worker": "model",
    "names.worker": "names",
    "supervisor": "supervisor",
    "cli": "command line",
}
"""Modules that are the root of a process: nobody imports them but the command line."""

OWNERS = {
    "litestar": {"app", "http.*"},
    "uvicorn": {"app", "http.door", "http.lane"},
    "uvloop": {"app", "bench.upstream"},
    "httpx": {"upstreams.openai", "purge_cli"},  # the command line asks the running gateway one question
    "redis": {"cache.redis", "responses.redis"},
    "cryptography": {"responses.seal"},
    "faiss": {"cache.index"},
    "numpy": {"cache.index", "cache.embed", "cache.export"},
    "onnxruntime": {"cache.embed", "cache.export"},
    "tokenizers": {"cache.embed"},
    "sentence_transformers": {"cache.embed"},
    "torch": {"local.*", "cache.embed", "cache.export"},
    "transformers": {"local.*", "cache.export"},
    "presidio_analyzer": {"names.engines"},
    "gliner": {"names.engines"},
    "matplotlib": {"flows"},
    "prometheus_client": {"metrics"},
    "re2": {"privacy", "cache.key"},
    "tiktoken": {"tokens"},
}
"""Who may import a package; `x.*` is every module of that folder."""

HEAVY = {"torch", "transformers", "sentence_transformers", "faiss", "onnxruntime", "numpy", "tokenizers", "tiktoken"}
DELAYED = HEAVY | {"uvloop", "matplotlib", "presidio_analyzer", "gliner"}
"""Packages that a function may import: costly to load, or not there on every system."""

WORKER_PROTOCOL = {"cache.frames", "local.frames", "local.parameters"}
"""What an upstream may know of the worker folders: the shapes that cross the socket, and the check before it."""

COMMANDS = {"cli", "policy_cli", "purge_cli", "terminal"}
"""The command line, which imports what a command needs when it runs."""

ROOTS_ONLY = {
    "upstreams.echo", "upstreams.local", "upstreams.openai", "cache.off", "cache.redis", "cache.semantic", "responses.redis",
    "responses.store",
}  # fmt: skip
"""Concrete parts that app.py alone names, and the command that erases in their files when no gateway runs."""


class Import(NamedTuple):
    """One import statement's target as seen from one module."""

    by: str
    target: str
    """Dotted; without `gateway.` when `ours`."""
    ours: bool
    inside: bool
    """Within a function."""
    line: int


def module_name(path):
    """`gateway/cache/index.py` → `cache.index`; a folder's `__init__.py` is the folder."""
    parts = path.relative_to(ROOT / "gateway").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "gateway").rglob("*.py"))}


def targets(node):
    """The modules one statement imports; `from gateway import frames` is `gateway.frames`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level:
        return ["." * node.level + (node.module or "")]
    found = [f"{node.module}.{alias.name}" for alias in node.names]
    return [full if full.removeprefix("gateway.") in FILES and full != node.module else node.module for full in found]


def imports_of(name, source):
    """Every import in a module's source, wherever it stands."""
    found = []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for target in targets(child):
                    ours = target.partition(".")[0] == "gateway"
                    short = target.removeprefix("gateway").removeprefix(".") if ours else target
                    found.append(Import(name, short, ours, inside, child.lineno))
            visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(source), inside=False)
    return found


IMPORTS = [found for name, path in FILES.items() for found in imports_of(name, path.read_text())]
OURS = [found for found in IMPORTS if found.ours and found.target]
"""Imports between modules of gateway/. An empty target is the package itself, which holds the version only."""


def layer(module):
    """Index of a module's layer, or None when LAYERS does not know it."""
    unit = module.partition(".")[0]
    return next((index for index, names in enumerate(LAYERS) if unit in names), None)


def upward(found):
    """Whether an import points up, or sideways to another file of its layer."""
    by, target = found.by.partition(".")[0], found.target.partition(".")[0]
    return by != target and layer(found.by) <= layer(found.target)


def owned(module, owners):
    """Whether a module is among the owners of a package."""
    return module in owners or f"{module.partition('.')[0]}.*" in owners


def shown(found):
    """An offence as `file:line imports target`."""
    return f"{FILES[found.by].relative_to(ROOT)}:{found.line} imports {found.target}"


def offences(imports, is_wrong):
    """The offending imports in words, for the failure message."""
    return [shown(found) for found in imports if is_wrong(found)]


@pytest.mark.parametrize(
    ("by", "source", "is_wrong"),
    [
        ("errors", "from gateway.config import Config", upward),
        ("facts", "import gateway.auth", upward),
        ("dispatch", "def f():\n    from gateway import pipeline", upward),
        ("upstreams.echo", "from gateway.cache.tiers import Cache", lambda found: found.target not in WORKER_PROTOCOL),
        ("pipeline", "import torch.nn", lambda found: not owned(found.by, OWNERS[found.target.partition(".")[0]])),
    ],
)
def test_the_rules_see_what_they_forbid(by, source, is_wrong):
    """Each rule of this file turns down an import of the kind it is there for."""
    assert any(is_wrong(found) for found in imports_of(by, source))


def test_every_module_has_a_layer():
    """A file that LAYERS does not name would be free to import anything; a name without a file is out of date."""
    units = {name.partition(".")[0] for name in FILES} - {""}
    assert {name for name in units if layer(name) is None} == set(), "give the module a line in LAYERS"
    assert set().union(*LAYERS) - units == set()
    assert sum(len(names) for names in LAYERS) == len(units)


def test_the_layers_stand_in_the_docs():
    """docs/architecture.md shows the same lines."""
    text = (ROOT / "docs/architecture.md").read_text()
    table = next(block for block in text.split("\n\n") if block.startswith("    national_ids"))
    told = [set(re.sub(r"\(.*?\)", "", line).replace("/", "").split()) for line in table.splitlines()]
    assert told == list(LAYERS)


def test_imports_point_one_way():
    """Each module imports only from layers below its own, or from its own folder; never by a relative path."""
    assert offences(OURS, upward) == []
    assert offences(IMPORTS, lambda found: found.target.startswith(".")) == []


def test_no_module_imports_itself_through_others():
    """There is no cycle among the modules, imports inside functions and for type checking included."""
    graph = {name: {found.target for found in OURS if found.by == name} for name in FILES}
    list(TopologicalSorter(graph).static_order())


def test_roots_of_processes_are_not_imported():
    """What a process starts from is imported by the command line at most, so that no process drags in another."""
    allowed = {("cli", "supervisor"), ("purge_cli", "supervisor"), ("__main__", "cli")}
    assert offences(OURS, lambda found: found.target in PROCESSES and (found.by, found.target) not in allowed) == []


def test_only_the_composition_root_names_concrete_parts():
    """Pipeline and dispatch see protocols: app.py alone imports a concrete upstream or tier."""
    assert offences(OURS, lambda found: found.target in ROOTS_ONLY and found.by not in {"app", "purge_cli"}) == []


def test_upstreams_know_neither_policy_nor_cache():
    """An upstream gets a Call and gives an Answer; of the workers it knows what crosses their sockets."""
    wrong = offences(
        OURS,
        lambda found: (
            found.by.startswith("upstreams")
            and found.target.partition(".")[0] in {"policy", "cache", "local"}
            and found.target not in WORKER_PROTOCOL
        ),
    )
    assert wrong == []


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_a_package_is_imported_by_its_owners_only(package):
    """Exchanging a library means reading the files that are named for it, and no others."""
    uses = [found for found in IMPORTS if not found.ours and found.target.partition(".")[0] == package]
    assert uses, f"nothing imports {package} any more: take it out of OWNERS"
    assert offences(uses, lambda found: not owned(found.by, OWNERS[package])) == []


def test_only_what_is_heavy_is_imported_inside_a_function():
    """An import inside a function delays a costly package, or a module of ours that loads one; the command line may choose."""
    loads_heavy = {found.by for found in IMPORTS if not found.inside and found.target.partition(".")[0] in HEAVY}
    for _ in FILES:
        loads_heavy |= {found.by for found in OURS if not found.inside and found.target in loads_heavy}

    def is_wrong(found):
        allowed = loads_heavy if found.ours else DELAYED
        return (
            found.inside
            and found.by not in COMMANDS
            and (found.target if found.ours else found.target.partition(".")[0]) not in allowed
        )

    assert offences(IMPORTS, is_wrong) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("gateway.app", HEAVY - {"tiktoken"}),
        ("gateway.supervisor", HEAVY | {"litestar", "uvicorn", "httpx", "redis"}),
        ("gateway.cli", HEAVY | {"litestar", "uvicorn", "httpx", "redis"}),
        ("gateway.cache.worker", {"torch", "transformers", "sentence_transformers", "litestar", "uvicorn", "httpx"}),
        ("gateway.local.worker", {"torch", "transformers", "faiss", "litestar", "uvicorn", "httpx"}),
    ],
)
def test_a_process_loads_only_what_it_needs(module, absent):
    """A fresh interpreter that imports the root of a process has none of the packages that belong to the others."""
    code = f"import json, sys, {module}; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert set(json.loads(done.stdout)) & absent == set()
