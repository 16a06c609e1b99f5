"""Who is measured: how each one is found, configured for a scenario, and started with one worker.

Every one gets the plain, quick configuration its own documentation would give it: one worker or thread, connections to
the origin kept alive and never closed for their number of requests, no access log, no statistics or headers it can
leave out.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from measure import Origin, Server, find_program, free_port

PROJECT = Path(__file__).resolve().parents[2]
ENDLESS = 1_000_000_000  # requests a connection may carry
LIFETIME = 3600  # seconds for which the origin's answers are fresh: none expires during a run
CACHE_MIB = 64

BODIES = {"/64": b"selvedge" * 8, "/1k": b"selvedge" * 128, "/1m": b"selvedge" * (128 << 10)}


@dataclass(frozen=True)
class Scenario:
    """One thing to measure. `filters` is how many times the trivial filter stands in the chain."""

    name: str
    path: str
    contestants: tuple
    reference: str
    filters: int = 0
    cached: bool = False
    tls: bool = False
    http2: bool = False


SCENARIOS = (
    Scenario("pass-through", "/64", ("selvedge", "nginx", "haproxy", "envoy"), "nginx"),
    Scenario("pass-through, TLS", "/64", ("selvedge", "nginx", "haproxy", "envoy"), "nginx", tls=True),
    Scenario("pass-through, HTTP/2", "/64", ("selvedge", "nginx", "haproxy", "envoy"), "nginx", tls=True, http2=True),
    Scenario("1 trivial filter", "/64", ("selvedge", "envoy"), "envoy", filters=1),
    Scenario("5 trivial filters", "/64", ("selvedge", "envoy"), "envoy", filters=5),
    Scenario("cache hit, 64 B", "/64", ("selvedge", "nginx", "varnish"), "nginx", cached=True),
    Scenario("cache hit, 1 KiB", "/1k", ("selvedge", "nginx", "varnish"), "nginx", cached=True),
    Scenario("cache hit, 1 MiB", "/1m", ("selvedge", "nginx", "varnish"), "nginx", cached=True),
)


class Contestant:
    """A proxy that may take part. Subclasses say what it is called and how it is started."""

    name = ""
    program = ""
    version_flag = "-v"

    def __init__(self):
        self.path = find_program(self.program)

    def absent(self, _scenario):
        """Why it cannot take part; None when it can."""
        return None if self.path else f"{self.name} not installed"

    def version(self):
        try:
            words = subprocess.run(
                [self.path, self.version_flag], capture_output=True, text=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        # Envoy's answer begins with the path it was started from, which may hold a version of something else.
        found = re.search(r"\d+\.\d+[\w.]*", (words.stdout + words.stderr).replace(str(self.path), ""))
        return found.group(0) if found else "unknown"

    def start(self, scenario, origin_port, core, directory):
        """Writes the configuration and starts the proxy; a `Server`, not yet ready."""
        port = free_port()
        command = self.command(scenario, port, origin_port, directory)
        return Server(self.name, command, port, core, directory, scenario.tls)

    def command(self, scenario, port, origin_port, directory):
        raise NotImplementedError


class Selvedge(Contestant):
    name = "selvedge"
    version_flag = "--version"

    def __init__(self, path, guest):
        self.path, self.guest = path, guest

    def absent(self, scenario):
        if not self.path.exists():
            return f"{self.path.name} not built (make build)"
        return absent_guest(scenario, self.guest)

    def command(self, scenario, port, origin_port, directory):
        filters = [f"trivial-{i}" for i in range(1, scenario.filters + 1)]
        route = {"name": "all", "to": "origin", "filters": filters}
        config = {
            "version": 1,
            "node": {"name": "bench", "workers": 1, "shutdown_grace": "1s", "module_cache": "off"},
            "telemetry": {"access_log": {"output": "off"}},
            "listeners": {"web": {"bind": f"127.0.0.1:{port}", "protocols": ["h1"]}},
            "upstreams": {"origin": {"endpoints": [f"127.0.0.1:{origin_port}"]}},
            "filters": {name: self.filter() for name in filters},
            "sites": [{"hosts": ["*"], "routes": [route]}],
        }
        if scenario.tls:
            key, certificate = identity(directory)
            config["listeners"]["web"]["tls"] = {"certificates": [{"cert": str(certificate), "key": str(key)}]}
        if scenario.http2:
            config["listeners"]["web"]["protocols"].append("h2")
        if scenario.cached:
            config["cache"] = {"memory": {"size": f"{CACHE_MIB}MiB"}}
            route["cache"] = {"ttl": f"{LIFETIME}s"}
        file = directory / "selvedge.yaml"
        file.write_text(json.dumps(config, indent=2))  # JSON is YAML
        return [self.path, "run", "--config", file]

    def filter(self):
        """A filter as it is declared."""
        return {"wasm": f"file:{self.guest}"}


class Nginx(Contestant):
    name = program = "nginx"

    def command(self, scenario, port, origin_port, directory):
        cache, use_cache = "", ""
        if scenario.cached:
            cache = f"proxy_cache_path {directory}/nginx-cache keys_zone=bench:1m max_size={CACHE_MIB}m;"
            cache += "open_file_cache max=100;"
            use_cache = "proxy_cache bench;"
        use_tls = ""
        if scenario.tls:
            key, certificate = identity(directory)
            use_tls = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
        http = f"""
            {cache}
            upstream origin {{ server 127.0.0.1:{origin_port}; keepalive 64; keepalive_requests {ENDLESS}; }}
            server {{
                listen 127.0.0.1:{port}{" ssl" if scenario.tls else ""}{" http2" if scenario.http2 else ""};
                {use_tls}
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                location / {{ proxy_pass http://origin; {use_cache} }}
            }}"""
        return nginx_command(self.path, "nginx", http, directory)


class Haproxy(Contestant):
    name = program = "haproxy"

    def command(self, scenario, port, origin_port, directory):
        use_tls = ""
        if scenario.tls:
            key, certificate = identity(directory)
            both = directory / "haproxy.pem"
            both.write_text(certificate.read_text() + key.read_text())
            use_tls = f"ssl crt {both} alpn {'h2,' if scenario.http2 else ''}http/1.1"
        file = directory / "haproxy.cfg"
        file.write_text(f"""\
global
    nbthread 1
    maxconn 1024
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend web
    bind 127.0.0.1:{port} {use_tls}
    default_backend origin
backend origin
    server origin 127.0.0.1:{origin_port}
""")
        return [self.path, "-db", "-f", file]


class Varnish(Contestant):
    name = "varnish"
    program = "varnishd"
    version_flag = "-V"

    def command(self, scenario, port, origin_port, directory):
        file = directory / "varnish.vcl"
        file.write_text(f'vcl 4.1;\nbackend origin {{ .host = "127.0.0.1"; .port = "{origin_port}"; }}\n')
        return [
            self.path,
            "-F",
            "-j",
            "none",
            "-T",
            "none",
            "-n",
            directory / "varnish",
            "-a",
            f"127.0.0.1:{port}",
            "-f",
            file,
            "-s",
            f"malloc,{CACHE_MIB}m",
            "-p",
            "thread_pools=1",
        ]


class Envoy(Contestant):
    name = program = "envoy"
    version_flag = "--version"

    def __init__(self, guest):
        self.guest = guest
        # The PyPI package holds the program itself; its start script would only add a Python process.
        packaged = sorted(PROJECT.glob(".venv/lib/python*/site-packages/envoy/_bin/envoy"))
        self.path = str(packaged[0]) if packaged else find_program("envoy")

    def absent(self, scenario):
        return super().absent(scenario) or absent_guest(scenario, self.guest)

    def command(self, scenario, port, origin_port, directory):
        def typed(name, type_name, **fields):
            return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{type_name}", **fields}}

        http = "envoy.extensions.filters.http"
        filters = [
            typed(
                f"trivial-{i}",
                f"{http}.wasm.v3.Wasm",
                config={
                    "name": f"trivial-{i}",
                    "vm_config": {
                        "runtime": "envoy.wasm.runtime.v8",
                        "code": {"local": {"filename": str(self.guest)}},
                    },
                },
            )
            for i in range(1, scenario.filters + 1)
        ]
        router = typed(
            "envoy.filters.http.router", f"{http}.router.v3.Router", suppress_envoy_headers=True, dynamic_stats=False
        )
        everything = {"match": {"prefix": "/"}, "route": {"cluster": "origin", "timeout": "10s"}}
        connections = typed(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="web",
            generate_request_id=False,
            route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [everything]}]},
            http_filters=[*filters, router],
        )

        chain = {"filters": [connections]}
        if scenario.tls:
            key, certificate = identity(directory)
            shown = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
            protocols = ["h2", "http/1.1"] if scenario.http2 else ["http/1.1"]
            chain["transport_socket"] = typed(
                "envoy.transport_sockets.tls",
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                common_tls_context={"tls_certificates": [shown], "alpn_protocols": protocols},
            )

        def address(number):
            return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

        endpoint = {"endpoint": {"address": address(origin_port)}}
        config = {
            "static_resources": {
                "listeners": [{"name": "web", "address": address(port), "filter_chains": [chain]}],
                "clusters": [
                    {
                        "name": "origin",
                        "type": "STATIC",
                        "connect_timeout": "5s",
                        "load_assignment": {"cluster_name": "origin", "endpoints": [{"lb_endpoints": [endpoint]}]},
                    }
                ],
            }
        }
        file = directory / "envoy.yaml"
        file.write_text(json.dumps(config, indent=2))
        return [self.path, "--concurrency", 1, "--disable-hot-restart", "--log-level", "error", "-c", file]


def identity(directory):
    """A key and a certificate for it, the same for everyone in this directory."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    if not certificate.exists():
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=bench"]
        names = ["-addext", "subjectAltName=IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", *curve, *names, "-keyout", key, "-out", certificate]
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    return key, certificate


def absent_guest(scenario, guest):
    return f"{guest.name} not built" if scenario.filters and not guest.exists() else None


def nginx_command(program, name, http, directory):
    """nginx with one worker that writes nowhere but into `directory`."""
    user = (
        "user root;" if os.geteuid() == 0 else ""
    )  # the private directory is closed to the user nginx would change to
    scratch = "".join(
        f"{kind}_temp_path {directory}/{name}-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = directory / f"{name}.conf"
    file.write_text(f"""\
{user} worker_processes 1; daemon off; pid {directory}/{name}.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests {ENDLESS}; default_type text/plain; {scratch}
    {http}
}}
""")
    return [program, "-e", "stderr", "-p", directory, "-c", file]


def answer(path, body, directory):
    """How nginx answers this path: from its configuration, which takes words of 4 KiB, or from a file."""
    if len(body) <= 4000:
        return f'location = {path} {{ return 200 "{body.decode()}"; }}'
    file = directory / f"body-{path[1:]}"
    file.write_bytes(body)
    return f"location = {path} {{ alias {file}; }}"


def start_origin(program, core, directory):
    """The origin all contestants are in front of; an `Origin`, not yet ready."""
    port = free_port()
    answers = "".join(answer(path, body, directory) for path, body in BODIES.items())
    http = f"""
        server {{
            listen 127.0.0.1:{port};
            add_header Cache-Control "max-age={LIFETIME}";
            {answers}
            location = {Origin.COUNT} {{ stub_status; }}
        }}"""
    return Origin("origin", nginx_command(program, "origin", http, directory), port, core, directory)
