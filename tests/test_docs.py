"""The documents say what the code does: settings, error codes, commands, log events, links."""

import ast
import re
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from gateway import cli, config, errors
from gateway.events import EVENTS

ROOT = Path(__file__).parents[1]
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "gateway").rglob("*.py"))}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


def nodes(kind):
    """Every syntax node of one kind in gateway/."""
    return [node for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, kind)]


def constant(node):
    """The text of a string constant, else None."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def called(call):
    """The last name of what is called: `event` for `ledger.event(...)`."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def shown_settings():
    """config.example.toml as data, with the entries in it that are commented out."""
    text = (ROOT / "config.example.toml").read_text()
    return tomllib.loads(re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE))


def missing(struct, shown, place):
    """Settings of a struct that no table at its place in the example shows, as `place.name`."""
    return {f"{place}.{field.encode_name}" for field in msgspec.structs.fields(struct)} - {f"{place}.{name}" for name in shown}


def union(tables):
    """The names that stand in any of some tables."""
    return {name for table in tables for name in table}


def undocumented(shown):
    """Settings that the example does not show in the section they belong to."""
    found = set()
    for name, struct in get_type_hints(config.Config).items():
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
            found |= missing(struct, shown.get(name, {}), name)
    for name, kinds in (("upstreams", config.UpstreamConfig), ("local_models", config.LocalModel)):
        for struct in get_args(kinds):
            kind = struct.__struct_config__.tag
            found |= missing(struct, union(table for table in shown[name].values() if table["kind"] == kind), f"{name}.{kind}")
    found |= missing(config.Model, union(shown["models"].values()), "models")
    candidates = [candidate for model in shown["models"].values() for candidate in model["candidates"]]
    return found | missing(config.Candidate, union(candidates), "candidates") | missing(config.Key, union(shown["keys"]), "keys")


def test_every_setting_is_shown_in_its_section():
    """Each field of each part of the config stands in the section of config.example.toml that it belongs to."""
    shown = shown_settings()
    del shown["upstreams"]["openai"]["inject_usage"], shown["logs"]["on_full"]
    assert undocumented(shown) == {"upstreams.openai.inject_usage", "logs.on_full"}
    assert undocumented(shown_settings()) == set()


def test_no_part_of_the_config_is_left_out():
    """The test above knows every struct that the config is made of."""
    known = {config.Server, config.Cache, config.Names, config.Logs, config.Policies, config.Model, config.Candidate, config.Key}
    known |= {*get_args(config.UpstreamConfig), *get_args(config.LocalModel), config.Config}
    made = {value for value in vars(config).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)}
    assert {struct for struct in made if struct.__module__ == "gateway.config"} == known
    hints = {
        one
        for hint in get_type_hints(config.Config).values()
        for one in (get_args(hint) if isinstance(hint, UnionType) else (hint,))
    }
    assert {get_origin(hint) or hint for hint in hints} <= {str, dict, tuple, type(None), *known}


API_ERRORS = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.ApiError)
}


