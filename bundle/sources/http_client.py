"""GET requests for one URL: connections, redirects, and errors in words that show no secret."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from tersor.bundle.errors import BundleError, BundleReadError
from tersor.bundle.location import BundleUrl
from tersor.bundle.sources.http_failures import connection_failure
from tersor.bundle.sources.http_settings import HttpSettings

Response = urllib3.BaseHTTPResponse

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Statuses by which an address that was presigned by a redirect says that its time is over.
_EXPIRED: Final = frozenset({400, 401, 403, 404, 410})
# urllib3 warns of malformed headers with the whole URL, and tells every request at DEBUG.
_LOGGERS: Final = ("urllib3.connection", "urllib3.connectionpool")


class HttpClient:
    """Requests for one URL over kept-alive connections. Safe from many threads.

    No environment variable chooses a proxy or credentials.
    """

    def __init__(self, url: BundleUrl, settings: HttpSettings) -> None:
        """Connects to nothing yet.

        Raises:
            BundleReadError: the proxy or the URL is not one, or the certificates cannot be read.
        """
        self._url = url
        self._settings = settings
        self._pool = _new_pool(settings)
        # Where a redirect led last time; asked first, because a redirect costs a round trip.
        self._target = url
        self._secrets = _SecretFilter()
        try:
            self._secrets.hide(url)
        except HTTPError:
            raise BundleReadError("not a URL: it cannot be parsed") from None
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._secrets)

    @contextmanager
    def get(self, headers: Mapping[str, str]) -> Iterator[Response]:
        """Sends a GET and follows redirects.

        The answer is neither checked nor read; what of it is unread at the end of the block closes
        its connection. Errors of the connection inside the block are raised as by the request.

        Raises:
            TransientError: the connection failed or timed out; asking again may help.
            BundleReadError: there is no such host, its certificate is not trusted, or a redirect is
                not followed.
        """
        start = target = self._target
        redirects = 0
        while True:
            with self._request(target, headers) as response:
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location is not None:
                    target = self._redirected(target, location)
                    redirects += 1
                elif response.status in _EXPIRED and start is not self._url:
                    start = target = self._url
                    redirects = 0
                else:
                    self._target = target
                    yield response
                    return
            if redirects > self._settings.max_redirects:
                raise BundleReadError(
                    f"the server redirects more than {self._settings.max_redirects} times"
                )

    def close(self) -> None:
        """Closes the idle connections."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._secrets)
        self._pool.clear()

    @contextmanager
    def _request(self, target: BundleUrl, headers: Mapping[str, str]) -> Iterator[Response]:
        response: Response | None = None
        try:
            response = self._pool.request(
                "GET",
                target.whole,
                headers={"Accept-Encoding": "identity", "User-Agent": "tersor", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            yield response
        except HTTPError as error:
            # Not chained: some of urllib3's errors quote the whole URL.
            raise connection_failure(error) from None
        finally:
            if response is not None:
                # A body that was read to its end has released its connection already, for the next
                # request; any other must not be drained, however long it is.
                response.close()
                response.release_conn()

    def _redirected(self, source: BundleUrl, location: str) -> BundleUrl:
        try:
            target = BundleUrl.parse(urljoin(source.whole, location))
            self._secrets.hide(target)
        except (BundleError, HTTPError, ValueError):  # they may quote the query
            raise BundleReadError(
                "the server redirects to what is not an http or https URL"
            ) from None
        if source.is_encrypted and not target.is_encrypted:
            raise BundleReadError(
                f"the server redirects from https to {target}; that would give up encryption, so "
                "it is not followed"
            )
        return target


def _new_pool(settings: HttpSettings) -> urllib3.PoolManager:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    try:
        if settings.ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(settings.ca_file)
    except OSError as error:
        raise BundleReadError(f"cannot read the certificates in {settings.ca_file}") from error
    options: dict[str, Any] = {  # urllib3 takes them as keywords of any type
        "maxsize": settings.max_connections,
        "block": True,
        "timeout": urllib3.Timeout(connect=settings.connect_seconds, read=settings.idle_seconds),
        "ssl_context": context,
    }
    if settings.proxy is None:
        return urllib3.PoolManager(**options)
    try:
        parts = urllib3.util.parse_url(settings.proxy)
        headers = urllib3.util.make_headers(proxy_basic_auth=parts.auth) if parts.auth else None
        return urllib3.ProxyManager(settings.proxy, proxy_headers=headers, **options)
    except (HTTPError, ValueError):
        raise BundleReadError("the proxy is not a URL such as http://proxy:3128") from None


class _SecretFilter(logging.Filter):
    """Takes the queries of URLs out of what urllib3 logs."""

    def __init__(self) -> None:
        super().__init__()
        self._queries: frozenset[str] = frozenset()

    def hide(self, url: BundleUrl) -> None:
        """Hides the query of `url` from then on, also as urllib3 normalises it.

        Raises:
            HTTPError: urllib3 cannot parse the URL.
        """
        queries = {urlsplit(url.whole).query, urllib3.util.parse_url(url.whole).query}
        self._queries |= {query for query in queries if query}

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        for query in self._queries:
            text = text.replace(query, "...")
        record.msg, record.args = text, None
        return True
