"""What operators run: image, compose file, systemd unit and TLS proxy hold what deploy/README.md promises."""

import asyncio
import fnmatch
import json
import re
import shutil
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from gateway import config
from gateway.policy import generation
from gateway.supervisor import STOP_S

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CONFIG = config.load(DEPLOY / "config.docker.toml")
LONGEST_STOP_S = CONFIG.server.drain_s + 2 * STOP_S
"""The front worker has drain_s and a grace, then the other workers have theirs."""


def instructions(text):
    """A Dockerfile as (instruction, arguments), comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.strip().split(None, 1)) for line in joined.splitlines()]


def stages(text):
    """The instructions of each stage, FROM first."""
    found = []
    for instruction in instructions(text):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def dockerfile_faults(text):
    """What is wrong with a Dockerfile, one word each."""
    every, last = stages(text), dict(stages(text)[-1])
    bases = [stage[0][1].split()[0] for stage in every]
    command = last.get("HEALTHCHECK", "").partition("CMD ")[2]
    return {
        word
        for word, is_wrong in {
            "stages": len(every) < 2,
            "pinned": any(not re.search(r":\d+\.\d+[\w.-]*$", base) for base in bases),
            "interpreter": len(set(bases)) > 1,
            "user": not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "0")),
            "exec": not all(form.startswith("[") for form in (last.get("ENTRYPOINT", ""), last.get("CMD", "["), command)),
            "healthcheck": "/health" not in command,
            "compiler": bool(re.search(r"\b(gcc|build-essential|apt-get)\b", text)),
            "volume": "VOLUME" not in last,
        }.items()
        if is_wrong
    }


DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 10001:10001", "USER root", "user"),
        ("USER 10001:10001\n", "", "user"),
        ("python:3.12-slim-bookworm\n", "python:latest\n", "pinned"),
        ('ENTRYPOINT ["gateway"]', "ENTRYPOINT gateway", "exec"),
        ('CMD ["python", "-c"', "CMD python -c", "exec"),
        ("HEALTHCHECK", "LABEL", "healthcheck"),
        ("RUN groupadd", "RUN apt-get install gcc; groupadd", "compiler"),
        ("VOLUME /var/lib/gateway\n", "", "volume"),
    ],
)
def test_a_weakened_image_is_noticed(old, new, fault):
    """Each promise of the image is looked for: taking one away is seen."""
    assert old in DOCKERFILE
    assert fault in dockerfile_faults(DOCKERFILE.replace(old, new))


def test_the_image_holds_its_promises():
    """Two stages on one pinned base, no compiler, a fixed user that is not root, exec forms, a health check, a volume."""
    assert dockerfile_faults(DOCKERFILE) == set()


def copied():
    """What the image takes from the repository."""
    for instruction, arguments in instructions(DOCKERFILE):
        if instruction == "COPY" and "--from" not in arguments:
            yield from arguments.split()[:-1]


def let_in(path):
    """Whether the ignore file lets a path into the build; the last line that matches decides."""
    allowed = True
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if (
            line
            and not line.startswith("#")
            and any(fnmatch.fnmatch(part, pattern) for part in (path, *map(str, Path(path).parents)))
        ):
            allowed = line.startswith("!")
    return allowed


@pytest.mark.parametrize("source", sorted(copied()))
def test_what_the_image_copies_is_there(source):
    """Every path that the build copies exists and is let in by the ignore file."""
    assert (ROOT / source).exists()
    assert let_in(source)


@pytest.mark.parametrize("path", [".gateway", ".git", "config.toml", "deploy/gateway.env", ".venv"])
def test_secrets_and_state_stay_out_of_the_build(path):
    """Nothing private can reach an image layer, whoever adds a COPY."""
    assert not let_in(path)


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.toml")), ids=lambda path: path.name)
def test_each_config_loads_with_the_policies_beside_it(path, tmp_path):
    """The configuration and the shipped policies fit together where the image puts them."""
    shutil.copy(path, tmp_path / "config.toml")
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    loaded = config.load(tmp_path / "config.toml")
    assert loaded.policies.default in generation.load(loaded, loaded.policies_folder).policies


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
GATEWAY = COMPOSE["services"]["gateway"]


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_each_service_is_confined(name):
    """No service writes outside its volumes, holds a capability, gains one, or runs without bounds."""
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(entry.startswith("/tmp") for entry in service["tmpfs"])
    assert {"mem_limit", "pids_limit", "restart"} <= set(service)
    assert not {"privileged", "network_mode", "pid", "devices"} & set(service)


def test_only_this_machine_reaches_the_port():
    """The gateway's port is published on loopback, Redis has none and no way out."""
    assert GATEWAY["ports"] == [f"127.0.0.1:8080:{CONFIG.server.port}"]
    assert "ports" not in COMPOSE["services"]["redis"]
    networks = COMPOSE["networks"]
    assert [networks[name].get("internal") for name in COMPOSE["services"]["redis"]["networks"]] == [True]


