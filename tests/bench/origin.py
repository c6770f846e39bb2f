"""The bench's upstream over TLS, with HTTP/1.1 or HTTP/2 as the client prefers. Prints its port, then the protocol of each connection.

`python -m tests.bench.origin CERTIFICATE KEY`; ends with its standard input.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import uvloop
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamEnded

from gateway.bench import upstream

_HEAD, _, BODY = upstream.FIXED["json"].partition(b"\r\n\r\n")


class Http2(asyncio.Protocol):
    """Whole answers over one HTTP/2 connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._state = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._state.initiate_connection()
        transport.write(self._state.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self._state.receive_data(data):
            match event:
                case RequestReceived():
                    # Small bodies only: the windows' first size is never used up by one, and each is given back at once.
                    pass
                case StreamEnded():
                    self._answer(event.stream_id)
        self._state.increment_flow_control_window(max(1, len(data)))
        self._transport.write(self._state.data_to_send())

    def _answer(self, stream: int) -> None:
        head = [(":status", "200"), ("content-type", "application/json"), ("content-length", str(len(BODY)))]
        self._state.send_headers(stream, head)
        self._state.send_data(stream, BODY, end_stream=True)


class Chosen(asyncio.Protocol):
    """Becomes what the TLS handshake agreed on."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        agreed = transport.get_extra_info("ssl_object").selected_alpn_protocol() or "http/1.1"
        print(agreed, flush=True)
        protocol = Http2() if agreed == "h2" else upstream.Answering()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def main() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    context.set_alpn_protocols(["h2", "http/1.1"])
    uvloop.run(upstream.serve(Chosen, context))


if __name__ == "__main__":
    main()
