"""What the gateway adds to a request, a stream and a token, beside nginx as the floor, in one run.

    python -m tests.bench.relay --harness DIR [--rounds 3] [--secs 3] [--cores 0,1]

DIR holds a harness with `run.sh` that measures gateways by URL and process (its README says how); it brings the upstreams. This
script starts the gateway with everything on (key check, scan, policy, metrics, a log line a token) except the cache, one front
worker, and an nginx proxy with one worker, both pinned to the first core, and passes the rest on to the harness.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PORTS = {"json": 47901, "paced": 47902, "stream": 47903}
"""Where the harness's upstreams listen; a model's name tells which."""
GATEWAY_PORT, NGINX_PORT = 47980, 47970

UPSTREAM = """
[upstreams.{name}]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
zone = "external"
takes_up_to = "internal"
[models.bench-{name}]
candidates = [{{ upstream = "{name}", input_usd_per_mtok = 0.15, output_usd_per_mtok = 0.6 }}]
"""
CONFIG = f'[server]\nport = {GATEWAY_PORT}\nstate_dir = "state"\n[cache]\nenabled = false\nsemantic = false\n'

NGINX = """
worker_processes 1; daemon off; pid {work}/nginx.pid; error_log {work}/nginx.err warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 1m; tcp_nodelay on;
  client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f;
  uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection "";
{servers}
}}
"""
NGINX_SERVER = """  upstream {name} {{ server 127.0.0.1:{port}; keepalive 128; }}
  server {{ listen 127.0.0.1:{listen} backlog=4096; location / {{ proxy_pass http://{name}; }} }}
"""


def start_gateway(work: Path, core: str) -> tuple[subprocess.Popen[str], str]:
    """The gateway process and a key, once it serves."""
    root = Path(__file__).resolve().parents[2]
    (work / "policies").mkdir()
    # The shipped limits, without the tests that speak of the demo's upstreams, and one route.
    (work / "policies" / "privacy.toml").write_text((root / "policies" / "privacy.toml").read_text().partition("[[test]]")[0])
    (work / "policies" / "cost.toml").write_text('policy = "cost"\n[[route]]\nname = "all"\norder_by = "cost"\n')
    (work / "config.toml").write_text(CONFIG + "".join(UPSTREAM.format(name=name, port=port) for name, port in PORTS.items()))
    command = ["taskset", "-c", core, sys.executable, "-m", "gateway", "serve", "-c", str(work / "config.toml")]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said = ""
    for line in process.stderr or ():
        said += line
        if found := re.search(r"OPENAI_API_KEY=(gw-\S+)", said):
            return process, found.group(1)
    raise SystemExit(f"the gateway did not start:\n{said}")


def start_nginx(work: Path, core: str) -> subprocess.Popen[bytes]:
    """A proxy in front of the same upstreams: what a relay costs at least."""
    servers = "".join(
        NGINX_SERVER.format(name=name, port=port, listen=NGINX_PORT + index) for index, (name, port) in enumerate(PORTS.items())
    )
    (work / "nginx.conf").write_text(NGINX.format(work=work, servers=servers))
    return subprocess.Popen(["taskset", "-c", core, "nginx", "-c", str(work / "nginx.conf")])


def targets(gateway_pid: int, key: str, nginx_pid: int) -> list[dict[str, object]]:
    """What the harness measures."""
    auth = {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{GATEWAY_PORT}/v1/chat/completions"
    ours = {name: {"url": url, "headers": auth, "model": f"bench-{name}"} for name in PORTS}
    floor = {name: {"url": f"http://127.0.0.1:{NGINX_PORT + i}/v1/chat/completions"} for i, name in enumerate(PORTS)}
    return [{"name": "gateway", "pid": gateway_pid, **ours}, {"name": "nginx", "pid": nginx_pid, **floor}]


def main() -> None:
    """Start both, measure, stop both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness", type=Path, required=True)
    parser.add_argument("--rounds", default="3")
    parser.add_argument("--secs", default="3")
    parser.add_argument("--core", default="0", help="core of the gateway and nginx")
    parser.add_argument("--phases", default="json,lat,stream,paced")
    options = parser.parse_args()
    for tool in ("nginx", "wrk", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing; on Debian: apt-get install -y nginx-light wrk util-linux")
    work = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    gateway, key = start_gateway(work, options.core)
    nginx = start_nginx(work, options.core)
    try:
        spec = work / "targets.json"
        spec.write_text(json.dumps(targets(gateway.pid, key, nginx.pid)))
        passed = ["--rounds", options.rounds, "--secs", options.secs, "--phases", options.phases]
        subprocess.run([str(options.harness / "run.sh"), "--spec", str(spec), "--", *passed], check=True)
        page = urllib.request.urlopen(f"http://127.0.0.1:{GATEWAY_PORT}/metrics").read().decode()
        print("\n".join(line for line in page.splitlines() if line.startswith(("gateway_requests_total", "gateway_log_dropped"))))
    finally:
        for process in (gateway, nginx):
            process.terminate()
        deadline = time.monotonic() + 15
        for process in (gateway, nginx):
            process.wait(max(1.0, deadline - time.monotonic()))
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
