"""Pages of other sites are refused where no token is asked for, and proxies that are trusted say who asks."""

import asyncio
import socket
from collections.abc import Callable

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError

from fewshard_serve.auth import hash_of
from fewshard_serve.config import FewshardConfig
from fewshard_serve.http.callers import CallersSettings, TrustedProxies, is_loopback
from fewshard_serve.http.cors import CorsSettings
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.rayserve.deployment_plan import door_settings
from local_service import LocalService

Call = Callable[..., httpx.Response]

PATH = "/v2/models/sst2/classify"
LAPTOP = {"Host": "127.0.0.1:8000"}
NETWORK = {"Host": "10.0.0.7:8000"}
EVIL = "http://evil.example"
PAGE = "https://app.example"


def doors(
    cors: tuple[str, ...] = (), is_on_loopback: bool = True, **callers: tuple[str, ...]
) -> AccessMiddleware:
    return AccessMiddleware(
        AccessSettings(
            cors=CorsSettings(cors) if cors else None,
            callers=CallersSettings(**callers),
            guards_pages=True,
            is_on_loopback=is_on_loopback,
        )
    )


@pytest.fixture
def ask(call: Call, text_model):
    """`ask(doors, headers)`: the answer to a prediction request with exactly these headers."""

    def send(
        access: AccessMiddleware, headers: dict[str, str], method: str = "POST", path: str = PATH
    ) -> httpx.Response:
        app = HostApp(LocalService({"sst2": text_model}), doors=access)
        body = {"content": b'{"inputs": "a"}'} if method == "POST" else {}
        return call(app, method, path, headers=headers, **body)

    return send


