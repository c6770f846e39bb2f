"""A page of another origin in a real browser: preflight, POST, stream and errors, as its script sees them. Needs Chromium."""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from gateways import ECHO, ECHO_POLICY, Gateway

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; install it with: sudo apt-get install chromium")

PAGE = """<!doctype html><script type="module">
const url = "%s/v1/chat/completions", headers = {"content-type": "application/json", authorization: "Bearer %s"};
const told = {};
async function ask(name, body, more = {}) {
  try {
    const got = await fetch(url, {method: "POST", headers: {...headers, ...more}, body: JSON.stringify(body)});
    const pieces = [], reader = got.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let step; !(step = await reader.read()).done;) pieces.push(step.value);
    told[name] = {status: got.status, id: got.headers.get("x-request-id"), route: got.headers.get("x-gateway-route"),
                  text: pieces.join(""), pieces: pieces.length};
  } catch (error) { told[name] = {failed: String(error)}; }
}
const asked = {model: "echo", messages: [{role: "user", content: "from a page"}]};
await ask("whole", asked);
await ask("stream", {...asked, messages: [{role: "user", content: "word ".repeat(2000)}], stream: true});
await ask("unknown", {...asked, model: "nope"});
await ask("no key", asked, {authorization: "Bearer gw-wrong"});
await fetch("/told", {method: "POST", body: JSON.stringify(told)});
</script>"""


@pytest.fixture
def page():
    """A page on a port of its own: its `text` to be set, its `origin`, and a queue of what its script has `told`."""
    held = {"text": "", "told": queue.Queue()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._say(held["text"].encode())

        def do_POST(self):
            held["told"].put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._say(b"")

        def _say(self, body):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        held["origin"] = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield held
        server.shutdown()
        thread.join()


def seen_by(page, gateway, folder):
    """What the page's script has seen."""
    page["text"] = PAGE % (gateway.url, gateway.key)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}/profile",
    ]
    with subprocess.Popen(
        [CHROMIUM, *options, page["origin"]],
        env={**os.environ, "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as browser:
        try:
            return page["told"].get(timeout=120)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)


def started(folder, origins):
    gateway = Gateway(folder, ECHO, policies={"all.toml": ECHO_POLICY})
    gateway.config.write_text(gateway.config.read_text().replace("drain_s", f"cors_origins = {json.dumps(origins)}\ndrain_s"))
    return gateway


def test_a_page_that_is_named_asks_and_reads(page, tmp_path):
    """Whole and piece by piece; it reads the request's id and route, and the gateway's own errors with their status."""
    with started(tmp_path, [page["origin"]]) as gateway:
        told = seen_by(page, gateway, tmp_path)
        assert [told[name].get("status") for name in ("whole", "stream", "unknown", "no key")] == [200, 200, 404, 401], told
        assert json.loads(told["whole"]["text"])["choices"][0]["message"]["content"] == "from a page"
        assert (told["whole"]["route"], told["stream"]["route"]) == ("echo/echo", "echo/echo")
        assert told["stream"]["text"].endswith("data: [DONE]\n\n")
        assert told["stream"]["pieces"] > 1
        assert {json.loads(told[name]["text"])["error"]["code"] for name in ("unknown", "no key")} == {
            "model_not_found",
            "invalid_api_key",
        }
        for answer in told.values():
            assert gateway.record(answer["id"])["status"] == answer["status"]


def test_a_page_that_is_not_named_reaches_nobody(page, tmp_path):
    """Its browser asks first, is refused, and sends nothing of what it would have sent."""
    with started(tmp_path, ["https://other.example"]) as gateway:
        told = seen_by(page, gateway, tmp_path)
        assert {name for name, answer in told.items() if "failed" not in answer} == set()
        assert {(record["ending"], record["model"], tuple(record["tried"])) for record in gateway.records()} == {
            ("refused", "", ())
        }