def test_the_services_wait_for_health():
    """Both services have a health check, the gateway's in its image, and the gateway starts after a healthy Redis."""
    assert COMPOSE["services"]["redis"]["healthcheck"]["test"][0] == "CMD"
    assert GATEWAY["depends_on"]["redis"]["condition"] == "service_healthy"
    assert f"127.0.0.1:{CONFIG.server.port}/health" in DOCKERFILE


def test_compose_image_and_config_agree():
    """State lies in the volume, the mounted files where the image looks, and the variable that is asked for is set."""
    mounts = dict(entry.split(":")[:2] for entry in GATEWAY["volumes"])
    assert mounts["state"] == CONFIG.server.state_dir == dict(instructions(DOCKERFILE))["VOLUME"]
    assert f"GATEWAY_CONFIG={mounts['./config.docker.toml']}" in DOCKERFILE
    assert mounts["../policies"] == str(Path(mounts["./config.docker.toml"]).parent / CONFIG.policies.folder)
    assert GATEWAY["environment"][CONFIG.cache.redis_url_env].startswith("redis://redis:")
    assert all((DEPLOY / source).exists() for source in mounts if source != "state")
    assert (DEPLOY / GATEWAY["build"]["context"]).resolve() == ROOT


def test_secrets_come_from_a_file_that_is_not_shipped():
    """Keys are named in an example and filled in beside it; no tracked file holds a value."""
    assert GATEWAY["env_file"] == [{"path": "gateway.env", "required": False}]
    example = (DEPLOY / "gateway.env.example").read_text()
    names = [upstream.key_env for upstream in CONFIG.upstreams.values() if isinstance(upstream, config.OpenAIUpstream)]
    assert names
    assert all(f"\n#{name}=\n" in example for name in names)
    assert not re.search(r"^[^#\n]", example, re.MULTILINE)


def test_redis_keeps_answers_in_memory_only():
    """No answer reaches Redis's disk, and what is evicted is never the record of purges."""
    command = " ".join(COMPOSE["services"]["redis"]["command"])
    assert "--save  --appendonly no" in command
    assert "--maxmemory-policy volatile-lru" in command


def unit(text):
    """A systemd unit as {section: {key: [values]}}."""
    found, section = {}, {}
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


UNIT = (DEPLOY / "gateway.service").read_text()
SERVICE = unit(UNIT)["Service"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("User", "gateway"),
        ("StateDirectory", "gateway"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("UMask", "0077"),
        ("KillMode", "mixed"),
        ("OOMPolicy", "continue"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "2"),
        ("EnvironmentFile", "-/etc/gateway/env"),
        ("ExecStart", "/opt/gateway/bin/gateway serve"),
    ],
)
def test_the_unit_is_hardened_and_ends_in_order(key, value):
    """The unit has no right it does not need, and its workers get the time they are promised."""
    assert SERVICE[key] == [value]


@pytest.mark.parametrize("stop_s", [SERVICE["TimeoutStopSec"][0], GATEWAY["stop_grace_period"].removesuffix("s")])
def test_a_stop_outlasts_the_drain(stop_s):
    """Nobody is killed while requests in flight may still finish and workers end."""
    assert float(stop_s) > LONGEST_STOP_S


