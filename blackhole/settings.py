"""Settings: the configuration as the program uses it, and the error for one that cannot be used.

`options.parse` makes a `Settings`. No other module knows that there are options, an environment or a
conf file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from blackhole.tls_menu import (
    AUTO_CERTIFICATE,
    ENTRIES,
    GOOD,
    NO_ENTRY,
    USUAL_TLS,
    TLSParameters,
)

Delay = tuple[float, float]
"""Seconds to wait before a reply: (least, most), between which the wait is uniformly distributed."""

MODES = {
    "accept": "accept every message",
    "bounce": "reject every message at its end, with a random code",
    "random": "accept or reject each message at random, with a random code",
    "greylist": "defer each client, sender and recipient at first; accept a retry after five minutes",
    "unavailable": "answer 421 instead of the greeting, then close",
    "offline": "answer 521 instead of the greeting (RFC 7504), then accept only QUIT",
}
"""Every mode and what it does; help, documents and checks read it here."""

NEWLINES = {
    "normalize": "treat bare LF as CRLF, except in the end of a message",
    "count": "the same, and count the commands and messages that contain it",
    "reject": "answer 550 to a command or message that contains it, then close",
}
"""Every way to treat a bare LF: a line that ends with LF without a CR before it."""


NAMESPACE_KEYS = {
    "tag": "by a tag in the recipient, as in anyone+ns.NAME@example.com",
    "user": "by the user of AUTH",
    "helo": "by the name in HELO or EHLO",
    "listener": "by the port of the listener, or the name of its UNIX socket",
}
"""What can choose a namespace; an earlier one outweighs those behind it."""


LOG_FORMATS = ("text", "json", "syslog")
"""Formats of the log."""

CLIENT_LIMITS = (
    "client_connections",
    "client_connection_rate",
    "client_message_rate",
    "client_recipient_rate",
    "client_tls_rate",
    "client_byte_rate",
    "soft_errors",
    "max_errors",
    "max_junk",
    "max_recipients",
    "max_messages",
    "min_data_rate",
    "session_timeout",
)
"""The settings that limit what a client may do. 0 is no limit, and the default of all."""


class OperatorError(Exception):
    """What the operator asked for cannot be done: one line for standard error, and an exit status.

    `code` is a value of sysexits.h (`os.EX_USAGE`, `os.EX_CONFIG`, ...).
    """

    def __init__(self, message: str, code: int = os.EX_CONFIG) -> None:
        super().__init__(message)
        self.code = code


class ScenarioVariable(NamedTuple):
    """A value for a variable of a scenario."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}={self.text}"


