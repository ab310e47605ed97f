"""Connections of an HTTP source: kept, bounded, timed out, through proxies and TLS."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_sources import DATA, Sleeps, read, redirect, source
from range_server import (
    Answer,
    RangeServer,
    hang_up,
    range_server,
    unused_port,
)
from tiny_bundles import weights

from tersor.bundle.errors import (
    BundleReadError,
)
from tersor.bundle.reader import BundleReader
from tersor.bundle.sources.http import HttpSource
from tersor.bundle.sources.http_settings import HttpSettings


def test_connections_are_kept_and_closed(server: RangeServer) -> None:
    with BundleReader.open(server.url("/x.tersor"), threads=2) as reader:
        plane = reader.manifest.tensor("split").planes[0]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: reader.read_plane(plane), range(9)))
        assert len(server.requests) > 9
        assert server.connections <= 3  # two threads' and the opener's


def test_no_more_connections_than_allowed(server: RangeServer) -> None:
    opened = source(server, max_connections=2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: read(opened, 5000 + n, 100_000), range(24)))
    assert server.connections <= 2
    opened.close()


def test_nobody_listens() -> None:
    sleeps = Sleeps()
    url = f"http://127.0.0.1:{unused_port()}/x.tersor"
    with pytest.raises(
        BundleReadError,
        match=rf"^{url}: cannot read at offset 0: connection refused; gave up after 6 requests$",
    ):
        HttpSource(url, sleep=sleeps)
    assert sleeps.total > 3


def test_a_host_that_does_not_exist_is_not_asked_again() -> None:
    sleeps = Sleeps()
    with pytest.raises(BundleReadError, match=r"there is no host of this name|cannot be resolved"):
        HttpSource("http://nobody.invalid/x.tersor", sleep=sleeps)


def test_a_server_that_says_nothing_is_given_up(server: RangeServer) -> None:
    release = threading.Event()

    def wait(answer: Answer) -> None:
        release.wait(10)
        hang_up(answer)

    server.every = wait
    with pytest.raises(BundleReadError, match="no answer in time; gave up after 2 requests"):
        source(server, idle_seconds=0.1, max_attempts=2)
    release.set()


def test_a_body_that_stops_is_resumed(server: RangeServer) -> None:
    opened = source(server, idle_seconds=0.1)
    release = threading.Event()

    def stall(answer: Answer) -> None:
        answer.before_body = lambda: release.wait(10)

    server.faults.append(stall)
    assert np.array_equal(read(opened, 9000, 9), DATA[9000:9009])
    release.set()
    opened.close()


def test_no_environment_variable_chooses_a_proxy(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"http://127.0.0.1:{unused_port()}"
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nobody)
    source(server).close()


def test_a_proxy_is_used_where_one_is_given(server: RangeServer) -> None:
    proxy = server.address.replace("http://", "http://someone:pass%20word@")
    opened = HttpSource("http://store.invalid/data", HttpSettings(proxy=proxy))
    assert np.array_equal(read(opened, 9000, 9), DATA[9000:9009])
    assert server.requests[0].headers["Host"] == "store.invalid"
    assert server.requests[0].headers["Proxy-Authorization"].startswith("Basic ")
    assert "pass" not in repr(HttpSettings(proxy=proxy))
    opened.close()
    sleeps = Sleeps()
    with pytest.raises(BundleReadError, match="the proxy: connection refused; gave up after 6"):
        HttpSource(
            server.url("/data"),
            HttpSettings(proxy=f"http://127.0.0.1:{unused_port()}"),
            sleep=sleeps,
        )
    for wrong in ("socks5://host", "localhost:3128", ""):
        with pytest.raises(BundleReadError, match="the proxy is not a URL such as"):
            HttpSource(server.url("/data"), HttpSettings(proxy=wrong))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_attempts", 0, "at least 1"),
        ("max_redirects", -1, "at least 0"),
        ("max_connections", 0, "at least 1"),
        ("idle_seconds", 0.0, "above 0"),
        ("connect_seconds", float("nan"), "above 0"),
        ("min_bytes_per_second", 0, "above 0"),
        ("backoff_seconds", -1.0, "0 or more"),
        ("max_backoff_seconds", float("inf"), "0 or more"),
    ],
)
def test_settings_out_of_range(name: str, value: float, expected: str) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{name} is .*{expected}"):
        HttpSettings(**settings)


def test_a_closed_source_leaves_no_connection_and_no_thread(server: RangeServer) -> None:
    before = threading.active_count()
    reader = BundleReader.open(server.url("/x.tersor"))
    encoded = reader.fetch_plane(reader.manifest.tensor("split").planes[0])
    reader.close()
    with pytest.raises(BundleReadError, match="is closed; open the bundle again"):
        reader.read_asset("text")
    assert np.array_equal(encoded.decode(), weights((6000, 800)))
    for _ in range(1000):  # the server's threads end when they see that the connections did
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() <= before


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", "key.pem", "-out", "cert.pem",
        ],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    whole = folder / "both.pem"
    whole.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return whole


def test_https_with_certificates_that_are_trusted(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    data = {"/data": DATA.tobytes()}
    with range_server(data, tls=context) as server, range_server(data) as plain:
        trusted: dict[str, Any] = {"ca_file": certificate.parent / "cert.pem"}
        opened = source(server, **trusted)
        assert np.array_equal(read(opened, 9000, 100_000), DATA[9000:109_000])
        assert server.connections == 1
        redirect(server, plain.url("/data?sig=secret"))
        with pytest.raises(BundleReadError, match=r"redirects from https to http://.*/data; that"):
            read(opened, 9000, 9)
        assert plain.requests == []
        opened.close()
        redirect(plain, server.url("/data"))  # the other way is fine
        source(plain, **trusted).close()
        with pytest.raises(BundleReadError, match=r"certificate is not trusted: self.signed"):
            source(server)
        with pytest.raises(BundleReadError, match="cannot read the certificates in"):
            source(server, ca_file=certificate.parent / "none.pem")
