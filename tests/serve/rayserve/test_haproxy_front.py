"""Where HAProxy listens, with what certificate, for how many connections of an address, and what it logs."""

import contextlib
import os
import resource
import shutil
import socket
import ssl
import subprocess

import httpx
import pytest

from fewshard_serve.config import FewshardConfig, ServerConfig
from fewshard_serve.errors import StartError
from fewshard_serve.rayserve import haproxy_keeper
from fewshard_serve.rayserve.deployment_plan import check_front, front_settings
from fewshard_serve.rayserve.environment import free_ports, has_haproxy
from fewshard_serve.rayserve.haproxy import write_settings, write_wrapper
from fewshard_serve.rayserve.haproxy_rules import FrontSettings, edits
from fewshard_serve.tls import why_unusable

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")

LIMIT = 40


def listening(pids):
    """The addresses on which these processes listen for TCP, and the number of their UDP sockets."""
    inodes = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))

    def rows(kind):
        with open(f"/proc/net/{kind}") as file:
            fields = [line.split() for line in file.readlines()[1:]]
        return [row for row in fields if f"socket:[{row[9]}]" in inodes]

    tcp = [row[1] for row in rows("tcp") + rows("tcp6") if row[3] == "0A"]
    return {address.rpartition(":")[0] for address in tcp}, len(rows("udp") + rows("udp6"))


LOOPBACK, EVERY = "0100007F", "00000000"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    paths = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]]
    subprocess.run([*command, *more], check=True, capture_output=True)
    return paths


@pytest.fixture(scope="module")
def front(tmp_path_factory, front_type, certificate):
    """Serve's configuration says 127.0.0.1 and one port, ours every address, another port, and TLS."""
    (port,) = free_ports(1)
    one = front_type(
        tmp_path_factory.mktemp("front"),
        address=f"0.0.0.0:{port}",
        tls={"certificate": certificate[0], "key": certificate[1]},
        per_address=LIMIT,
        listens_at=port,
    )
    yield one
    one.close()


def test_it_alone_listens_on_every_address_and_sends_no_datagrams(front):
    addresses, num_udp = listening(front.haproxies)
    assert addresses == {LOOPBACK, EVERY}  # the loopback's are statistics and metrics
    assert num_udp == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", front.port)) != 0  # Serve's own port


def test_it_speaks_https_with_the_certificate(front, certificate):
    url = f"https://127.0.0.1:{front.listens_at}/m/x"
    trusting = ssl.create_default_context(cafile=certificate[0])
    assert httpx.post(url, content=b"{}", verify=trusting).text == "ok"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.post(url, content=b"{}")
    with pytest.raises(httpx.TransportError):
        httpx.post(url.replace("https", "http"), content=b"{}")


def test_its_key_is_for_this_user_alone(front):
    assert (front.folder / "server.pem").stat().st_mode & 0o777 == 0o600


def test_one_address_has_so_many_connections_and_others_get_in(front, certificate):
    trusting = ssl.create_default_context(cafile=certificate[0])
    with contextlib.ExitStack() as stack:
        for _ in range(2 * LIMIT):
            with contextlib.suppress(ConnectionResetError):  # one that is refused
                stack.enter_context(socket.create_connection(("127.0.0.1", front.listens_at), timeout=10))
        for at, gets_in in ((1, False), (2, True)):
            transport = httpx.HTTPTransport(local_address=f"127.0.0.{at}", verify=trusting)
            with httpx.Client(transport=transport, timeout=10) as client:
                how = contextlib.nullcontext() if gets_in else pytest.raises(httpx.TransportError)
                with how:
                    answer = client.post(f"https://127.0.0.1:{front.listens_at}/m/x", content=b"{}")
                    assert answer.text == "ok"