REFUSED = {
    "a page of another site": LAPTOP | {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
    "an older browser's, which sends the origin alone": LAPTOP | {"Origin": EVIL},
    "another port of this machine": LAPTOP
    | {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
    "a page that hides its origin": LAPTOP | {"Origin": "null"},
    "an image or a form in it": LAPTOP | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    "a form that is submitted": LAPTOP
    | {"Origin": EVIL, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "a name made to resolve to this machine": {
        "Host": "evil.example:8000",
        "Origin": "http://evil.example:8000",
    },
    "the same without an origin": {"Host": "evil.example"},
    "a name that only ends alike": {"Host": "127.0.0.1.evil.example"},
    "a name of one's own behind it": {"Host": "localhost.evil.example"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_page_of_another_site_is_refused(ask, text_model, name: str) -> None:
    answer = ask(doors(), REFUSED[name])
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    is_by_name = "evil.example" in REFUSED[name]["Host"]
    assert ("callers.hosts" if is_by_name else "cors.origins") in answer.json()["error"]
    assert "auth.tokens_file" in answer.json()["error"]
    assert text_model.calls == []


ANSWERED = {
    "a client that is no browser": LAPTOP,
    "a client of HTTP 1.0": {"Host": ""},
    "the console": LAPTOP | {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
    "the console of an older browser": LAPTOP | {"Origin": "http://127.0.0.1:8000"},
    "the console by name": {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
    "the console behind a proxy with another Host": LAPTOP
    | {"Origin": PAGE, "Sec-Fetch-Site": "same-origin"},
    "an address that is typed": LAPTOP | {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    "a name below localhost": {"Host": "fewshard.localhost:8000"},
    "an IPv6 address": {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
    "this machine's own name": {"Host": f"{socket.gethostname()}:8000"},
}


@pytest.mark.parametrize("name", ANSWERED)
def test_everybody_else_is_answered(ask, name: str) -> None:
    assert ask(doors(), ANSWERED[name]).status_code == 200


def test_a_link_on_another_page_may_read_and_not_write(ask) -> None:
    link = LAPTOP | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(doors(), link, "GET", "/v2/models/sst2").status_code == 200
    assert ask(doors(), link).status_code == 403


def test_health_and_pages_are_open_under_every_name(call: Call, gateway: GatewayApp) -> None:
    guarded = GatewayApp(gateway._service, doors=doors())
    for path in ("/v2/health/live", "/", "/console/app.js", "/docs", "/openapi.json"):
        assert call(guarded, "GET", path, headers={"Host": "evil.example"}).status_code == 200
    for path in ("/metrics", "/v1/models"):
        assert call(guarded, "GET", path, headers={"Host": "evil.example"}).status_code == 403
    assert call(guarded, "GET", "/", headers={"Host": "x", "Accept": "application/json"}).status_code == 403


def test_pages_that_cors_names_may_call(ask) -> None:
    page = LAPTOP | {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
    assert ask(doors(cors=(PAGE,)), page).headers["access-control-allow-origin"] == PAGE
    assert ask(doors(cors=(PAGE,)), page).status_code == 200
    assert ask(doors(cors=(PAGE,)), {"Host": "models.example", "Origin": PAGE}).status_code == 200
    assert ask(doors(cors=(PAGE,)), page | {"Origin": EVIL}).status_code == 403
    assert ask(doors(cors=("*",)), page | {"Origin": EVIL}).status_code == 200


def test_a_preflight_request_of_another_page_is_refused(ask) -> None:
    asking = LAPTOP | {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    assert ask(doors(), asking, "OPTIONS").status_code == 403
    assert ask(doors(cors=(PAGE,)), asking | {"Origin": PAGE}, "OPTIONS").status_code == 200


def test_names_that_are_configured_are_the_servers_own(ask) -> None:
    named = {"Host": "Models.example:8000", "Origin": "http://models.example:8000"}
    assert ask(doors(), named).status_code == 403
    assert ask(doors(hosts=("models.example",)), named).status_code == 200
    assert ask(doors(hosts=("*",)), named).status_code == 200
    assert ask(doors(hosts=("*",)), named | {"Origin": EVIL}).status_code == 403
    behind_a_proxy = LAPTOP | {"Origin": "https://models.example"}
    assert ask(doors(hosts=("models.example",)), behind_a_proxy).status_code == 200


def test_in_a_network_only_browsers_must_use_a_known_name(ask) -> None:
    """Clients there know the server by many names, such as those of Kubernetes' services."""
    service = {"Host": "fewshard.ns.svc:8000"}
    access = doors(is_on_loopback=False)
    assert ask(access, service).status_code == 200
    reading = service | {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"}
    assert ask(access, reading, "GET", "/v2/models/sst2").status_code == 403
    assert ask(access, reading | NETWORK, "GET", "/v2/models/sst2").status_code == 200
    assert ask(access, service | {"Origin": "http://fewshard.ns.svc:8000"}).status_code == 403
    assert ask(access, NETWORK | {"Origin": "http://10.0.0.7:8000"}).status_code == 200
    assert ask(access, NETWORK | {"Origin": EVIL}).status_code == 403


def configured(**sections) -> AccessSettings:
    models = [{"name": "m", "path": "x"}]
    return door_settings(FewshardConfig.model_validate({"models": models, **sections}))


def test_a_server_with_tokens_checks_names_only_if_some_are_given(ask, tmp_path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text(f"tokens:\n  - {{name: a, sha256: {hash_of('secret').hex()}, scopes: [predict]}}\n")
    auth = {"auth": {"tokens_file": str(file)}}
    page = LAPTOP | {"Origin": EVIL, "Authorization": "Bearer secret"}
    assert ask(AccessMiddleware(configured(**auth)), page).status_code == 200
    assert (
        ask(AccessMiddleware(configured(**auth, callers={"hosts": ["a.example"]})), page).status_code == 403
    )


def test_the_default_server_guards_and_knows_the_name_it_listens_under(ask) -> None:
    assert ask(AccessMiddleware(configured()), REFUSED["the same without an origin"]).status_code == 403
    assert (
        ask(AccessMiddleware(configured(server={"host": "box.lan"})), {"Host": "box.lan"}).status_code == 200
    )
    assert (configured().is_on_loopback, configured(server={"host": "0.0.0.0"}).is_on_loopback) == (
        True,
        False,
    )


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [("127.0.0.1 127.0.0.2 ::1 localhost", True), ("0.0.0.0 :: 10.0.0.1 box.lan", False)],
)
def test_loopback(hosts: str, expected: bool) -> None:
    assert {is_loopback(host) for host in hosts.split()} == {expected}


PROXIES = ("10.0.0.0/8", "fd00::/8", "192.0.2.1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller"),
    [
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),  # what the caller itself wrote comes first
        ("10.0.0.1", ["203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9", "10.1.2.3,192.0.2.1"], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", ["10.0.0.9"], "10.0.0.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, <script>, 10.1.2.3"], "10.1.2.3"),
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),  # not one of ours
        ("", ["203.0.113.9"], ""),
    ],
)
def test_the_last_hop_that_is_no_trusted_proxy_is_the_caller(
    peer: str, forwarded: list[str], caller: str
) -> None:
    assert TrustedProxies(PROXIES).caller_behind(peer, forwarded) == caller


def test_no_proxy_is_trusted_unless_configured() -> None:
    assert TrustedProxies(()).caller_behind("10.0.0.1", ["203.0.113.9"]) == "10.0.0.1"


@pytest.mark.parametrize(
    ("is_behind_haproxy", "lines", "caller"),
    [
        (True, ["6.6.6.6", "203.0.113.9", "10.0.0.1"], "203.0.113.9"),  # HAProxy writes the last line itself
        (True, ["203.0.113.9"], "203.0.113.9"),
        (True, ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        (False, ["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
    ],
)
def test_callers_and_log_lines_have_that_address(
    text_model, is_behind_haproxy: bool, lines, caller: str
) -> None:
    seen = []
    access = AccessMiddleware(
        AccessSettings(callers=CallersSettings(trusted_proxies=PROXIES), is_behind_haproxy=is_behind_haproxy)
    )
    access.note = lambda request, _: seen.append(request.caller.name)  # type: ignore[method-assign]
    app = HostApp(LocalService({"sst2": text_model}), doors=access)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v2/models/sst2",
        "query_string": b"",
        "client": ("10.0.0.1", 4321),
        "headers": [(b"x-forwarded-for", line.encode()) for line in lines],
    }

    async def nothing(*_):
        return {"type": "http.request"}

    asyncio.run(app(scope, nothing, nothing))
    assert seen == [caller]


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": ["https://models.example"]},
        {"hosts": ["models.example:8000"]},
        {"hosts": ["*.example"]},
        {"trusted_proxies": ["10.0.0.1/8"]},
        {"trusted_proxies": ["everybody"]},
        {"trusted_proxies": ["0.0.0.0/0"]},
        {"trusted_proxys": []},
    ],
)
def test_what_is_no_name_and_no_network_is_refused_in_the_configuration(wrong) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(CallersSettings).validate_python(wrong)
