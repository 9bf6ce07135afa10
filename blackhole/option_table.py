"""The option table: one row for each option, from which everything else about it is made.

A row of `OPTIONS` is an option of the command line (`--ssl-port 465`), of the environment
(`BLACKHOLE_SSL_PORT=465`) and of the conf file (`ssl_port = 465`), and a line of --help,
--print-config, blackhole.conf.sample and the documents. A new option is one more row here, and a
field of the same name in `Settings` for its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from blackhole import listeners, redis_url, values
from blackhole.listeners import OWN_SETTINGS, GivenListener, ListenerSetting
from blackhole.providers import OF_PROVIDER, PROVIDERS
from blackhole.settings import LOG_FORMATS, MAX_RECENT, MODES, NAMESPACE_KEYS, NEWLINES
from blackhole.tls_menu import (
    CLIENT_CERTIFICATE,
    DEFAULT_TLS_MIN,
    ENTRIES,
    MENU_BY_NAME_ASKED,
    NO_ENTRY,
    VERSION_NUMBERS,
)


class Option(NamedTuple):
    """An option. `default` is written as an operator would write it."""

    name: str
    read: Callable[[str], Any]
    """Return the value of a text. Raises ValueError."""
    default: str
    metavar: str
    group: str
    help: str
    """What the option does: one phrase."""
    notes: str = ""
    """Further sentences for the sample conf and the documents."""
    default_note: str = ""
    """What happens when the value is empty, or `auto`."""
    warning: str = ""
    """A warning for whoever turns the option on."""
    repeats: bool = False
    """Whether it may be given several times; `read` then takes several values and returns a tuple."""
    public_default: str = ""
    """The default with --public, where that is another."""
    aliases: tuple[str, ...] = ()
    """Earlier names, which stay accepted everywhere."""
    of_listener: str = ""
    """The name by which one listener may have a value of its own; empty: it may not."""

    @property
    def flag(self) -> str:
        """Return the option as help and errors show it; with underscores it is the same option."""
        return flag(self.name)

    @property
    def usage(self) -> str:
        """Return the option as one types it."""
        return f"{self.flag} {self.metavar}".rstrip()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name and the aliases."""
        return (self.name, *self.aliases)

    @property
    def variable(self) -> str:
        """Return the name of its environment variable."""
        return variable(self.name)

    @property
    def summary(self) -> str:
        """Return what it does and, in brackets, its default."""
        default = self.default_note or self.default
        if self.public_default:
            default = f"{default}; with --public {self.public_default}"
        return f"{self.help} [{default}]" if default else self.help


