"""Between Envoy and the server: a unix socket, and mutual TLS with certificates that are renewed while both run."""

import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.config.load import load_config
from extproc.demo.processes import end, spawn
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.envoy.bootstrap import render_envoy
from extproc.envoy.tls import ClientTls, write_secrets
from tests.e2e.traffic import EXTRACT, EXTRACTED, INTENTS, ask, eventually


class Authority:
    """Signs certificates into a folder, with the openssl command."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.name = folder, name
        self.certificate, self._key = folder / f"{name}.crt", folder / f"{name}-ca.key"
        self._openssl("req", "-x509", *_new_key(self._key), "-subj", f"/CN={name}", "-out", self.certificate)

    def sign(self, name: str, dns: str) -> tuple[Path, Path]:
        """Return (certificate, key). Each file is replaced in one step, the key before the certificate."""
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        new, new_key, request = (self.folder / f".{name}{end}" for end in (".crt", ".key", ".csr"))
        self._openssl(
            "req",
            *_new_key(new_key),
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName=DNS:{dns}",
            "-out",
            request,
        )
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-copy_extensions", "copy", "-out", new,
        )  # fmt: skip
        new_key.rename(key)
        new.rename(certificate)
        return certificate, key

    @staticmethod
    def _openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=30)


def _new_key(path: Path) -> list[object]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]


class Listening(Stack):
    """A stack whose router listens on a given address, which Envoy knows."""

    def launch_router(self, listen: str, *options: object) -> None:
        command = [sys.executable, "-m", "extproc", "serve", "--intents", str(self.intents), "--listen", listen]
        self.router = spawn([*command, *map(str, options)], self.folder / "router.log")

    def launch_envoy(self, listen: str, tls: ClientTls | None = None) -> None:
        """Start Envoy, and wait until it finds the router healthy."""
        rendered = render_envoy(
            load_config(self.intents),
            f"127.0.0.1:{self.port}",
            [listen],
            f"127.0.0.1:{self.admin_port}",
            None,
            tls=tls,
        )
        self.start_envoy(yaml.load(rendered, yaml.CSafeLoader))


class Secured(msgspec.Struct, frozen=True):
    """A stack with mutual TLS between its Envoy and its router, and the files of both."""

    stack: Listening
    authority: Authority
    server: tuple[Path, Path]
    envoy: tuple[Path, Path]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.stack.router_port}"

    def launch_router(self) -> None:
        certificate, key = self.server
        options = ["--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", self.authority.certificate]
        self.stack.launch_router(self.address, *options)


@contextlib.contextmanager
def _stack(intents: Path, folder: Path) -> Iterator[Listening]:
    models = {tier.name: tier.model for tier in load_config(intents).policy.tiers}
    with SampleUpstreams(models) as upstreams:
        stack = Listening(intents, folder, upstreams)
        try:
            yield stack
        finally:
            stack.stop()


@pytest.fixture(scope="module")
def secured(small_intents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "pki", "authority")
    server, envoy = authority.sign("server", "extproc"), authority.sign("envoy", "envoy")
    tls = ClientTls(str(envoy[0]), str(envoy[1]), str(authority.certificate), str(folder / "sds"))
    with _stack(small_intents, folder) as stack:
        secured = Secured(stack, authority, server, envoy)
        write_secrets(tls, [secured.address])
        secured.launch_router()
        stack.launch_envoy(secured.address, tls)
        yield secured


def test_envoy_asks_over_a_unix_socket(small_intents: Path, tmp_path: Path) -> None:
    """A server without a TCP port routes a prompt."""
    listen = f"unix://{tmp_path}/router.sock"
    with _stack(small_intents, tmp_path) as stack:
        stack.launch_router(listen)
        stack.launch_envoy(listen)
        eventually(lambda: ask(stack.port, EXTRACT).said == EXTRACTED, "the prompt is routed")
        assert f"serving on {listen}" in stack.log("router.log")


def test_envoy_asks_over_mutual_tls(secured: Secured) -> None:
    """A server without an unencrypted port routes a prompt."""
    eventually(lambda: ask(secured.stack.port, EXTRACT).said == EXTRACTED, "the prompt is routed")
    with grpc.insecure_channel(secured.address) as channel:
        assert _health(channel) == grpc.StatusCode.UNAVAILABLE


def test_only_the_authority_s_own_may_ask(secured: Secured, tmp_path: Path) -> None:
    """A client without a certificate, or with one of another authority, gets no answer."""
    stranger = Authority(tmp_path / "elsewhere", "stranger").sign("envoy", "envoy")
    asked = {"nobody": (None, None), "a stranger": stranger, "one of its own": secured.envoy}
    found = {}
    for name, (certificate, key) in asked.items():
        credentials = grpc.ssl_channel_credentials(
            secured.authority.certificate.read_bytes(),
            key.read_bytes() if key is not None else None,
            certificate.read_bytes() if certificate is not None else None,
        )
        options = [("grpc.ssl_target_name_override", "extproc")]
        with grpc.secure_channel(secured.address, credentials, options) as channel:
            found[name] = _health(channel)
    refused = grpc.StatusCode.UNAVAILABLE
    assert found == {"nobody": refused, "a stranger": refused, "one of its own": grpc.StatusCode.OK}


def test_health_and_status_reach_a_router_with_mutual_tls(secured: Secured) -> None:
    """With the files of a client. Without them, or with the wrong name, the error says what to give."""
    files = dict(zip(("cert", "key"), map(str, secured.envoy), strict=True)) | {
        "ca": str(secured.authority.certificate)
    }
    options = [word for name, file in files.items() for word in (f"--tls-{name}", file)]
    serving = _extproc("health", secured.address, *options)
    assert (serving.returncode, serving.stdout) == (0, f"{secured.address}: serving\n"), serving.stderr
    status = _extproc("status", secured.address, *options)
    assert status.returncode == 0 and f"{secured.address} serves revision" in status.stdout, status.stderr
    assert _extproc("status", secured.address, *options, "--tls-name", "extproc").returncode == 0
    wrong = _extproc("status", secured.address, *options, "--tls-name", "elsewhere")
    assert wrong.returncode != 0 and "the DNS name in that certificate in --tls-name" in wrong.stderr
    plain = _extproc("status", secured.address)
    assert plain.returncode != 0 and "--tls-cert, --tls-key and --tls-ca if that has --tls-cert" in plain.stderr
    half = _extproc("status", secured.address, *options[:2])
    assert half.returncode != 0 and "give all of --tls-cert, --tls-key, --tls-ca, or none" in half.stderr
    missing = _extproc("status", secured.address, "--tls-ca", "/no/ca.crt", *options[:4])
    assert missing.returncode != 0 and "/no/ca.crt" in missing.stderr


def _extproc(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "extproc", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_server_takes_over_a_renewed_certificate(secured: Secured) -> None:
    """The next connection gets the new certificate. A certificate without its key changes nothing."""
    assert _shown(secured) == secured.server[0].read_text()
    former = secured.server[0].read_text()
    secured.server[0].write_text(secured.envoy[0].read_text())
    assert _shown(secured) == former
    eventually(lambda: "keeping the previous certificates" in secured.stack.log("router.log"), "the log says so")
    secured.authority.sign("server", "extproc")
    renewed = secured.server[0].read_text()
    assert renewed != former
    assert _shown(secured) == renewed


def test_envoy_takes_over_renewed_certificates(secured: Secured) -> None:
    """A new authority signs both sides. The router restarts, and the same Envoy connects to it."""
    stack = secured.stack
    assert stack.router is not None
    renewals = "cluster.extproc.client_ssl_socket_factory.ssl_context_update_by_sds"
    before = stack.stats(renewals)[renewals]
    end(stack.router)
    anew = Authority(secured.authority.folder, "authority")
    anew.sign("server", "extproc"), anew.sign("envoy", "envoy")
    eventually(lambda: stack.stats(renewals)[renewals] > before, "Envoy has read them")
    secured.launch_router()
    eventually(lambda: ask(stack.port, EXTRACT).said == EXTRACTED, "Envoy gets through")


def test_the_command_writes_what_envoy_reads(tmp_path: Path) -> None:
    """It writes one secret into each of two files. The server's certificate must have the name of its address."""
    options = {"cert": "/pki/tls.crt", "key": "/pki/tls.key", "ca": "/pki/ca.crt", "sds": tmp_path / "sds"}
    given = [str(word) for name, value in options.items() for word in (f"--extproc-tls-{name}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "extproc", "envoy", "--intents", str(INTENTS), "--extproc", "router:50051", *given],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    clusters = yaml.load(done.stdout, yaml.CSafeLoader)["static_resources"]["clusters"]
    socket_of = {cluster["name"]: cluster.get("transport_socket", {}).get("typed_config") for cluster in clusters}
    common = socket_of["extproc"]["common_tls_context"]
    sources = [*common["tls_certificate_sds_secret_configs"], common["validation_context_sds_secret_config"]]
    (certificate,), (authority,) = (
        yaml.safe_load(Path(source["sds_config"]["path_config_source"]["path"]).read_text())["resources"]
        for source in sources
    )
    assert [certificate["name"], authority["name"]] == [source["name"] for source in sources]
    assert certificate["tls_certificate"]["private_key"] == {"filename": "/pki/tls.key"}
    assert authority["validation_context"]["match_typed_subject_alt_names"] == [
        {"san_type": "DNS", "matcher": {"exact": "router"}}
    ]


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("serve", ["--tls-cert", "a.crt"], "give all of --tls-cert, --tls-key, --tls-client-ca, or none"),
        ("serve", ["--listen", "unix://router.sock"], "give a whole path, as in unix:///run/extproc.sock"),
        ("envoy", ["--extproc-tls-key", "a.key"], "give all of --extproc-tls-cert, "),
    ],
)
def test_options_that_make_no_sense_are_named(command: str, options: list[str], said: str) -> None:
    """The exit code is 2, and one line names the remedy."""
    done = subprocess.run(
        [sys.executable, "-m", "extproc", command, "--intents", str(INTENTS), *options],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr


def _health(channel: grpc.Channel) -> grpc.StatusCode:
    """Return the result of a health check over this channel."""
    try:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.RpcError as error:
        return error.code()  # type: ignore[no-any-return]
    return grpc.StatusCode.OK


def _shown(secured: Secured) -> str:
    """Return the certificate, as PEM, that the server presents on a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(secured.authority.certificate)
    context.load_cert_chain(*secured.envoy)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", secured.stack.router_port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname="extproc") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown)