def code_arguments(tree):
    """Functions of a module that take a `code`: name → (its position, the error they return)."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and getattr(node.returns, "id", "") in API_ERRORS:
            names = [argument.arg for argument in node.args.args]
            if "code" in names:
                found[node.name] = names.index("code"), API_ERRORS[node.returns.id]
    return found


def used_codes():
    """(code, status) of every error that gateway/ can tell a client on its own account."""
    found = {(error.code, error.status) for error in API_ERRORS.values() if error.code}
    for tree in SOURCES.values():
        makers = code_arguments(tree)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            said = [constant(keyword.value) for keyword in call.keywords if keyword.arg == "code"]
            if called(call) in API_ERRORS and said and said[0]:
                found.add((said[0], API_ERRORS[called(call)].status))
            elif called(call) in makers:
                position, error = makers[called(call)]
                found.add((constant(call.args[position]), error.status))
    return found


def table(page, heading):
    """The rows of the first table under a heading; the first cell without its backticks."""
    text = (ROOT / "docs" / page).read_text()
    lines = text[text.index(f"## {heading}") :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| ---")) + 1
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append([first.replace("`", ""), *cells])
    return rows


def test_every_error_code_is_documented_with_its_status():
    """docs/errors.md has one row for each code with each of its statuses, and none for a code that is gone."""
    codes = used_codes()
    assert {("duplicate_key", 400), ("policy_forbidden", 403), ("integer_above_max_value", 400)} <= codes
    rows = [row for row in table("errors.md", "Codes") if row[0] != "null"]
    assert sorted((code, int(status)) for code, status, _, _ in rows) == sorted(codes)
    assert all(all(row) for row in rows), "a row without its cause or its mend"


def test_codes_are_constants():
    """No error is made with a code that is put together while the gateway runs, so the table can be complete."""
    computed = [
        ast.unparse(call)
        for call in nodes(ast.Call)
        if called(call) in API_ERRORS
        for keyword in call.keywords
        if keyword.arg == "code"
        and constant(keyword.value) is None
        and ast.unparse(keyword.value) not in {"code", "_code(error)"}
    ]
    assert computed == []


def commands(group, prefix="gateway"):
    """Every command below a click group, in full words."""
    found = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found += commands(command, f"{prefix} {name}") if inner else [f"{prefix} {name}"]
    return found


def test_every_command_is_documented():
    """Each command of the command line stands in README.md or docs/cli.md."""
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/cli.md").read_text()
    assert [name for name in commands(cli.cli) if not re.search(rf"\b{name}\b", text)] == []


def typed(text):
    """What a page tells its reader to type after `gateway`, in code: one word, or two when two follow."""
    fence = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    rest = re.findall(r"`([^`\n]+)`|^    (.+)$", fence.sub("", text), re.MULTILINE)
    said = re.compile(r"(?:^|[ /])gateway (?!gateway )([a-z]+(?: [a-z]+)?)", re.MULTILINE)
    return [words for code in (*fence.findall(text), *map("".join, rest)) for words in said.findall(code)]


def unknown(said):
    """Those that are neither a command nor a group of commands."""
    known = {name.removeprefix("gateway ") for name in commands(cli.cli)}
    groups = {name.split()[0] for name in known if " " in name}
    return [words for words in said if words not in known | groups and words.split()[0] not in known]


def test_a_command_that_is_not_there_would_be_seen():
    """The reader of pages finds commands in code and leaves prose alone, and knows which of them do not exist."""
    code = "    /opt/bin/gateway serv\n    x gateway gateway keys new A\n"
    text = f"use `gateway keys now` or `gateway purge`\n\n{code}\nthe gateway is\n\n```sh\ngateway stats\n```\n"
    assert sorted(typed(text)) == ["keys new", "keys now", "purge", "serv", "stats"]
    assert sorted(unknown(typed(text))) == ["keys now", "serv"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_page_exists(page):
    """What a page tells the reader to type as `gateway ...` is a command."""
    assert unknown(typed(page.read_text())) == []


def logged(tree):
    """Event names that a module gives to a structlog logger of its own, to a ledger, or to the supervisor's log."""
    loggers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == "structlog.get_logger()"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args]
    ours = [call for call in calls if called(call) in {"event", "_event"} or getattr(call.func.value, "id", "") in loggers]
    return {name for call in ours if (name := constant(call.args[0]))}


def test_an_event_in_the_source_would_be_seen():
    """Names are found whichever way they are logged; other loggers and computed names are not taken for events."""
    calls = ('log.info("a.b")', 'ledger.event("c.d", x=1)', 'self._event("e.f")', 'other.info("g")', "log.info(name)")
    source = "\n".join(("log = structlog.get_logger()", *calls))
    assert logged(ast.parse(source)) == {"a.b", "c.d", "e.f"}


def test_every_logged_event_is_known():
    """Each event name in the source stands in events.EVENTS, from which the docs and the schema are checked."""
    used = set().union(*(logged(tree) for tree in SOURCES.values()))
    assert used
    assert used - set(EVENTS) == set()


def links(page):
    """Relative targets of the links in a page, code left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in found if not re.match(r"[a-z]+:", target) and not target.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    """Every link to a file of the repository points to one that exists."""
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_a_dead_link_would_be_seen(tmp_path):
    """The link reader finds relative targets with and without an anchor, and leaves addresses and code alone."""
    page = tmp_path / "page.md"
    page.write_text("[a](b.md) [c](d/e.md#f) [g](https://h) [i](#j)\n```\n[k](l)\n```\n")
    assert links(page) == ["b.md", "d/e.md"]


def test_decisions_are_numbered_and_complete():
    """Each record in docs/decisions has the next number and says context, decision and consequence."""
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(path.name[:3]) for path in records] == list(range(1, len(records) + 1))
    headings = [re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE) for path in records]
    assert all(found == ["Context", "Decision", "Consequence"] for found in headings)


PROOFS = [
    (paths.split(), words.split(" or "))
    for paths, words in re.findall(r"`pytest ([\w/. ]+?)(?: -k \"?([\w ]+?)\"?)?`", (ROOT / "README.md").read_text())
]


@pytest.mark.parametrize(("paths", "words"), PROOFS, ids=str)
def test_the_command_that_shows_a_promise_runs_tests(paths, words):
    """Its folders and files are there, and each of its words is in the name of a test, or of a file of tests, in them."""
    files = [file for path in paths for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("test_*.py"))]
    names = " ".join([f"{file.stem} {' '.join(re.findall(r'def (test_[a-z0-9_]+)', file.read_text()))}" for file in files])
    assert [word for word in words if word not in names] == []


def test_every_module_that_a_page_runs_exists():
    """`python -m tests.bench.logs` and the like."""
    ran = {name for page in PAGES for name in re.findall(r"python -m (tests\.[\w.]+)", page.read_text())}
    missing = [
        name for name in ran if not any((ROOT / f"{name.replace('.', '/')}{end}").exists() for end in (".py", "/__main__.py"))
    ]
    assert len(ran) > 5
    assert missing == []
