"""config.toml as frozen Structs, the meaning written under each field; read once, by the supervisor.

Knows no policy: what may go where is said in `policies/`. Unknown keys are errors.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.errors import ConfigError, Problem, did_you_mean
from gateway.tomlfile import TomlFile

Class = Literal["public", "internal", "confidential", "restricted"]
"""How sensitive a request is, from least to most."""
CLASSES: tuple[Class, ...] = ("public", "internal", "confidential", "restricted")

Scope = Literal["chat", "admin", "audit"]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Positive = Annotated[int, Meta(ge=1)]
Price = Annotated[float, Meta(ge=0)]

CHAT_CAPABILITIES = ("chat", "tools", "images", "audio", "files", "json", "logprobs", "n")
ENDPOINT_CAPABILITIES = (
    "completions", "embeddings", "responses", "messages", "moderations", "images/generations", "images/edits",
    "images/variations", "audio/speech", "audio/transcriptions", "audio/translations", "batches",
)  # fmt: skip
CAPABILITIES = (*CHAT_CAPABILITIES, *ENDPOINT_CAPABILITIES)
Capability = Literal[
    "chat", "tools", "images", "audio", "files", "json", "logprobs", "n",
    "completions", "embeddings", "responses", "messages", "moderations", "images/generations", "images/edits",
    "images/variations", "audio/speech", "audio/transcriptions", "audio/translations", "batches",
]  # fmt: skip
"""What a request may need of a model: its endpoint, and the fields that not every model can serve."""


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the gateway listens and where it keeps its state."""

    host: str = "127.0.0.1"
    """Address to listen on. Another than loopback needs `behind_tls_proxy`."""
    port: Port = 8080
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Front workers, each on one core at most. More than one needs Redis."""
    state_dir: str = ".gateway"
    """Folder for keys, weights, cache, logs and archived policies; relative to the config file."""
    behind_tls_proxy: bool = False
    """Say true when a proxy in front ends TLS; without it a public address is refused."""
    max_body_bytes: Positive = 32 * 1024 * 1024
    """Largest request body; above it the answer is 413."""
    max_file_bytes: Positive = 512 * 1024 * 1024
    """Largest upload (files, sound, images), which is sent on while it comes in; above it the answer is 413."""
    body_timeout_s: Seconds = 60.0
    """Longest silence inside a request body; then the answer is 408, and the connection is closed."""
    max_scan_chars: Positive = 4_000_000
    """Text beyond this many characters is not scanned and makes the request `restricted`."""
    drain_s: Seconds = 30.0
    """How long requests in flight may go on after SIGTERM."""
    expose_headers: bool = True
    """Whether answers carry the x-gateway-* headers."""
    cors_origins: tuple[str, ...] = ()
    """Web pages (`https://host[:port]`, or `*` for all) whose scripts may call; empty: none. Cookies are never allowed."""


class OpenAIUpstream(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="openai"):
    """Any API that speaks OpenAI's wire format."""

    base_url: str
    """Up to and including `/v1`."""
    key_env: str = ""
    """Environment variable that holds its key; empty: it takes none. While the variable is unset the upstream is off."""
    key_header: Literal["authorization", "x-api-key"] = "authorization"
    """How its key travels: as `Authorization: Bearer`, or bare in `x-api-key`, as Anthropic's own API has it."""
    zone: str = "external"
    """Where it stands, for policies: `local`, or any word such as `eu` or `us`."""
    retention: str = "unknown"
    """How long it keeps what it is sent: `none`, `30d`, ..."""
    trains: bool = True
    """Whether it may learn from what it is sent; true unless you know better."""
    takes_up_to: Class = "public"
    """Highest class of request it may see."""
    connect_timeout_s: Seconds = 5.0
    first_token_timeout_s: Seconds = 60.0
    """Longest wait for the answer's first event (for the whole answer when it is not streamed: `total_timeout_s`)."""
    idle_timeout_s: Seconds = 60.0
    """Longest silence between two pieces of a stream."""
    total_timeout_s: Seconds = 600.0
    max_connections: Positive = 512
    retries: Annotated[int, Meta(ge=0, le=5)] = 1
    """How often a failed attempt is made again on this upstream before the next one is tried."""
    inject_usage: bool = True
    """Ask for usage at the end of streams when the client did not, and take it out again. Off for APIs that refuse it."""
    client: Literal["http1", "httpx"] = "http1"
    """What carries its requests: our own HTTP/1.1 client, or stock httpx at many times the CPU. Where HTTP_PROXY, HTTPS_PROXY or
    ALL_PROXY name a proxy for `base_url`, and NO_PROXY does not exempt it, it is httpx whatever stands here."""