MAX_RECENT = 10_000
"""Transactions that can be kept in memory."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to accept connections on, with the mode and delay of its sessions."""

    host: str
    port: int
    tls: bool = False
    """Implicit TLS (RFC 8314), as on port 465."""
    mode: str = "accept"
    delay: Delay | None = None
    proxy: bool = False
    """Each connection begins with a PROXY header that contains the address of the client."""
    lmtp: bool = False
    """Speak LMTP (RFC 2033) in place of SMTP."""
    path: str = ""
    """That of a UNIX socket, which then takes the place of host and port."""
    socket_mode: int = 0o666
    """The permissions of its file."""
    socket_user: str = ""
    """The owner of its file; empty: the user who starts the server."""
    socket_group: str = ""
    own: tuple[tuple[str, Any], ...] = ()
    """Fields of `Settings` that have another value for this listener: name and value of each."""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DashboardAddress:
    """The address of the dashboard."""

    host: str = ""
    """Empty: there is no dashboard."""
    port: int = 0
    names: tuple[str, ...] = ()
    """Names of this host that requests may use, besides localhost, its addresses and its own name."""
    token_file: str = ""
    """A file with the token that requests need; empty: they need none."""
    token: str = field(default="", repr=False)
    """What was read from the file."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        words = [f"name={name}" for name in self.names]
        words += [f"token={self.token_file}"] if self.token_file else []
        return ",".join([f"{host}:{self.port}", *words]) if host else "off"


@dataclass(frozen=True, slots=True)
class DNSServer:
    """A DNS server that is asked by its address.

    >>> str(DNSServer("::1", 5353))
    '[::1]:5353'
    """

    host: str = ""
    """Empty: none is asked."""
    port: int = 53

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if host else ""


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """A Redis server that several machines share."""

    host: str = ""
    """Empty: no server, each machine is on its own."""
    port: int = 6379
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca: str = ""
    """A file with CA certificates; empty: those that this machine trusts."""
    ca_text: str = field(default="", repr=False)
    """What was read from the file."""
    prefix: str = "blackhole"
    """Of all keys."""
    timeout: float = 0.05
    """Seconds to wait for an answer."""
    kind: str = ""
    """`sentinel` or `cluster`; empty: a single server."""
    service: str = ""
    """Name of the service that Sentinel watches."""
    others: tuple[tuple[str, int], ...] = ()
    """Further Sentinels, or nodes of the cluster: host and port."""

    @property
    def hosts(self) -> list[tuple[str, int]]:
        """All servers that are named: host and port."""
        return [(self.host, self.port), *self.others]

    def __str__(self) -> str:
        """Return the URL without the password, because it may be logged."""
        if not self.host:
            return "local"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        user = f"{self.user}:***@" if self.password else ""
        default = RedisSettings()
        query = "&".join(
            f"{name}={value}"
            for name in ("prefix", "timeout", "ca")
            if (value := getattr(self, name)) != getattr(default, name)
        )
        scheme = f"redis{'s' * self.tls}{self.kind and '+'}{self.kind}"
        path = "/".join((self.service, str(self.db)) if self.service else (str(self.db),))
        return f"{scheme}://{user}{hosts}/{path}{query and '?'}{query}"


@dataclass(frozen=True, slots=True)
class FleetServer(RedisSettings):
    """The Redis server of a fleet; without a host, there is no fleet."""

    def __str__(self) -> str:
        return RedisSettings.__str__(self) if self.host else "off"


ACCELERATORS = frozenset(("fast_path", "direct", "selector"))
"""Parts that make the server faster and can be left out: see `blackhole.net.accelerators`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The configuration. Paths are absolute; user and group are names until privileges are dropped."""

    listeners: tuple[Listener, ...] = (Listener("0.0.0.0", 25),)
    workers: int = 1
    user: str = ""
    """Empty: `blackhole` if it exists, else `nobody`; ignored unless root starts the server."""
    group: str = ""
    pid: str = ""
    log: str = ""
    """A file, or empty for standard error."""
    log_format: str = "text"
    """One of LOG_FORMATS."""
    log_transactions: bool = False
    """Whether a line is logged for each transaction."""
    debug: bool = False
    hostname: str = "localhost"
    """The name in the greeting and the EHLO reply."""
    message_size_limit: int = 52428800
    """Octets; 0 is no limit."""
    strict: bool = False
    ssl_cert: str = ""
    """Empty: no TLS. AUTO_CERTIFICATE: one that is issued at start."""
    ssl_key: str = ""
    tls_menu: str = NO_ENTRY
    """An entry of the TLS menu, or MENU_BY_NAME_ASKED."""
    tls_min: str = ""
    """Empty: DEFAULT_TLS_MIN, or `tls_max` if that is less."""
    tls_max: str = ""
    tls_ciphers: str = ""
    client_cert: str = "off"
    """A key of CLIENT_CERTIFICATE."""
    client_ca: str = ""
    """A file with the authorities that sign certificates of clients."""
    namespace_by: tuple[str, ...] = ()
    """What chooses a namespace: keys of NAMESPACE_KEYS; none: there are no namespaces."""
    namespace: str = ""
    """The namespace of which something is shown."""
    message_directives: bool = True
    """Whether header fields of a message may set its mode and delay."""
    auth: str = "off"
    """`off`: AUTH is not offered; `any`: every user and password is accepted; else a file with users."""
    auth_plaintext: bool = False
    """Whether AUTH is offered without TLS too."""
    password_files: Mapping[str, Mapping[bytes, bytes]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """File with users -> user -> password, as read from that file."""
    scenario: tuple[str, ...] = ()
    """Absolute paths of files, and `profile:NAME`."""
    set: tuple[ScenarioVariable, ...] = ()
    """Values of variables of scenarios."""
    attempt_store: RedisSettings = RedisSettings()
    fleet: FleetServer = FleetServer()
    fleet_name: str = "blackhole"
    fleet_control: bool = False
    """Whether orders given to any machine of the fleet are obeyed."""
    timeout: float = 300.0
    """Seconds to wait for a command or for more of a message (RFC 5321 section 4.5.3.2.7)."""
    drain_timeout: float = 30.0
    """Seconds that open sessions have to finish when the server stops."""
    stop_after: int = 0
    """Messages after which the server stops; 0 is never."""
    backlog: int = 1024
    dashboard: DashboardAddress = DashboardAddress("127.0.0.1", 8025)
    dashboard_cert: str = ""
    """Empty: the dashboard has no TLS. AUTO_CERTIFICATE: one that is issued at start."""
    dashboard_key: str = ""
    dashboard_path: str = ""
    """What all paths of the dashboard begin with: empty, or a path without a slash at its end."""
    show_clients: bool = False
    show_domains: bool = False
    """Whether addresses of clients are kept and shown."""
    recent: int = 0
    """How many of the last transactions are kept in memory and shown. 0: none is recorded."""
    recent_fields: tuple[str, ...] = ("Subject", "Message-ID")
    """Fields of the header section that are kept of them."""
    show_lines: bool = False
    """Whether the lines that violate a rule are kept without masking addresses and texts."""
    progress: bool = False
    """Whether a line of rates is printed once a second to standard error, in the foreground."""
    format: str = "text"
    """The output format of a report: text, json or junit."""
    json: bool = False
    fail_on: str = "never"
    scope: str = "machine"
    """Whose figures are shown: `machine` or `fleet`."""
    extensions: tuple[str, ...] = ("default",)
    """The SMTP extensions to offer, as the operator has written them."""
    follow: bool = False
    """Whether recent goes on and prints each transaction when it ends."""
    conversation: bool = False
    """Whether recent prints each command and reply."""
    auth_mechanisms: tuple[str, ...] = ("default",)
    """The mechanisms of AUTH, as the operator has written them."""
    auth_required: bool = False
    bare_newline: str = "normalize"
    """A key of NEWLINES."""
    inspect: str = "sample"
    """Which sessions and messages are inspected: all, sample or off."""
    inspect_content: bool = False
    """Whether the content of the messages that are inspected is inspected too."""
    dkim_keys: str = ""
    """A file with public keys, or empty: there is none."""
    dkim_records: Mapping[bytes, bytes] = field(default_factory=dict, repr=False, compare=False)
    """What was read from the file: records by name."""
    dkim_resolver: DNSServer = DNSServer()
    """Where keys that are not in the file are asked for."""

    # Limits that protect the process.
    max_connections: int = 10000
    """Per worker; lowered where it may not open that many files."""
    write_timeout: float = 60.0
    """Seconds for the client to read a reply."""
    tls_timeout: float = 30.0
    """Seconds for a TLS handshake."""
    stress_timeout: float = 10.0
    """Timeout of clients in seconds while connections are running out. 0 leaves the others in effect."""
    proxy_timeout: float = 5.0
    """Seconds for a PROXY header."""
    proxy_from: tuple[str, ...] = ()
    """Networks whose PROXY headers are trusted."""
    xclient_from: tuple[str, ...] = ()
    """Networks of the servers that may name the clients they act for."""

    # Limits per client. 0 is no limit.
    public: bool = False
    trusted: tuple[str, ...] = ("127.0.0.0/8", "::1/128", "unix")
    """Networks that are exempt from the limits below."""
    client_connections: int = 0
    """Simultaneous connections of an IPv4 address or IPv6 /64. The rates below are per minute."""
    client_connection_rate: int = 0
    client_message_rate: int = 0
    client_recipient_rate: int = 0
    client_tls_rate: int = 0
    client_byte_rate: int = 0
    soft_errors: int = 0
    max_errors: int = 0
    max_junk: int = 0
    max_recipients: int = 0
    max_messages: int = 0
    min_data_rate: int = 0
    """Average octets per second of a message body."""
    session_timeout: float = 0.0

    @property
    def passwords(self) -> Mapping[bytes, bytes] | None:
        """Return the passwords by user; None where every user is let in, or none."""
        return self.password_files.get(self.auth)

    def of_listener(self, listener: Listener) -> Settings:
        """Return the settings that hold for a listener.

        >>> settings = Settings(hostname="mx1.test")
        >>> settings.of_listener(Listener("::1", 2526, own=(("hostname", "mx2.test"),))).hostname
        'mx2.test'
        """
        return replace(self, **dict(listener.own)) if listener.own else self

    @property
    def tls_parameters(self) -> TLSParameters:
        """Return how the TLS handshake is done where neither a rule nor the client asks for anything else.

        >>> str(Settings(ssl_cert="auto", tls_menu="expired", tls_max="1.2").tls_parameters)
        'certificate expired, tls_max 1.2'
        """
        of_entry = ENTRIES[self.tls_menu].parameters if self.tls_menu in ENTRIES else USUAL_TLS
        return TLSParameters(
            "",
            self.tls_min,
            self.tls_max,
            self.tls_ciphers,
            "" if self.client_cert == "off" else self.client_cert,
        ).over(of_entry.over(TLSParameters(GOOD if self.ssl_cert == AUTO_CERTIFICATE else "")))

    @property
    def limits_clients(self) -> bool:
        """Return whether any limit per client is set."""
        return any(getattr(self, name) for name in CLIENT_LIMITS)

    @property
    def counts_clients(self) -> bool:
        """Return whether a limit is set that needs a count over all connections of a client."""
        return any(getattr(self, name) for name in CLIENT_LIMITS if name.startswith("client_"))

    accelerators: frozenset[str] = ACCELERATORS
    """Those that are on. For tests and measurements: set by the variable BLACKHOLE_ACCELERATORS alone."""
    origins: dict[str, str] = field(default_factory=dict, compare=False)
    """Option name -> where its value came from, for --print-config."""
    detached_paths: dict[str, str] = field(default_factory=dict, compare=False)
    """Option name -> the file that a detached server uses where none is given, for --print-config."""
    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = field(default=(), compare=False)
    """The address of each listener that is a section of the conf file, and the lines of the section."""
    texts: dict[str, str] = field(default_factory=dict, compare=False)
    """Option name -> its value as an operator would write it, for --print-config."""