def test_where_a_log_is_asked_for_it_has_no_query_strings(tmp_path, front_type, monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(20)
        monkeypatch.setenv("RAY_SERVE_HAPROXY_LOG_TARGET", f"127.0.0.1:{target.getsockname()[1]}")
        front = front_type(tmp_path)
        try:
            httpx.post(f"http://127.0.0.1:{front.port}/m/x?token=hidden", content=b"{}")
            lines = iter(lambda: target.recv(65536).decode(), "")
            line = next(line for line in lines if "POST" in line)
        finally:
            front.close()
    assert "POST /m/x HTTP/1.1" in line
    assert "hidden" not in line


def edited(text, settings=FrontSettings()):  # noqa: B008  it is frozen
    return haproxy_keeper.Edit(edits("/f", settings), "/f").edited(text)


def test_without_a_log_target_there_is_no_log(monkeypatch):
    text = "global\n    log 127.0.0.1:514 local0 info\ndefaults\n    option httplog\n    log global\n"
    assert "514" not in edited(text)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_LOG_TARGET", "127.0.0.1:514")
    assert "log 127.0.0.1:514 local0 info" in edited(text)


def test_there_is_no_splicing():
    """With it HAProxy does not tell a replica that its client has gone."""
    assert edited("defaults\n    option splice-request\n    option splice-response\n").count("splice") == 0


DEFAULTS = "defaults\n    timeout connect 5s\n    timeout http-keep-alive 90s\n"


def test_what_the_user_has_set_of_serve_stays():
    assert "timeout http-keep-alive 10s" in edited(DEFAULTS)
    own = DEFAULTS.replace("90s", "33s").replace("connect 5s", "connect 2s")
    assert "timeout http-keep-alive 33s" in edited(own)
    assert "timeout connect 2s" in edited(own)


@pytest.mark.parametrize(("files", "maxconn"), [(1024, 412), (20_000, 9900), (2**20, 16_384), (-1, 16_384)])
def test_connections_are_as_many_as_files_allow_and_one_address_has_half_of_them_at_most(
    monkeypatch, files, maxconn
):
    limit = resource.RLIM_INFINITY if files < 0 else files
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    text = edited("global\n    maxconn 4096\nfrontend http_frontend\n", FrontSettings(per_address=4096))
    assert f"    maxconn {maxconn}\n" in text
    assert f"gt {min(4096, maxconn // 2)} " in text


def test_trusted_proxies_have_any_number_of_connections():
    networks = ("10.0.0.0/8", "::1")
    text = edited("frontend http_frontend\n", FrontSettings(per_address=9, trusted_proxies=networks))
    assert "reject if { sc_conn_cur(4) gt 9 } !{ src 10.0.0.0/8 ::1 }" in text
    assert "reject" not in edited("frontend http_frontend\n")


def test_a_script_of_ours_never_calls_itself(tmp_path, monkeypatch):
    script = write_wrapper(str(tmp_path))
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", script)
    write_settings(str(tmp_path), FrontSettings())
    assert script not in (tmp_path / "keeper.json").read_text()


def parsed(**values):
    return FewshardConfig.model_validate(values)


def test_the_settings_are_those_of_the_configuration():
    config = parsed(
        models=[
            {"name": "a", "path": "x", "admission": {"deadline_ms": 2000}},
            {"name": "b", "path": "x"},
        ],
        cascades=[{"name": "both", "stages": ["a", "b"], "accept_above": 0.5}],
        server={"host": "::", "port": 9000, "max_connections_per_address": 7},
        callers={"trusted_proxies": ["10.0.0.0/8"]},
        limits={"max_body_s": 5, "max_retried_bytes": 40_000},
    )
    deadlines_s = (("a", 2.0), ("b", 10.0), ("both", 12.0))
    always = {"per_address": 7, "trusted_proxies": ("10.0.0.0/8",), "retried_bytes": 40_000}
    assert front_settings(config) == FrontSettings(5.0, 25.0, deadlines_s, ":::9000 v4v6", **always)
    assert front_settings(config, is_on_cluster=True) == FrontSettings(5.0, 25.0, **always)
    assert front_settings(parsed(models=[{"name": "a", "path": "x"}]), is_on_cluster=True).per_address == 0


@pytest.mark.parametrize(
    "given", [{"max_connections_per_address": 5}, {"tls": {"certificate": "c", "key": "k"}}]
)
def test_what_needs_our_haproxy_is_refused_without_it(given):
    server = ServerConfig(**given)
    check_front(server, has_own_haproxy=True)
    with pytest.raises(StartError, match=f"server.{next(iter(given))} needs the HAProxy"):
        check_front(server, has_own_haproxy=False)
    check_front(ServerConfig(max_connections_per_address=0), has_own_haproxy=False)
    check_front(ServerConfig(), has_own_haproxy=False)


def test_a_certificate_that_cannot_be_used_is_told(certificate, tmp_path):
    good, key = certificate
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:word", "-in", key, "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(other), "2048"], check=True, capture_output=True)
    assert why_unusable(good, key) == ("", "")
    for pair, wrong, words in (
        ((str(tmp_path / "none"), key), "certificate", "cannot be read (No such file"),
        ((good, str(tmp_path)), "key", "cannot be read (Is a directory)"),
        ((str(empty), key), "certificate", "holds no certificate"),
        ((good, str(empty)), "key", "holds no private key"),
        ((good, str(locked)), "key", "asks for a password"),
        ((good, str(other)), "key", "is not the key of"),
    ):
        found, why = why_unusable(*pair)
        assert (found, words in why) == (wrong, True), why


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_clients_of_http_2_are_answered_without_tls_too(tmp_path, front_type):
    front = front_type(tmp_path)
    try:
        for how in ("--http2-prior-knowledge", "--http2", "--http1.1"):
            command = ["curl", "-sS", how, "-d", "{}", f"http://127.0.0.1:{front.port}/m/x"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout == "ok", how
    finally:
        front.close()


def test_what_reads_the_server_takes_no_buffer_for_another_try(tmp_path, front_type):
    """Thousands of connections that ask for its health at once would hold 256 KiB each for another try."""
    front = front_type(tmp_path, prefix="/", retried_bytes=256 * 1024)

    def memory_after(number):
        (pid,) = front.haproxies
        with contextlib.ExitStack() as stack:
            connections = [
                stack.enter_context(socket.create_connection(("127.0.0.1", front.port), timeout=20))
                for _ in range(number)
            ]
            for each in connections:
                each.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-Hold: 500\r\n\r\n")
            for each in connections:
                assert each.recv(4096).startswith(b"HTTP/1.1 ")
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    try:
        assert -memory_after(1) + memory_after(400) < 400 * 64 * 1024
    finally:
        front.close()