class LocalUpstream(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="local"):
    """The models of `[local_models]`, on this machine."""

    inject_usage: ClassVar[bool] = True
    zone: str = "local"
    retention: str = "none"
    trains: bool = False
    takes_up_to: Class = "restricted"
    first_token_timeout_s: Seconds = 120.0
    idle_timeout_s: Seconds = 60.0
    total_timeout_s: Seconds = 600.0
    retries: Annotated[int, Meta(ge=0, le=5)] = 0


class EchoUpstream(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="echo"):
    """Answers with the last user text, word by word. For tests; never a stand-in for a model."""

    inject_usage: ClassVar[bool] = True
    zone: str = "local"
    retention: str = "none"
    trains: bool = False
    takes_up_to: Class = "public"
    ms_per_token: Annotated[float, Meta(ge=0)] = 0.0
    """Pause before each word."""
    fail: Literal["", "connect", "status", "first", "midway", "hang"] = ""
    """Fail on purpose: no connection, a 500, an in-band error first, a cut after two events, silence."""
    first_token_timeout_s: Seconds = 60.0
    idle_timeout_s: Seconds = 60.0
    total_timeout_s: Seconds = 600.0
    retries: Annotated[int, Meta(ge=0, le=5)] = 0


UpstreamConfig = OpenAIUpstream | LocalUpstream | EchoUpstream
UPSTREAM_KINDS = ("openai", "local", "echo")


class ChatModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="chat"):
    """A chat model that a worker process of ours holds."""

    weights: str = ""
    """A name that `gateway models pull` knows, or a folder; empty: the model's own name."""
    quantization: Literal["bnb-int8", "bnb-nf4", "none"] = "bnb-int8"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Meta(ge=0)] = 0
    """torch threads; 0: one less than the machine's cores, at least one."""
    max_rows: Positive = 8
    """Answers that advance together."""
    max_waiting: Annotated[int, Meta(ge=0)] = 64
    """Requests that may wait for a row; above it the answer is 429."""
    context: Positive = 2048
    """Most tokens of prompt and answer together."""


class EmbeddingModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="embedding"):
    """An embedding model; the cache worker holds it, for the semantic cache and for /v1/embeddings."""

    weights: str = ""
    """A name that `gateway models pull` knows, or a folder; empty: the model's own name."""


LocalModel = ChatModel | EmbeddingModel


class Candidate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One place that serves a public model name."""

    upstream: str
    model: str = ""
    """The upstream's own name for it; empty: the public name."""
    input_usd_per_mtok: Price | None = None
    """Price of a million prompt tokens. Unknown is not free: without a price it is not eligible under a cost cap."""
    output_usd_per_mtok: Price | None = None
    cached_input_usd_per_mtok: Price | None = None
    context: Positive | None = None
    """Most tokens of prompt and answer together; unknown: not checked."""
    max_output: Positive | None = None
    capabilities: tuple[Capability, ...] = ("chat",)


