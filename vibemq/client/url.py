"""Where the broker is: vibemq://host:port."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from vibemq.errors import NotSupported, UsageError

SCHEME: Final = "vibemq"
DEFAULT_PORT: Final = 2925
DEFAULT_URL: Final = f"{SCHEME}://127.0.0.1:{DEFAULT_PORT}"
FORM: Final = "vibemq://host:port (port 2925 when left out)"


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(url: str) -> Address:
    """The address in `url`. What the URL holds besides is never repeated in an error: it may be a password.

    Raises:
        UsageError: no URL of the form vibemq://host:port.
        NotSupported: a user, a password or tls=true, which this version does not have.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"the URL of the broker cannot be read: write {FORM}") from None
    if parts.scheme != SCHEME:
        raise UsageError(f"the URL of the broker must begin with {SCHEME}://, as in {FORM}")
    if "@" in parts.netloc:
        raise NotSupported("users and passwords are not in this version: leave user:password@ out of the URL")
    if not host:
        raise UsageError(f"the URL of the broker names no host: write {FORM}")
    if port == 0:
        raise UsageError("port 0 is no port to connect to: give the one that the broker listens on")
    _check_rest(parts)
    return Address(host, port or DEFAULT_PORT)


def _check_rest(parts: SplitResult) -> None:
    if parts.path not in {"", "/"} or parts.fragment:
        raise UsageError(f"the URL of the broker has no path and no fragment: write {FORM}")
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key != "tls":
            raise UsageError("the only option in the URL of a broker is tls; other options are arguments of connect()")
        if value == "true":
            raise NotSupported(
                "TLS is not in this version: leave tls=true out, and keep the connection on a trusted network"
            )
        if value != "false":
            raise UsageError("tls in the URL of a broker is true or false")