def flag(name: str) -> str:
    """Return the flag for the name of an option: "--ssl-port" for "ssl_port"."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """Return the name of the environment variable for the name of an option."""
    return f"BLACKHOLE_{name.upper()}"


def read_listeners(text: str) -> tuple[GivenListener, ...]:
    """Read listeners, each in one line, separated by blanks."""
    return tuple(listeners.read_line(LISTENER_SETTINGS, item) for item in text.split())


FAIL_ON: Final = ("never", "must", "should", "style", *(OF_PROVIDER + name for name in PROVIDERS))

_PER_CLIENT: Final = "Limits per client, for a server that is open to the Internet"

# fmt: off
OPTIONS: Final = (
    Option("host", values.host, "0.0.0.0", "ADDRESS", "Listeners", "address to accept connections on",
           "An IPv4 address, an IPv6 address (:: is all of IPv6) or a host name."),
    Option("port", values.port, "25", "PORT", "Listeners", "port to accept connections on",
           "0 is any free port."),
    Option("listen", read_listeners, "", listeners.LISTEN, "Listeners",
           "additional listener, with settings of its own; may be repeated",
           "Write an IPv6 address in brackets; without an address, as in :2525, it is all of IPv4. "
           "A UNIX socket is unix:PATH. "
           "With listen and neither host nor port, only these listeners are opened.", repeats=True),
    Option("backlog", values.whole_number(1, 65535), "1024", "COUNT", "Listeners",
           "connections that may wait to be accepted"),
    Option("proxy_from", values.networks, "", "NETWORKS", "Listeners",
           "networks whose PROXY headers are trusted",
           "A listener with proxy closes connections from any other address."),
    Option("proxy_timeout", values.seconds(0.1, 86400), "5s", "TIME", "Listeners",
           "time to wait for a PROXY header"),
    Option("xclient_from", values.networks, "", "NETWORKS", "Listeners",
           "networks of the servers that may name their clients with XCLIENT and XFORWARD",
           "Only these servers are offered the two commands."),
    Option("mode", values.mode, "accept", "MODE", "Replies",
           "whether to accept, reject or defer mail",
           f"The modes are {', '.join(MODES)}.", of_listener="mode"),
    Option("delay", values.delay, "0", "TIME|MIN,MAX", "Replies", "time to wait before each reply",
           "With MIN,MAX, a random time for each reply. Other clients do not wait.", of_listener="delay"),
    Option("strict", values.switch, "no", "", "Replies", "enforce the command order and syntax of RFC 5321",
           "Otherwise commands are accepted in any order, even DATA as the first.", of_listener="strict"),
    Option("hostname", values.hostname, "", "NAME", "Replies",
           "name of this server in the greeting and the EHLO reply",
           default_note="from /etc/mailname, else this machine's name", of_listener="hostname"),
    Option("message_size_limit", values.octets(0, 2**63 - 1), "50M", "SIZE", "Replies",
           "size of the largest message to accept; 0 is no limit", "The EHLO reply announces it as SIZE.",
           of_listener="message_size_limit"),
    Option("scenario", values.scenarios, "", "FILE|profile:NAME", "Replies",
           "rules for refusals, delays and faults; may be repeated",
           "A TOML file, or a profile that comes with Blackhole. A matching rule overrides the mode.",
           repeats=True, of_listener="scenario"),
    Option("set", values.variables, "", "NAME=VALUE", "Replies",
           "value of a variable of the scenario, in place of its default; may be repeated",
           "The variables of a scenario are those in its table [set].",
           repeats=True, of_listener="set"),
    Option("attempt_store", redis_url.attempt_store, "local", "local|URL", "Replies",
           "where rules remember delivery attempts: on this machine or in a Redis server",
           "A URL is redis://[USER:PASSWORD@]HOST[:PORT][/DB], or rediss:// for TLS; "
           "redis+sentinel://HOST[:PORT][,...]/SERVICE[/DB] asks Sentinels for the server, and "
           "redis+cluster://HOST[:PORT][,...] the nodes of a cluster. "
           "Append ?prefix=NAME&timeout=TIME to set the prefix of all keys and the time limit for an "
           "answer, and with rediss ca=FILE for the CA certificate. "
           "A password is safer in a conf file or in the environment than on a command line.",
           aliases=("attempts",)),
    Option("namespace_by", values.namespace_keys, "", "KEYS|off", "Replies",
           "what puts mail into a namespace, which has orders and figures of its own",
           f"Some of {', '.join(NAMESPACE_KEYS)}, separated by commas: "
           + "; ".join(f"{key} {meaning}" for key, meaning in NAMESPACE_KEYS.items())
           + ". An earlier one of these outweighs those behind it.",
           default_note="off: there are no namespaces"),
    Option("extensions", values.keywords, "default", "KEYWORDS", "Replies",
           "SMTP extensions that the reply to EHLO offers",
           "Separate keywords by commas or blanks. default stands for those that most servers offer today, "
           "all for every extension, none for no extension, and -KEYWORD leaves one out: "
           "default,BINARYMIME,-VRFY. "
           "STARTTLS is offered only with a certificate, and AUTH only with auth.",
           of_listener="extensions"),
    Option("bare_newline", values.one_of(NEWLINES), "normalize", "ACTION", "Replies",
           "how to treat bare LF line endings: normalize, count or reject",
           "normalize takes it as a line ending, except in the end of a message. count does too, and counts "
           "the commands and messages that contain it. reject answers them with 550 and closes.",
           of_listener="bare_newline"),
    Option("inspect", values.one_of(("all", "sample", "off")), "sample", "all|sample|off", "Replies",
           "which sessions and messages to inspect for violations that are not seen while serving them",
           "all inspects each session, and the first 2 KiB of each message. sample inspects 500 of each a "
           "second, and one in 64 of those beyond. off inspects none."),
    Option("inspect_content", values.switch, "no", "", "Replies",
           "inspect the content of messages: header fields, MIME parts and signatures",
           "Of those that inspect chooses, up to 256 KiB of each. A message is kept until it ends. "
           "With sample, up to 8 MiB a second in each worker are inspected."),
    Option("dkim_keys", values.path, "", "FILE", "Replies",
           "public keys with which inspect_content verifies DKIM signatures",
           "A line for each key, as in the DNS: s._domainkey.example.com v=DKIM1; k=rsa; p=MIG... "
           "Signatures of other keys are not verified, and nothing is asked of the DNS, unless dkim_resolver "
           "is set.",
           default_note="no signature is verified"),
    Option("dkim_resolver", values.dns_server, "", "ADDRESS[:PORT]", "Replies",
           "DNS resolver that is asked for the public keys of DKIM signatures",
           "Only for messages that inspect_content inspects, for keys that dkim_keys does not have, and with "
           "at most 20 queries a second in each worker. No reply waits for a key: the report has the verdict "
           "later.",
           default_note="nothing is asked"),
    Option("message_directives", values.switch, "yes", "yes|no", "Replies",
           "obey the header fields X-Blackhole-Mode and X-Blackhole-Delay of a message",
           "They apply to that message alone, with a delay of at most 60 seconds. Rules override them.",
           aliases=("dynamic_switch",)),
    Option("auth", values.auth, "off", "any|off|FILE", "Replies",
           "who may log in with AUTH: everybody (any), nobody (off) or the users in FILE",
           "With any, every password is accepted. FILE has a line USER:PASSWORD for each user. "
           "AUTH is offered only under TLS, unless auth_plaintext is set.", of_listener="auth"),
    Option("auth_plaintext", values.switch, "no", "", "Replies", "offer AUTH without TLS too",
           warning="passwords may be sent unencrypted, and anyone on the network path can read them",
           of_listener="auth_plaintext"),
    Option("auth_mechanisms", values.keywords, "default", "NAMES", "Replies",
           "SASL mechanisms that AUTH offers",
           "Separate names by commas or blanks, as with extensions: default,-LOGIN,EXTERNAL. "
           "ANONYMOUS and EXTERNAL are offered on request, and SCRAM-SHA-256 only with a file of users.",
           of_listener="auth_mechanisms"),
    Option("auth_required", values.switch, "no", "", "Replies",
           "refuse mail with 530 before AUTH has succeeded", of_listener="auth_required"),
    Option("timeout", values.seconds(0.1, 86400), "5m", "TIME", "Replies",
           "time to wait for the next command or the next part of a message",
           "RFC 5321 section 4.5.3.2 recommends at least 5 minutes.", of_listener="timeout"),
    Option("ssl", values.switch, "yes", "yes|no", "TLS", "offer TLS if there is a certificate"),
    Option("ssl_port", values.port, "465", "PORT", "TLS", "port for implicit TLS",
           "Opened on host, if there is a certificate. With listen and neither host nor port, it is opened "
           "only if ssl_port is set too."),
    Option("ssl_cert", values.certificate, "", "FILE|auto", "TLS", "certificate and its chain, PEM",
           "Turns on STARTTLS on every listener, and the listener on ssl_port. With auto, a certificate is "
           "issued at start, by an authority of its own: see the action authority.", of_listener="cert"),
    Option("ssl_key", values.path, "", "FILE", "TLS", "private key, PEM", default_note="read from ssl_cert",
           of_listener="key"),
    Option("tls_menu", values.one_of((NO_ENTRY, MENU_BY_NAME_ASKED, *ENTRIES)), NO_ENTRY, "off|sni|ENTRY",
           "TLS", "entry of the TLS menu: a certificate or a handshake that is wrong in one way",
           f"The entries are {', '.join(ENTRIES)}. With sni, the client selects one by the first label of "
           "the name that it asks for, such as expired.badtls.test. Rules override it.",
           of_listener="tls_menu"),
    Option("tls_min", values.tls_version, "", "VERSION", "TLS", "least version of TLS",
           f"One of {', '.join(VERSION_NUMBERS)}.", default_note=DEFAULT_TLS_MIN,
           of_listener="tls_min"),
    Option("tls_max", values.tls_version, "", "VERSION", "TLS", "greatest version of TLS",
           default_note=VERSION_NUMBERS[-1], of_listener="tls_max"),
    Option("tls_ciphers", values.tls_ciphers, "", "LIST", "TLS", "ciphers for TLS 1.2 and older",
           "A cipher list of OpenSSL. TLS 1.0 and 1.1 need :@SECLEVEL=0 at its end.",
           default_note="AES-GCM and ChaCha20 with ECDHE", of_listener="tls_ciphers"),
    Option("client_cert", values.one_of(CLIENT_CERTIFICATE), "off", "off|ask|require", "TLS",
           "whether to ask clients for a certificate",
           "With ask, a client may have none. With require, the handshake fails without one. "
           "AUTH EXTERNAL uses the name in it.", of_listener="client_cert"),
    Option("client_ca", values.path, "", "FILE", "TLS",
           "authorities that sign the certificates of clients, PEM", of_listener="client_ca"),
    Option("ssl_ca_certs_dir", values.path, "", "DIRECTORY", "TLS",
           "ignored; accepted because Blackhole 1.x had it",
           warning="ignored, because the authorities of clients are in the file client_ca; remove it"),
    Option("max_connections", values.whole_number(1, 1000000), "10000", "COUNT", "Limits",
           "connections per worker; any more are answered with 421",
           "Lowered if a worker may not open that many files."),
    Option("write_timeout", values.seconds(0.1, 86400), "1m", "TIME", "Limits",
           "time to wait for the client to read a reply"),
    Option("tls_timeout", values.seconds(0.1, 86400), "30s", "TIME", "Limits",
           "time that a TLS handshake may take"),
    Option("stress_timeout", values.seconds(0, 86400), "10s", "TIME", "Limits",
           "client timeout while connections are running out; 0 is off",
           "In effect from 90 % of max_connections until fewer than 70 % are in use."),
    Option("public", values.switch, "no", "", _PER_CLIENT, "turn on the limits in this section",
           "Each limit has an option of its own, where 0 is no limit."),
    Option("trusted", values.networks, "127.0.0.0/8 ::1/128 unix", "NETWORKS", _PER_CLIENT,
           "networks that are exempt from the limits in this section",
           "Separate networks by blanks or commas; unix is the clients of UNIX sockets, "
           "and none exempts no network."),
    Option("client_connections", values.count, "0", "COUNT", _PER_CLIENT,
           "simultaneous connections of a client; any more are answered with 421",
           "In this section, a client is an IPv4 address or an IPv6 /64. Limits hold across all workers.",
           public_default="50"),
    Option("client_connection_rate", values.count, "0", "COUNT", _PER_CLIENT,
           "new connections of a client per minute", public_default="600"),
    Option("client_message_rate", values.count, "0", "COUNT", _PER_CLIENT,
           "messages from a client per minute"),
    Option("client_recipient_rate", values.count, "0", "COUNT", _PER_CLIENT,
           "recipients from a client per minute"),
    Option("client_tls_rate", values.count, "0", "COUNT", _PER_CLIENT,
           "TLS handshakes of a client per minute", public_default="120"),
    Option("client_byte_rate", values.octets(0, 2**31 - 1), "0", "SIZE", _PER_CLIENT,
           "bytes from a client per minute; a client that sends more is answered with 421",
           "Checked once a second."),
    Option("soft_errors", values.count, "0", "COUNT", _PER_CLIENT,
           "errors in a session after which each reply is delayed by one second",
           "A message resets the number of errors.", public_default="10"),
    Option("max_errors", values.count, "0", "COUNT", _PER_CLIENT,
           "errors after which the session is closed", public_default="20"),
    Option("max_junk", values.count, "0", "COUNT", _PER_CLIENT,
           "junk commands, such as NOOP, after which each more counts as an error", public_default="100"),
    Option("max_recipients", values.count, "0", "COUNT", _PER_CLIENT,
           "recipients of a message; any more are answered with 452", public_default="1000"),
    Option("max_messages", values.count, "0", "COUNT", _PER_CLIENT,
           "messages in a session; the next is answered with 421", public_default="1000"),
    Option("min_data_rate", values.octets(0, 2**31 - 1), "0", "SIZE", _PER_CLIENT,
           "least average bytes per second of a message body",
           "Averaged over the time that timeout says.", public_default="500"),
    Option("session_timeout", values.seconds(0, 604800), "0", "TIME", _PER_CLIENT,
           "time that a session may last", public_default="1h"),
    Option("workers", values.workers, "auto", "COUNT", "Process", "number of worker processes",
           default_note="one for each processor that the process may use"),
    Option("user", values.printable, "", "USER", "Process",
           "user that the workers run as, if root starts the server",
           default_note="blackhole if it exists, else nobody"),
    Option("group", values.printable, "", "GROUP", "Process", "group that the workers run as",
           default_note="that of user"),
    Option("pid", values.path, "", "FILE", "Process", "pidfile, locked while the server runs",
           "Without root, the default is $XDG_RUNTIME_DIR/blackhole.pid, or ~/.blackhole.pid.",
           default_note="/run/blackhole.pid; none in the foreground"),
    Option("drain_timeout", values.seconds(0, 86400), "30s", "TIME", "Process",
           "time that open sessions have to finish when the server stops"),
    Option("stop_after", values.whole_number(0, 2**63 - 1), "0", "COUNT", "Process",
           "stop after so many messages; 0 is never",
           "Messages count that have come to their end, whatever the reply, over all workers. Then clients "
           "get 421, and messages under way are finished, so there may be a few more. The exit status is 0. "
           "With --fleet, the messages of all machines count."),
    Option("conf", values.path, "", "FILE", "Process", "read options from this file too"),
    Option("log", values.path, "", "FILE", "Logging", "log file, or the socket of a syslog daemon (/dev/log)",
           "Without root, the default is blackhole.log in $XDG_STATE_HOME or ~/.local/state.",
           default_note="/var/log/blackhole.log; stderr in the foreground"),
    Option("log_format", values.one_of(LOG_FORMATS), "text", "text|json|syslog", "Logging",
           "format of the log: lines for people, JSON objects, or syslog (RFC 5424)"),
    Option("log_transactions", values.switch, "no", "", "Logging", "log one line for each transaction",
           "It has the client, sender, recipients, size, outcome and the reply that decided, and nothing "
           "of the message.",
           warning="addresses of senders and recipients are logged, a line for each transaction"),
    Option("debug", values.switch, "no", "", "Logging", "log every line received and sent",
           warning="every line of every session is logged, which is slow and fills disks with private data"),
    Option("dashboard", values.dashboard_address, "127.0.0.1:8025", "ADDRESS:PORT|off", "Dashboard",
           "address of the dashboard and of the metrics for Prometheus",
           "Anyone who can connect can read it and control the server, unless requests must have the token "
           "in a file, as in 0.0.0.0:8025,token=/etc/blackhole/token. "
           "Requests for another host name are refused; allow more names as in "
           "0.0.0.0:8025,name=sink.example.com. "
           "If the default address is in use, Blackhole runs without a dashboard.", aliases=("http",)),
    Option("dashboard_cert", values.certificate, "", "FILE|auto", "Dashboard",
           "certificate of the dashboard and its chain, PEM; turns on HTTPS",
           "With auto, a certificate is issued at start, for the names and the address of the dashboard too, "
           "by an authority of its own: see the action authority."),
    Option("dashboard_key", values.path, "", "FILE", "Dashboard", "private key of the dashboard, PEM",
           default_note="read from dashboard_cert"),
    Option("dashboard_path", values.base_path, "", "PATH", "Dashboard",
           "what all paths of the dashboard begin with, as in /blackhole",
           "For a proxy that passes requests for one path on to Blackhole, as they are.",
           default_note="/"),
    Option("show_clients", values.switch, "no", "", "Dashboard",
           "keep the addresses of clients and show what each did",
           "They appear on the dashboard, in /stats.json, and in the output of status and report."),
    Option("show_domains", values.switch, "no", "", "Dashboard",
           "count recipients by their domain and show what became of them",
           "They appear on the dashboard, in /stats.json, in /metrics, and in the output of status and "
           "report: the 100 domains with the most recipients, and the rest as others."),
    Option("show_lines", values.switch, "no", "", "Dashboard",
           "show the lines in which senders do something wrong as they came",
           "Otherwise the report shows x for the letters and digits of addresses and texts in them. "
           "Passwords are never shown."),
    Option("recent", values.whole_number(0, MAX_RECENT), "0", "COUNT", "Dashboard",
           "keep the last COUNT transactions in memory and show them; 0 is none",
           "They appear on the dashboard, at /recent, and in the output of the action recent: addresses, "
           "commands and replies, never a body. They are gone when the server stops."),
    Option("recent_fields", values.field_names, "Subject,Message-ID", "NAMES", "Dashboard",
           "fields of the header section that recent keeps",
           "At most eight, separated by commas; none keeps none."),
    Option("fleet", redis_url.fleet, "off", "off|URL", "Fleet",
           "the Redis server by which several machines are one sink",
           "They add their figures up in it. A URL is written as for attempt_store, of which it is then the "
           "default. "
           "A password is safer in a conf file or in the environment than on a command line."),
    Option("fleet_name", values.fleet_name, "blackhole", "NAME", "Fleet",
           "name of the fleet, where a Redis server has several"),
    Option("fleet_control", values.switch, "no", "", "Fleet",
           "obey the orders that were given to any machine of the fleet",
           "Such orders are another scenario, and one-shot rules. An order to its own dashboard goes to all. "
           "Whoever can write to the Redis server, or reach one dashboard, controls them all."),
    Option("namespace", values.printable, "", "NAME", "Reports",
           "the namespace of which report and recent show the figures"),
    Option("follow", values.switch, "no", "", "Reports",
           "with recent, go on and print each transaction when it ends"),
    Option("conversation", values.switch, "no", "", "Reports",
           "with recent, print each command and reply"),
    Option("progress", values.switch, "no", "", "Reports",
           "in the foreground, print the current rates once a second to stderr"),
    Option("format", values.one_of(("text", "json", "junit")), "text", "text|json|junit", "Reports",
           "output format of report"),
    Option("scope", values.one_of(("machine", "fleet")), "machine", "machine|fleet", "Reports",
           "whose figures status, report and top show"),
    Option("json", values.switch, "no", "", "Reports", "print status and report as JSON"),
    Option("fail_on", values.one_of(FAIL_ON), "never", "never|must|should|style|provider:NAME", "Reports",
           "lowest level of a violation for which report exits with 1",
           "must is the highest level and style the lowest. provider:NAME is all that a provider says that "
           "it expects of messages, and nothing else; it needs inspect_content. "
           f"The providers are {', '.join(PROVIDERS)}."),
)
# fmt: on
"""All options, in the order of --help."""

OPTION_BY_NAME: Final = {name: option for option in OPTIONS for name in option.names}
"""Name or alias -> option."""

LISTENER_ROWS: Final = (
    *OWN_SETTINGS,
    *(
        ListenerSetting(
            option.of_listener,
            option.read,
            "" if option.read is values.switch else option.metavar,
            option.help,
            option.name,
            option.name,
            option.repeats,
            () if option.name == option.of_listener else (option.name,),
        )
        for option in OPTIONS
        if option.of_listener
    ),
)
"""Everything that may be set for one listener."""

LISTENER_SETTINGS: Final = {name: row for row in LISTENER_ROWS for name in (row.name, *row.aliases)}
"""Name or alias -> setting of a listener."""

RENAMED: Final = {
    "max_message_size": "write message_size_limit = SIZE",
    "pidfile": "write pid = FILE",
    "tls_cert": "write ssl_cert = FILE",
    "tls_dhparams": "remove the line, OpenSSL has its own parameters",
    "tls_key": "write ssl_key = FILE",
    "tls_listen": "write listen = ADDRESS:PORT,tls",
}
"""Options of Blackhole 2.x that have no alias here -> what to do instead."""

NAMES: Final = tuple(option.name for option in OPTIONS)
"""The names to suggest for a mistyped one."""