class Model(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A public model name, and who serves it."""

    substitutable: bool = False
    """True: anything the policy allows may answer, whoever else's candidate it is (`auto`)."""
    candidates: tuple[Candidate, ...] = ()
    """May be empty for a substitutable name: then every candidate of every other name is one."""


class Cache(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers kept for the same question."""

    enabled: bool = True
    ttl_s: Seconds = 86_400.0
    exact_max_bytes: Positive = 64 * 1024 * 1024
    """Memory of the exact tier, in each front worker."""
    semantic: bool = True
    """Whether questions that mean the same may share an answer, by the cache worker."""
    embedder: str = "all-minilm-l6-v2"
    """A `[local_models]` name of kind `embedding`."""
    threshold: Annotated[float, Meta(ge=0.5, le=1.0)] = 0.92
    """Least cosine of a semantic hit; equal numbers, negation and question word are demanded besides."""
    semantic_max_bytes: Positive = 512 * 1024 * 1024
    """Disk of the semantic tier."""
    lookup_timeout_s: Seconds = 0.25
    """A semantic look-up that takes longer is a miss."""
    redis_url_env: str = ""
    """Environment variable with a redis:// URL: equal requests then share answers across workers and gateways. Empty: not."""


class Names(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that knows names of people, places and organisations, in a process of its own."""

    model: str
    """presidio: a spaCy pipeline, as an installed package or a folder. gliner: a folder with its weights."""
    engine: Literal["presidio", "gliner"] = "presidio"
    language: str = "en"
    """Of the spaCy pipeline."""
    least_score: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    """Below it a name is none."""
    max_chars: Positive = 20_000
    """What of one request it may have to read anew; a request with more is `restricted`."""
    timeout_s: Seconds = 10.0
    """A request whose names are not known by then is `restricted`."""


class Logs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One JSON line for every event that carries content, and for what happens to a request."""

    folder: str = ""
    """Empty: `logs` in the state folder."""
    stdout: bool = False
    """Write lines to standard output instead of files. With one front worker only."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    rotate_bytes: Positive = 64 * 1024 * 1024
    keep_files: Positive = 32
    """Segments kept; the oldest go first."""
    on_full: Literal["refuse", "drop"] = "refuse"
    """When lines cannot be written: refuse new requests (503), or drop lines and count them."""
    queue_limit: Positive = 200_000
    """Lines that may wait in memory for the disk."""
    vocabulary_folder: str = ""
    """A folder of tiktoken vocabulary files; empty: token counts of upstreams that send none are estimates."""


class Key(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An API key given by the environment, beside those that `gateway keys new` makes."""

    label: str
    key_env: str
    """Environment variable that holds the key."""
    tenant: str = "default"
    scopes: tuple[Scope, ...] = ("chat",)
    policy: str = ""
    """Route policy for this key; empty: the default."""
    policies: tuple[str, ...] = ()
    """Other route policies it may choose by the x-gateway-policy header."""
    class_floor: Class = msgspec.field(default="public")
    """Every request of this key is at least of this class."""


class Policies(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the policy files lie."""

    folder: str = "policies"
    """Relative to the config file. Limits of every file in it apply to every request."""
    default: str = "cost"
    """The policy whose routes are used when neither key nor header names one."""


class Config(Struct, frozen=True, kw_only=True):
    """Everything an operator says, complete and checked."""

    path: str
    """The file it came from."""
    server: Server
    upstreams: dict[str, UpstreamConfig]
    local_models: dict[str, LocalModel]
    models: dict[str, Model]
    cache: Cache
    logs: Logs
    keys: tuple[Key, ...]
    policies: Policies
    names: Names | None = None

    @property
    def root(self) -> Path:
        """The folder that relative paths start from."""
        return Path(self.path).resolve().parent

    @property
    def state_dir(self) -> Path:
        """Absolute path of the state folder."""
        return self.root / self.server.state_dir

    @property
    def logs_folder(self) -> Path:
        """Absolute path of the log folder."""
        return self.root / self.logs.folder if self.logs.folder else self.state_dir / "logs"

    @property
    def policies_folder(self) -> Path:
        """Absolute path of the policy folder."""
        return self.root / self.policies.folder

    def weights_folder(self, name: str) -> Path:
        """Where the weights of a local model lie, whether or not they are there yet."""
        weights = self.local_models[name].weights or name
        if "/" in weights or weights.startswith("."):
            return self.root / weights
        return self.state_dir / "models" / weights

    def names_model(self) -> str:
        """What the names worker is to load: a package's name, or the absolute path of a folder. Empty when it is off."""
        if self.names is None:
            return ""
        folder = self.root / self.names.model
        return str(folder) if folder.is_dir() or "/" in self.names.model else self.names.model

    def chat_models(self) -> dict[str, ChatModel]:
        """The local models that need a model worker."""
        return {name: model for name, model in self.local_models.items() if isinstance(model, ChatModel)}

    def candidates(self, name: str) -> tuple[Candidate, ...]:
        """Who may serve a public name, with model names filled in; every other name's candidates for a bare substitutable one."""
        model = self.models[name]
        if model.candidates or not model.substitutable:
            return tuple(_named(candidate, name) for candidate in model.candidates)
        found: dict[tuple[str, str], Candidate] = {}
        for other, entry in self.models.items():
            for candidate in entry.candidates:
                named = _named(candidate, other)
                found.setdefault((named.upstream, named.model), named)
        return tuple(found.values())


def _named(candidate: Candidate, name: str) -> Candidate:
    return candidate if candidate.model else msgspec.structs.replace(candidate, model=name)


def off_reason(upstream: UpstreamConfig) -> str | None:
    """Why an upstream cannot be used with the environment as it is, or None.

    A gateway key (`gw-`) as an upstream's key means that two variables were mixed up: it would send our key outside.
    """
    if not isinstance(upstream, OpenAIUpstream) or not upstream.key_env:
        return None
    value = os.environ.get(upstream.key_env, "")
    if not value:
        return f"{upstream.key_env} is not set"
    if value.startswith("gw-"):
        return f"{upstream.key_env} holds a key of this gateway (gw-...), not one of the upstream"
    if not value.isascii() or not value.isprintable() or value != value.strip():
        return f"{upstream.key_env} holds characters that cannot stand in a header"
    return None


_SECTIONS: dict[str, Any] = {"server": Server, "cache": Cache, "logs": Logs, "policies": Policies}
_OPTIONAL_SECTIONS: dict[str, Any] = {"names": Names}
_NAMED_SECTIONS: dict[str, Any] = {"upstreams": UpstreamConfig, "local_models": LocalModel, "models": Model}
_TAGS = {"upstreams": UPSTREAM_KINDS, "local_models": ("chat", "embedding")}


def load(path: Path) -> Config:
    """Read and check a config file. Raises ConfigError with every problem found, each with file:line:column and mend."""
    return parse(TomlFile.read(path))


def parse(file: TomlFile) -> Config:
    """As `load`, from a file already read."""
    problems: list[Problem] = []
    parts: dict[str, Any] = {name: type_() for name, type_ in _SECTIONS.items()}
    parts |= {name: {} for name in _NAMED_SECTIONS}
    parts["keys"] = []

    def convert(value: Any, type_: Any, where: tuple[str | int, ...], tags: tuple[str, ...] = ()) -> Any:
        try:
            return file.convert(value, type_, where, tags=tags)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    for name, value in file.data.items():
        if name in _SECTIONS:
            parts[name] = convert(value, _SECTIONS[name], (name,)) or parts[name]
        elif name in _OPTIONAL_SECTIONS:
            parts[name] = convert(value, _OPTIONAL_SECTIONS[name], (name,))
        elif name in _NAMED_SECTIONS and isinstance(value, dict):
            for entry, content in value.items():
                found = convert(content, _NAMED_SECTIONS[name], (name, entry), _TAGS.get(name, ()))
                if found is not None:
                    parts[name][entry] = found
        elif name == "keys" and isinstance(value, list):
            parts["keys"] = [key for index, item in enumerate(value) if (key := convert(item, Key, ("keys", index)))]
        elif name in _NAMED_SECTIONS or name == "keys":
            shape = "[[keys]]" if name == "keys" else f"[{name}.NAME]"
            problems.append(file.problem((name,), f"expected entries of the form {shape}"))
        else:
            known = [*_SECTIONS, *_OPTIONAL_SECTIONS, *_NAMED_SECTIONS, "keys"]
            problems.append(file.problem((name,), f'unknown section "{name}"{did_you_mean(name, known)}'))
    if problems:
        raise ConfigError(problems)
    config = Config(path=file.name, **{**parts, "keys": tuple(parts["keys"])})
    problems = [*_server_problems(file, config), *_reference_problems(file, config)]
    if problems:
        raise ConfigError(problems)
    return config


_ORIGIN = re.compile(r"\*|https?://[a-z0-9.\-\[\]:]+")


def _server_problems(file: TomlFile, config: Config) -> list[Problem]:
    wrong = [origin for origin in config.server.cors_origins if not _ORIGIN.fullmatch(origin)]
    message = 'must be "*" or scheme://host[:port], in small letters and without a path: {}'
    problems = [file.problem(("server", "cors_origins"), message.format(ascii(origin))) for origin in wrong]
    return problems + _address_problems(file, config) + _worker_problems(file, config)


def _worker_problems(file: TomlFile, config: Config) -> list[Problem]:
    count, problems = config.server.workers, []
    if count > 1 and not config.cache.redis_url_env:
        message = (
            f"{count} front workers need Redis, through which they share answers and purges. "
            "Name the environment variable that holds its URL in cache.redis_url_env, or set workers = 1"
        )
        problems.append(file.problem(("server", "workers"), message))
    if count > 1 and config.logs.stdout:
        message = "the lines of several front workers would mix on standard output; set it to false, or server.workers = 1"
        problems.append(file.problem(("logs", "stdout"), message))
    return problems


def _address_problems(file: TomlFile, config: Config) -> list[Problem]:
    host = config.server.host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not config.server.behind_tls_proxy:
        message = (
            f'"{host}" is not a loopback address: keys and prompts would travel unencrypted. '
            "Put a TLS proxy in front and set behind_tls_proxy = true, or listen on 127.0.0.1"
        )
        return [file.problem(("server", "host"), message)]
    return []


def _reference_problems(file: TomlFile, config: Config) -> list[Problem]:
    problems = []
    for name, upstream in config.upstreams.items():
        if isinstance(upstream, OpenAIUpstream) and not upstream.base_url.startswith(("http://", "https://")):
            problems.append(file.problem(("upstreams", name, "base_url"), "must begin with http:// or https://"))
    for name, model in config.models.items():
        if not model.candidates and not model.substitutable:
            problems.append(file.problem(("models", name), "has no candidates; add one, or set substitutable = true"))
        for index, candidate in enumerate(model.candidates):
            problems += _candidate_problems(file, config, ("models", name, "candidates", index), _named(candidate, name))
    embedder = config.local_models.get(config.cache.embedder)
    if config.cache.enabled and config.cache.semantic and not isinstance(embedder, EmbeddingModel):
        known = [name for name, model in config.local_models.items() if isinstance(model, EmbeddingModel)]
        hint = did_you_mean(config.cache.embedder, known) or "; add it under [local_models], or set semantic = false"
        message = f'no embedding model "{config.cache.embedder}" in [local_models]{hint}'
        problems.append(file.problem(("cache", "embedder"), message))
    labels: set[str] = set()
    for index, key in enumerate(config.keys):
        if key.label in labels:
            problems.append(file.problem(("keys", index, "label"), f'the label "{key.label}" is used twice'))
        labels.add(key.label)
    return problems


def _candidate_problems(file: TomlFile, config: Config, where: tuple[str | int, ...], candidate: Candidate) -> list[Problem]:
    upstream = config.upstreams.get(candidate.upstream)
    if upstream is None:
        hint = did_you_mean(candidate.upstream, config.upstreams)
        return [file.problem((*where, "upstream"), f'unknown upstream "{candidate.upstream}"{hint}')]
    if isinstance(upstream, LocalUpstream) and candidate.model not in config.local_models:
        hint = did_you_mean(candidate.model, config.local_models)
        return [file.problem((*where, "model"), f'no local model "{candidate.model}" in [local_models]{hint}')]
    return []


def upstream_key(upstream: OpenAIUpstream) -> str:
    """The upstream's own key from the environment; empty when it takes none or is off."""
    return os.environ.get(upstream.key_env, "") if upstream.key_env else ""


def key_header(upstream: OpenAIUpstream, key: str) -> tuple[str, str]:
    """Name and value of the header that carries an upstream's own key."""
    return (upstream.key_header, f"Bearer {key}" if upstream.key_header == "authorization" else key)


def redis_url(config: Config) -> str:
    """The shared cache's address from the environment; empty when none is named. Raises ConfigError for one named but unset."""
    name = config.cache.redis_url_env
    if not name:
        return ""
    url = os.environ.get(name, "")
    if not url:
        raise ConfigError([Problem(f"{config.path}: cache.redis_url_env", f"{name} is not set; export it, or empty the setting")])
    if not url.startswith(("redis://", "rediss://", "unix://")):
        message = f"{name} holds no address of a Redis; it must begin with redis://, rediss:// or unix://"
        raise ConfigError([Problem(f"{config.path}: cache.redis_url_env", message)])
    return url