def test_a_config_error_has_the_status_that_the_unit_does_not_restart_on(tmp_path):
    """A configuration that cannot be used ends the process with the status of RestartPreventExitStatus, at once."""
    (tmp_path / "config.toml").write_text('[server]\nhost = "0.0.0.0"\n')
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(tmp_path / "config.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)
    assert [str(done.returncode)] == SERVICE["RestartPreventExitStatus"]


def systemd_analyze(tmp_path, text, *arguments):
    """Run systemd-analyze on a unit whose program exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / "gateway.service"
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", text, flags=re.MULTILINE))
    return subprocess.run(["systemd-analyze", *arguments, str(path)], capture_output=True, text=True, timeout=300, check=False)


def test_systemd_understands_every_line(tmp_path):
    """systemd-analyze has no remark on the unit, and has one when a key is misspelt."""
    assert systemd_analyze(tmp_path, UNIT.replace("UMask", "UMesk"), "verify", "--man=no").stderr
    done = systemd_analyze(tmp_path, UNIT, "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_rates_the_unit_as_confined(tmp_path):
    """The exposure level that systemd computes is at most 2.0 of 10."""
    rating = ("security", "--offline=yes", "--threshold=20")
    assert systemd_analyze(
        tmp_path, UNIT.replace("ProtectSystem=strict", "").replace("SystemCallFilter", "#"), *rating
    ).returncode
    assert systemd_analyze(tmp_path, UNIT, *rating).returncode == 0


NGINX = (DEPLOY / "nginx.conf").read_text()


def test_the_proxy_takes_what_the_gateway_takes():
    """Bodies up to the gateway's limit pass, and the proxy waits longer than the slowest answer may take."""
    assert f"client_max_body_size {CONFIG.server.max_body_bytes // 2**20}m;" in NGINX
    slowest_s = max(upstream.total_timeout_s for upstream in CONFIG.upstreams.values())
    assert float(re.search(r"proxy_read_timeout (\d+)s;", NGINX)[1]) > slowest_s


def nginx_files(folder, backend, port):
    """Write the shipped server into a whole configuration with a certificate of our own, on ports of our own."""
    certificate = [str(folder / "gateway.crt"), "-keyout", str(folder / "gateway.key")]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-out"]
    subprocess.run([*request, *certificate], capture_output=True, check=True, timeout=300)
    server = NGINX.replace("/etc/nginx/tls", str(folder)).replace("127.0.0.1:8080", f"127.0.0.1:{backend}")
    server = server.replace("listen 443", f"listen 127.0.0.1:{port}")
    paths = "".join(f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    head = f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{head}\nhttp {{ access_log off; {paths}\n{server}}}\n")
    return ["nginx", "-c", str(folder / "nginx.conf")]


@asynccontextmanager
async def proxied(folder, backend):
    """The shipped nginx server in front of `backend`; yields reader and writer of one TLS connection to it."""
    with_port = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = with_port.sockets[0].getsockname()[1]
    with_port.close()
    await with_port.wait_closed()
    process = await asyncio.create_subprocess_exec(*nginx_files(folder, backend, port), stderr=asyncio.subprocess.DEVNULL)
    trust = ssl.create_default_context(cafile=folder / "gateway.crt")
    trust.check_hostname = False
    async with asyncio.timeout(30):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
                break
            except OSError:
                await asyncio.sleep(0.05)
    try:
        yield reader, writer
        writer.close()
    finally:
        process.kill()
        await process.wait()


@pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("openssl")), reason="nginx and openssl are not both installed")
async def test_the_proxy_hands_on_each_event_as_it_comes(tmp_path):
    """Through the shipped TLS proxy the first event arrives while the upstream still waits to send the second."""
    first_seen = asyncio.Event()

    async def stream(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: one\n\n")
        await first_seen.wait()
        writer.write(b"data: two\n\n")
        writer.close()

    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    async with server, proxied(tmp_path, server.sockets[0].getsockname()[1]) as (reader, writer), asyncio.timeout(30):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await reader.readuntil(b"data: one")
        first_seen.set()
        assert b"data: two" in await reader.read()


def test_the_health_check_asks_what_the_gateway_answers():
    """The path in the image's health check is a route that needs no key."""
    source = (ROOT / "gateway/http/ops.py").read_text()
    command = json.loads(dict(stages(DOCKERFILE)[-1])["HEALTHCHECK"].partition("CMD ")[2])
    (path,) = re.findall(rf":{CONFIG.server.port}(/\w+)'", command[-1])
    assert f'@get("{path}"' in source
