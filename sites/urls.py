"""Addresses as a site reads them: its cache, mounts and allowed kinds; its XRootD time-outs as variables.

Addresses are parsed and put together again, never replaced as text. Nothing is opened, looked up or changed
here, and outputs never come this way: a cache is read-only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from executors.errors import FilesetError, SiteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sites.profile import SiteProfile, XRootD

PLUGIN = "xcache"  # no name in any DNS: coffea-casa's client plug-in puts the real host in its place
CACHE_HOST = "XCACHE_HOST"
STORE = "/store/"
STORE_ABOVE = ("/eos/cms",)  # what a server may have before its /store/
USER_AREAS = ("/eos/user/", "/eos/home-")  # private: no cache may read them
PORT = ":1094"

_KIND = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_XROOTD = re.compile(r"(x?roots?)://([^/?]*)([^?]*)(\?.*)?", re.IGNORECASE | re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)
# Somebody who names a cache means that one, and not another cache in front of it.
_FOREIGN_CACHE = re.compile(r"(?:^|[.-])x-?cache", re.IGNORECASE)


class Address(NamedTuple):
    """An XRootD address in its parts."""

    scheme: str  # root or roots, however it was spelt
    server: str  # [user@]host[:port] as given
    path: str  # with whatever slashes it begins with
    query: str  # with its question mark, or empty

    @classmethod
    def of(cls, url: str) -> Address | None:
        """The parts of an XRootD address; None for everything else."""
        match = _XROOTD.fullmatch(url)
        if match is None:
            return None
        scheme = match[1].lower().removeprefix("x")
        return cls(scheme, match[2], match[3], match[4] or "")

    @property
    def host(self) -> str:
        """The server in its one spelling: no user, no capitals, no usual port."""
        return self.server.rpartition("@")[2].lower().removesuffix(PORT)

    @property
    def name(self) -> str:
        """The path with the one slash in front that it has on the server."""
        return "/" + self.path.lstrip("/")

    @property
    def forwards(self) -> bool:
        """Whether the path is an address again: a cache was told what to fetch."""
        return _KIND.match(self.path.lstrip("/")) is not None


class Rule(NamedTuple):
    """One prefix of the profile and what stands in its place."""

    old: str
    new: str

    def __call__(self, text: str) -> str | None:
        """The text with its prefix exchanged; None where it has another one, or has the new one already."""
        rest = _after(text, self.old)
        if rest is None or (self.new.startswith(self.old) and _after(text, self.new) is not None):
            return None
        return f"{self.new.rstrip('/')}/{rest}" if Address.of(self.new) is None else _joined(self.new, rest)


class Reading:
    """How one site reads addresses, with all that its profile and the environment say worked out once."""

    def __init__(self, site: SiteProfile, env: Mapping[str, str]) -> None:
        self._site, self._env = site, env
        self._allowed = {_plain_kind(kind) for kind in site.urls.schemes}
        rules = [Rule(_one_spelling(old), new) for old, new in site.urls.rewrite.items()]
        self._rules = sorted(rules, key=lambda rule: -len(rule.old))
        self._cache = _cache_server(site.urls.cache, env) if site.urls.cache else None

    def read(self, url: str) -> str:
        """The address under which this site reads a file; FilesetError where it cannot."""
        read, address = url, Address.of(url)
        if address is not None and not address.server:
            raise FilesetError(f"{url}: no server is named: write root://HOST/{address.name}")
        if address is None or not (address.forwards or self._at_cache(address)):
            read = self._rewritten(url)
            address = Address.of(read)
            if address is not None and not address.server:
                raise FilesetError(f"{url}: urls.rewrite makes {read} of it, which names no server")
        if address is not None:
            read = self._cached(read, address)
        self._refuse(read, url)
        return read

    def _at_cache(self, address: Address) -> bool:
        return bool(self._cache) and address.host == Address("root", self._cache or "", "", "").host

    def _rewritten(self, url: str) -> str:
        """The rules, the longest prefix first, until none fits any more: so what was read once stays."""
        given = url
        for _ in range(len(self._rules) + 1):
            changed = self._exchanged(url)
            if changed is None:
                return url
            url = changed
        listed = ", ".join(f"{rule.old} = {rule.new}" for rule in self._rules)
        raise FilesetError(
            f"{given}: the site {self._site.name!r} rewrites it in a circle (urls.rewrite: {listed})"
        )

    def _exchanged(self, url: str) -> str | None:
        text, query = _split(url)
        for rule in self._rules:
            found = rule(text)
            if found is not None:
                # A query is for a server; a file of a mounted file system has none.
                return found + (query if _KIND.match(found) else "")
        return None

    def _cached(self, url: str, address: Address) -> str:
        plain = _one_scheme(url, address)
        at_cache = self._at_cache(address)
        if self._site.urls.cache is None or address.forwards:
            return plain
        if _FOREIGN_CACHE.search(address.host) and not at_cache:
            return plain
        if self._site.urls.cache_form == "prefix":
            if at_cache or address.name.startswith(USER_AREAS):
                return plain
            origin = _joined(f"{address.scheme}://{address.server}", address.name)
            return f"root://{self._server()}//{origin}{address.query}"
        name = _store_name(address.name)
        return plain if name is None else _joined(f"root://{self._server()}", name) + address.query

    def _server(self) -> str:
        if not self._cache:
            raise SiteError(_no_cache(self._site))
        return self._cache

    def _refuse(self, read: str, url: str) -> None:
        kind = _kind(read)
        if kind == "roots":
            raise FilesetError(
                f"{url}: roots:// cannot be read from Python: write root://; "
                "a server that wants TLS asks for it"
            )
        if kind not in self._allowed:
            what = "local files" if kind == "file" else f"{kind}:// addresses"
            raise FilesetError(
                f"{url}{f', which is {read} here' if _kind(url) != kind else ''}: "
                f"{what} cannot be read at the site {self._site.name!r}; there: "
                f"{', '.join(sorted(self._allowed))}"
            )


def as_read(url: str, site: SiteProfile, env: Mapping[str, str]) -> str:
    """The address under which a site reads a file; what it has read once, it reads so for ever."""
    return Reading(site, env).read(url)


def mapping(files: Iterable[tuple[str, str]], site: SiteProfile, env: Mapping[str, str]) -> dict[str, str]:
    """For ``(name, address)`` of each file: name → address as the site reads it, where the two differ."""
    reading = Reading(site, env)
    return {name: read for name, address in files if (read := reading.read(address)) != name}


def is_xrootd(url: str) -> bool:
    """Whether an address is read by the XRootD client."""
    return Address.of(url) is not None


def server_of(url: str) -> str | None:
    """The server that an address names, in one spelling; None for a local file."""
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)", url)
    return match[1].rpartition("@")[2].lower() if match else None


def xrootd_env(xrootd: XRootD, env: Mapping[str, str]) -> dict[str, str]:
    """The XRootD client's time-outs as variables; those that the user has set already win."""
    wanted = {
        "XRD_CONNECTIONWINDOW": xrootd.connection_window,
        "XRD_CONNECTIONRETRY": xrootd.connection_retry,
        "XRD_REQUESTTIMEOUT": xrootd.request_timeout,
        "XRD_STREAMTIMEOUT": xrootd.stream_timeout,
        "XRD_TIMEOUTRESOLUTION": xrootd.timeout_resolution,
        # Else a server that was away for a moment is not asked again by this process for half an hour.
        "XRD_STREAMERRORWINDOW": 0,
    }
    return {name: env.get(name) or str(value) for name, value in wanted.items()}


