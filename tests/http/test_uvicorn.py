"""The insides of uvicorn and httptools that gateway/http leans on: whichever a new version lacks is named, with the mend."""

import ast
import asyncio
import inspect
import socket
import textwrap

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.http import lane
from gateway.http.lane import Connection, Connections, Lane

KEPT = {
    "app", "app_state", "asgi_version", "client", "cycle", "expect_100_continue", "flow", "headers", "limit_concurrency", "loop",
    "parser", "pipeline", "root_path", "scheme", "scope", "server", "server_state", "tasks", "transport", "url",
}  # fmt: skip
"""What a protocol holds once a request has begun; a Connection reads or writes each of them."""
DOES = {
    "__init__": ("config", "server_state", "app_state"),
    "connection_made": ("transport",),
    "connection_lost": ("exc",),
    "data_received": ("data",),
    "on_message_begin": (),
    "on_url": ("url",),
    "on_header": ("name", "value"),
    "on_headers_complete": (),
    "on_body": ("body",),
    "on_message_complete": (),
    "on_response_complete": (),
    "send_400_response": ("msg",),
    "shutdown": (),
    "timeout_keep_alive_handler": (),
    "_start_asgi_task": ("cycle", "app"),
    "_unset_keepalive_if_required": (),
}
"""Methods that a Connection calls, or does otherwise, with their first parameters."""
FLOW = {"write_paused", "drain", "pause_reading", "resume_reading"}
PARSER = {"get_method", "get_http_version", "should_upgrade", "should_keep_alive"}
CYCLE = {"chunked_encoding", "expected_content_length", "transport"}
"""Of uvicorn's own cycle, for door.py."""


def changed(what, where="lane.py"):
    return f"uvicorn {uvicorn.__version__} changed {what}; see gateway/http/{where}"


@pytest.fixture
async def protocol():
    """A protocol of uvicorn's own on a real connection, where a request has begun."""
    ours, theirs = socket.socketpair()
    config = uvicorn.Config(lambda: None, interface="asgi3", lifespan="off", log_config=None)
    config.load()
    made = HttpToolsProtocol(config, ServerState(), {"key": "value"})
    await asyncio.get_running_loop().connect_accepted_socket(lambda: made, ours)
    made.on_message_begin()
    yield made
    made.transport.abort()
    theirs.close()
    await asyncio.sleep(0)


def tree_of(thing):
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def attributes_of(tree, owner):
    """Names that are read from or written to `owner` ("self", "self.cycle")."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == owner}


@pytest.mark.parametrize("name", sorted(KEPT))
async def test_a_protocol_holds_what_a_connection_reads(protocol, name):
    """Under the name that lane.py knows."""
    assert hasattr(protocol, name), changed(f"HttpToolsProtocol.{name}")


@pytest.mark.parametrize("name", DOES)
def test_a_protocol_does_what_a_connection_relies_on(name):
    """Under the name and with the parameters that lane.py knows."""
    method = getattr(HttpToolsProtocol, name, None)
    assert method is not None, changed(f"HttpToolsProtocol.{name}()")
    found = tuple(inspect.signature(method).parameters)[1 : len(DOES[name]) + 1]
    assert found == DOES[name], changed(f"the parameters of HttpToolsProtocol.{name}()")


def test_flow_parser_and_cycle_have_what_is_asked_of_them():
    """Flow control, httptools' parser, and the cycle that door.py tells how an answer ends."""
    flow = flow_control.FlowControl(None)
    assert [name for name in FLOW if not hasattr(flow, name)] == [], changed("FlowControl")
    assert [name for name in PARSER if not hasattr(httptools.HttpRequestParser, name)] == [], changed("its parser, httptools,")
    assert flow_control.HIGH_WATER_LIMIT > 0, changed("HIGH_WATER_LIMIT")
    assert hasattr(ServerState(), "total_requests"), changed("ServerState.total_requests")
    cycle = attributes_of(tree_of(httptools_impl.RequestResponseCycle), "self")
    assert {"keep_alive", "more_body", "response_complete", "response_started"} - cycle == set(), changed("RequestResponseCycle")
    assert CYCLE - cycle == set(), changed("RequestResponseCycle", "door.py")


def test_these_tables_name_everything_that_a_connection_leans_on():
    """What lane.py takes from uvicorn without a word here would break without a word."""
    own = {"_owner", "_is_idle", *(set(vars(Connection)) - set(DOES))}
    tree = tree_of(Connection)
    supers = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()"}
    assert attributes_of(tree, "self") - own - KEPT - set(DOES) == set()
    assert supers - set(DOES) == set()
    assert {name for name in vars(HttpToolsProtocol) if name in vars(Connection) and callable(vars(Connection)[name])} <= set(
        DOES
    )
    whole = tree_of(lane)
    assert attributes_of(whole, "flow") | attributes_of(whole, "self.flow") | attributes_of(whole, "self._flow") == FLOW
    assert attributes_of(whole, "parser") == PARSER


def test_a_lane_has_all_that_uvicorn_asks_of_a_cycle():
    """Wherever uvicorn's own code, not replaced by a Connection, looks at the cycle, it may find a Lane."""
    asked = {}
    for name, method in vars(HttpToolsProtocol).items():
        if inspect.isfunction(method):
            asked |= dict.fromkeys(attributes_of(tree_of(method), "self.cycle"), name)
    replaced = {"on_body", "on_message_complete"}
    missing = {what: method for what, method in asked.items() if method not in replaced and not hasattr(Lane, what)}
    assert missing == {}, changed(f"what it asks of a cycle: {missing}")


async def test_a_scope_begins_as_uvicorns_own(protocol):
    """What goes the way of any application is described to it as without lane.py."""
    mine = Connection(Connections(None, idle_s=1, cors=False), protocol.config, protocol.server_state, protocol.app_state)
    mine.transport, mine.flow = protocol.transport, protocol.flow
    mine.server, mine.client, mine.scheme = protocol.server, protocol.client, protocol.scheme
    mine.on_message_begin()
    mine._begin_scope()
    assert mine.scope == protocol.scope, changed("how a scope begins")