# -- parts of addresses -----------------------------------------------------------------------------


def _kind(url: str) -> str:
    match = _KIND.match(url)
    return _plain_kind(match[1]) if match else "file"


def _plain_kind(kind: str) -> str:
    kind = kind.lower()
    return kind.removeprefix("x") if kind in ("xroot", "xroots") else kind


def _one_scheme(url: str, address: Address) -> str:
    """The address with the scheme that readers know; they know no ``xroot``."""
    return f"{address.scheme}://{url.partition('://')[2]}"


def _split(url: str) -> tuple[str, str]:
    """An address in the spelling in which prefixes are compared, and its query."""
    address = Address.of(url)
    if address is not None:
        return _spelt(address), address.query
    if _KIND.match(url):
        text, mark, query = url.partition("?")
        return text, mark + query
    return url, ""


def _spelt(address: Address) -> str:
    return f"{address.scheme}://{address.host}/{address.name}"


def _one_spelling(prefix: str) -> str:
    address = Address.of(prefix)
    return prefix if address is None else _spelt(address)


def _after(text: str, prefix: str) -> str | None:
    """What follows a prefix that ends where a name of a folder ends; None where it does not."""
    if not prefix or not text.startswith(prefix):
        return None
    rest = text[len(prefix) :]
    return rest.lstrip("/") if prefix.endswith("/") or rest.startswith("/") or not rest else None


def _joined(above: str, rest: str) -> str:
    """A server, or a folder on it, and what lies below: two slashes after the server."""
    address = Address.of(above)
    if address is None:
        return above + rest
    folder = address.path.strip("/")
    name = "/".join(part for part in (folder, rest.lstrip("/")) if part)
    return f"{address.scheme}://{address.server}//{name}"


def _store_name(name: str) -> str | None:
    """The name below /store/ under which the whole federation knows a file; None for what is not of it."""
    if ".." in name.split("/"):
        return None  # it may lead out again, into somebody's own folder
    for above in STORE_ABOVE:
        if name.startswith(above + STORE):
            return name.removeprefix(above)
    return name if name.startswith(STORE) else None


# -- the cache --------------------------------------------------------------------------------------


def _cache_server(cache: str, env: Mapping[str, str]) -> str | None:
    """``host[:port]`` of a profile's cache; None where the environment that should name it does not."""
    if cache in (PLUGIN, f"${CACHE_HOST}", f"${{{CACHE_HOST}}}"):
        if env.get("XRD_PLUGIN") or env.get("XRD_PLUGINCONFDIR"):
            return PLUGIN
        cache = f"${CACHE_HOST}"
    missing = False

    def value(match: re.Match[str]) -> str:
        nonlocal missing
        found = env.get(match[1] or match[2], "").strip()
        missing = missing or not found
        return found

    server = _VARIABLE.sub(value, cache).strip("/")
    if missing or not server:
        return None
    port = env.get("XCACHE_PORT", "").strip() if cache == f"${CACHE_HOST}" else ""
    return server if not port or re.search(r":\d+$", server) else f"{server}:{port}"


def _no_cache(site: SiteProfile) -> str:
    named = _VARIABLE.search(site.urls.cache or "")
    variable = (named[1] or named[2]) if named else CACHE_HOST
    plugin = ", or XRD_PLUGINCONFDIR where the client's cache plug-in is installed"
    return (
        f"the site {site.name!r} reads /store/ files through a cache, and nothing here says which one: "
        f"export {variable}=HOST{'' if variable != CACHE_HOST else '[:PORT]' + plugin}; "
        "or give the profile its urls.cache"
    )
