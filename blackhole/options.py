"""The option table, and everything that is made of it.

A row of `OPTIONS` is an option of the command line (`--ssl_port 465`), of the environment
(`BLACKHOLE_SSL_PORT=465`) and of the conf file (`ssl_port = 465`), and a line of --help,
--print-config, blackhole.conf.sample and the documents. A new option is one more row, and a
field of the same name in `Settings` for its value.

The command line wins over the environment, the environment over the conf file, and that over
the default.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, NoReturn

from blackhole import __version__
from blackhole.settings import MODES, NEWLINES, Delay, Http, Listener, OperatorError, Redis, Settings

ACTIONS = {
    "run": "serve in the foreground until Ctrl-C; the default",
    "start": "detach from the terminal and serve (also: --daemon)",
    "stop": "stop the detached server and wait until it is gone",
    "restart": "stop, then start",
    "reload": "read conf, scenarios and certificates again, losing no connection",
    "status": "say whether it runs, and how: exit 0 running, 1 died, 3 not running",
    "report": "say what senders did wrong: see --fail_on",
    "top": "show the rate, a line a second",
    "explain": "say which rule of a scenario answers in a case, and why",
}
"""Every action word and what it does."""

CASE = {
    "phase": ("PHASE", "where [the last that goes with what is told]"),
    "client": ("ADDRESS", "the client's address [127.0.0.1]"),
    "listener": ("ADDRESS:PORT", "the listener's [the first]"),
    "tls": ("yes|no", "whether TLS is on [no]"),
    "helo": ("NAME", "what stood behind HELO or EHLO"),
    "sender": ("ADDRESS", "the address of MAIL"),
    "rcpt": ("ADDRESS", "the address of RCPT"),
    "size": ("BYTES", "the message's size [0]"),
    "header": ("FIELD", 'a field of its header section, as "Subject: hello"'),
    "attempt": ("COUNT", "how many times it was tried, this one included [1]"),
    "at": ("TIME", "since the server started: 90, 90s or 5m [0]"),
}
"""What can be told of a case, with the action explain alone: name -> (what to write, what it is)."""

SIGNALS = {
    "TERM": "let messages under way finish, then stop",
    "INT, QUIT": "stop now",
    "HUP": "as reload",
    "USR1": "open the log anew, after it was rotated",
    "TTIN, TTOU": "one worker more, one worker less",
}
"""What --help says of the signals the master takes."""

EXAMPLES = {
    "blackhole --port 2525": "a sink in this terminal; no root, no conf file needed",
    "blackhole --conf /etc/blackhole.conf start": "a detached server",
    "blackhole --scenario FILE explain --rcpt bob@example.com":
        "which rule would answer",
    "blackhole --listen :2525 --listen [::1]:2526,mode=bounce,delay=1,5":
        "two listeners: one accepts, one refuses slowly",
}  # fmt: skip


# Readers: the text of a value -> the value, or a ValueError that says what was expected.


def _expected(what: str, text: str) -> ValueError:
    return ValueError(f"expected {what}, not {text[:60]!r}")


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if re.fullmatch("[0-9]{1,19}", text) and least <= int(text) <= most:
            return int(text)
        raise _expected(f"a whole number from {least} to {most}", text)

    return read


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?|\.[0-9]{1,6}", text) and least <= float(text) <= most:
            return float(text)
        raise _expected(f"seconds from {least:g} to {most:g}", text)

    return read


_PORT = _whole(0, 65535)
_WAIT = _seconds(0, 3600)

_SWITCH = {
    **dict.fromkeys(("yes", "true", "on", "1"), True),
    **dict.fromkeys(("no", "false", "off", "0"), False),
}


def _switch(text: str) -> bool:
    try:
        return _SWITCH[text.lower()]
    except KeyError:
        raise _expected("yes or no", text) from None


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    raise _expected("printable characters only", text)


def _path(text: str) -> str:
    """An absolute path: once detached, the current directory is another one."""
    if not text:
        return ""
    try:
        return os.path.abspath(os.path.expanduser(_printable(text)))
    except OSError:  # of getcwd: somebody removed the directory we stand in
        raise _expected("an absolute path, the current directory being gone", text) from None


_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_IPV6 = re.compile(r"([0-9A-Fa-f:.]+)(%[A-Za-z0-9_.-]+)?")


def _is_address(family: int, text: str) -> bool:
    try:
        return bool(socket.inet_pton(family, text))
    except (OSError, ValueError):
        return False


def _host(text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    v6 = _IPV6.fullmatch(bare)
    if v6 and _is_address(socket.AF_INET6, v6[1]):
        return bare
    # A name that ends in a number is a mistyped address.
    if _is_address(socket.AF_INET, text) or (_NAME.fullmatch(text) and not text.split(".")[-1].isdigit()):
        return text
    raise _expected("an IPv4 or IPv6 address or a host name", text)


def _hostname(text: str) -> str:
    if not text or _NAME.fullmatch(text):
        return text
    raise _expected("a host name of letters, digits, hyphens and dots", text)


def processors() -> int:
    """How many this process may use; where that cannot be asked, as in PyPy, how many there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _workers(text: str) -> int:
    if text == "auto":
        return min(processors(), 1024)
    try:
        return _whole(1, 1024)(text)
    except ValueError:
        raise _expected("auto or a whole number from 1 to 1024", text) from None


_MODES = ", ".join(MODES)


def _mode(text: str) -> str:
    if text.lower() in MODES:
        return text.lower()
    raise ValueError(f"{_expected(f'one of {_MODES}', text)}{_suggest(text, MODES)}")


def _word(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() in known:
            return text.lower()
        raise ValueError(f"{_expected('one of ' + ', '.join(known), text)}{_suggest(text, known)}")

    return read


_format = _word("text", "json", "junit")
_fail_on = _word("never", "must", "should", "style")


def _delay(text: str) -> Delay | None:
    least, comma, most = (part.strip() for part in text.partition(","))
    try:
        delay = (_WAIT(least), _WAIT(most if comma else least))
    except ValueError:
        raise _expected("seconds, or MIN,MAX, from 0 to 3600", text) from None
    if delay[0] > delay[1]:
        raise _expected("MIN,MAX with the lesser first", text)
    return delay if delay[1] else None


_NEWLINES = ", ".join(NEWLINES)


def _newline(text: str) -> str:
    if text.lower() in NEWLINES:
        return text.lower()
    raise ValueError(f"{_expected(f'one of {_NEWLINES}', text)}{_suggest(text, NEWLINES)}")


def _networks(text: str) -> tuple[str, ...]:
    """Networks by blanks or commas; `none` for none, where an empty value cannot be given."""
    words = text.replace(",", " ").split()
    return () if words == ["none"] else tuple(_network(word) for word in words)


def _network(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise _expected("networks as 192.0.2.0/24, no bit set behind the prefix", text) from None


_COUNT = _whole(0, 2**31 - 1)

_LISTEN = "ADDRESS:PORT[,tls][,proxy][,mode=MODE][,delay=SECONDS]"
_ADDRESS = re.compile(r"(\[[^][]+\]|[^][:]*):([0-9]+)")


def _listener(text: str, mode: str, delay: Delay | None) -> Listener:
    """The listener `text` describes; `mode` and `delay` are for what it leaves open."""
    address, *words = re.split(",(?=[a-z])", text)  # the comma of delay=1,5 has a digit behind it
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise _expected(f"{_LISTEN}, an IPv6 address in brackets", text)
    tls = proxy = False
    for word in words:
        key, _, value = word.partition("=")
        if word == "tls":
            tls = True
        elif word == "proxy":
            proxy = True
        elif key == "mode":
            mode = _mode(value)
        elif key == "delay":
            delay = _delay(value)
        else:
            raise _expected("tls, proxy, mode=MODE or delay=SECONDS after the port", word)
    return Listener(_host(match[1] or "0.0.0.0"), _PORT(match[2]), tls, mode, delay, proxy)


def _listen(text: str) -> tuple[str, ...]:
    """Descriptions of listeners, checked; `_listeners` makes listeners of them."""
    for item in text.split():
        _listener(item, "accept", None)
    return tuple(text.split())


def _scenarios(text: str) -> tuple[str, ...]:
    """Files and profiles; they are read when the server starts, and at each reload."""
    return tuple(word if word.startswith("profile:") else _path(word) for word in text.split())


_ATTEMPTS = "local, or redis://[USER:PASSWORD@]HOST[:PORT][/DB]"
_PREFIX = re.compile("[!-~]{1,64}")


def _attempts(text: str) -> Redis:
    """No error shows what was given: there is a password in it."""
    from urllib.parse import parse_qsl, unquote, urlsplit

    if text.lower() in ("", "local"):
        return Redis()
    wrong = ValueError(f"expected {_ATTEMPTS}")
    try:
        url = urlsplit(text)
        port = url.port
        more = dict(parse_qsl(url.query, strict_parsing=True) if url.query else ())
        host = _host(unquote(url.hostname or ""))
    except ValueError:
        raise wrong from None
    database = url.path.removeprefix("/") or "0"
    if url.scheme not in ("redis", "rediss") or url.fragment or not re.fullmatch("[0-9]{1,5}", database):
        raise wrong
    tls = url.scheme == "rediss"
    if not more.keys() <= {"prefix", "timeout", *(["ca"] if tls else [])}:
        raise ValueError(
            "expected prefix=NAME, timeout=SECONDS, and with rediss ca=FILE, behind the question mark"
        )
    default = Redis()
    prefix = more.get("prefix", default.prefix)
    if not _PREFIX.fullmatch(prefix):
        raise _expected("a prefix of printable ASCII", prefix)
    return Redis(
        host,
        port or default.port,
        int(database),
        unquote(url.username or ""),
        unquote(url.password or ""),
        tls,
        _path(more.get("ca", "")),
        prefix,
        _seconds(0.001, 10)(more.get("timeout", f"{default.timeout}")),
    )


_HTTP = "ADDRESS:PORT[,name=NAME]"


def _http(text: str) -> Http:
    if _SWITCH.get(text.lower()) is False:
        return Http()
    address, *words = text.split(",")
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise _expected(f"off, or {_HTTP}, an IPv6 address in brackets", text)
    for word in words:
        if not word.startswith("name=") or not _NAME.fullmatch(word[5:]):
            raise _expected("name=NAME after the port", word)
    return Http(_host(match[1] or "0.0.0.0"), _PORT(match[2]), tuple(word[5:].lower() for word in words))


def _auth(text: str) -> str:
    """`off`, `any`, or a file, which is read when the server starts, and at each reload."""
    word = text.lower()
    if not word or _SWITCH.get(word) is False:
        return "off"
    return "any" if word == "any" else _path(text)


class Option(NamedTuple):
    """One row. `default` is written as an operator would write it."""

    name: str
    read: Callable[[str], Any]
    default: str
    metavar: str
    group: str
    help: str
    notes: str = ""
    """More, for the sample conf and the documents."""
    otherwise: str = ""
    """What is done when the value is empty, or `auto`."""
    warning: str = ""
    """Said to whoever turns it on."""
    repeats: bool = False
    """May be given several times: `read` takes many, and makes a tuple."""
    public: str = ""
    """The default with --public, where that is another."""

    @property
    def usage(self) -> str:
        """The option as one types it."""
        return f"--{self.name} {self.metavar}".rstrip()

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"BLACKHOLE_{self.name.upper()}"

    @property
    def summary(self) -> str:
        """What it does and, in brackets, the default."""
        default = self.otherwise or self.default
        if self.public:
            default = f"{default}; public: {self.public}"
        return f"{self.help} [{default}]" if default else self.help


_JUDGING = "Limits of one client, for a sink that is open to the world"

# fmt: off
OPTIONS = (
    Option("host", _host, "0.0.0.0", "ADDRESS", "Listeners", "address to accept connections on",
           "IPv4, IPv6 (:: is all of it) or a name."),
    Option("port", _PORT, "25", "PORT", "Listeners", "port to accept connections on", "0 is any free one."),
    Option("listen", _listen, "", _LISTEN, "Listeners",
           "one more listener, with its own mode and delay; may be given several times",
           "IPv6 addresses stand in brackets; no address, as in :2525, is all of IPv4. "
           "With listen and neither host nor port, there are no other listeners.", repeats=True),
    Option("backlog", _whole(1, 65535), "1024", "COUNT", "Listeners",
           "connections that may wait for a worker"),
    Option("proxy_from", _networks, "", "NETWORKS", "Listeners",
           "who may say, by the PROXY protocol, for whom it speaks",
           "Others are not served on a listener with proxy."),
    Option("proxy_timeout", _seconds(0.1, 86400), "5", "SECONDS", "Listeners",
           "how long a PROXY header may take"),
    Option("mode", _mode, "accept", "MODE", "Replies", "what becomes of mail",
           f"One of {_MODES}."),
    Option("delay", _delay, "0", "S|MIN,MAX", "Replies", "seconds to wait before each reply",
           "From a range, each reply draws its own. Only the client that is answered waits."),
    Option("strict", _switch, "no", "", "Replies", "insist on the order and syntax of RFC 5321",
           "Without it commands are taken in any order, even DATA as the first."),
    Option("hostname", _hostname, "", "NAME", "Replies", "what we call ourselves",
           "In the greeting and in the answer to EHLO.", otherwise="/etc/mailname, else this machine's name"),
    Option("message_size_limit", _whole(0, 2**63 - 1), "52428800", "BYTES", "Replies",
           "largest message taken; 0 is no limit", "EHLO announces it as SIZE."),
    Option("scenario", _scenarios, "", "FILE|profile:NAME", "Replies",
           "rules for refusals, delays and faults; may be given several times",
           "TOML; a rule that holds wins over the mode.", repeats=True),
    Option("attempts", _attempts, "local", "local|URL", "Replies",
           "where rules remember what was tried: on this machine, or with others in a Redis",
           "redis://[USER:PASSWORD@]HOST[:PORT][/DB], or rediss:// for TLS, and behind that, as in "
           "?prefix=NAME&timeout=SECONDS, a prefix of all keys, a time to answer in, and with TLS a ca=FILE. "
           "A password is safer in a conf file or in the environment than on a command line."),
    Option("bare_newline", _newline, "normalize", "ACTION", "Replies",
           "what becomes of lines that end with LF alone", f"One of {_NEWLINES}."),
    Option("dynamic_switch", _switch, "yes", "yes|no", "Replies",
           "obey X-Blackhole-Mode and X-Blackhole-Delay in the header of a message",
           "For that message alone; at most 60 seconds. Rules win over it."),
    Option("auth", _auth, "off", "any|off|FILE", "Replies", "who may log in with AUTH",
           "any is everybody, with any password. A file has a line user:password for each who may. "
           "Only under TLS, unless auth_plaintext is given."),
    Option("auth_plaintext", _switch, "no", "", "Replies", "offer AUTH without TLS too",
           warning="passwords may come in the clear, for anybody on the way to read"),
    Option("timeout", _seconds(0.1, 86400), "300", "SECONDS", "Replies",
           "how long a client may be silent", "RFC 5321 section 4.5.3.2 asks for 300 at least."),
    Option("ssl", _switch, "yes", "yes|no", "TLS", "offer TLS, once there is a certificate"),
    Option("ssl_port", _PORT, "465", "PORT", "TLS", "port where TLS begins with the first byte",
           "Opened on host, only with a certificate. With listen alone, only if ssl_port is given too."),
    Option("ssl_cert", _path, "", "FILE", "TLS", "certificate and chain, PEM",
           "Turns on STARTTLS on every listener, and the one on ssl_port."),
    Option("ssl_key", _path, "", "FILE", "TLS", "private key, PEM", otherwise="in the file of ssl_cert"),
    Option("ssl_ca_certs_dir", _path, "", "DIRECTORY", "TLS", "ignored, an option of Blackhole 1.x",
           warning="ignored, Blackhole asks no client for a certificate; remove it"),
    Option("max_connections", _whole(1, 1000000), "10000", "COUNT", "Limits",
           "connections of one worker; more are answered 421",
           "Fewer where it may not open so many files."),
    Option("write_timeout", _seconds(0.1, 86400), "60", "SECONDS", "Limits",
           "how long a client may take to read a reply"),
    Option("tls_timeout", _seconds(0.1, 86400), "30", "SECONDS", "Limits",
           "how long a TLS handshake may take"),
    Option("stress_timeout", _seconds(0, 86400), "10", "SECONDS", "Limits",
           "how long anything may take while connections are running out",
           "From 90 % of max_connections until there are less than 70 %. 0 is as long as at other times."),
    Option("public", _switch, "no", "", _JUDGING, "turn on all limits of this section",
           "Each has its own option besides. 0 is no limit."),
    Option("trusted", _networks, "127.0.0.0/8 ::1/128", "NETWORKS", _JUDGING,
           "who is exempt from the limits of this section", "Networks by blanks or commas, or none."),
    Option("client_connections", _COUNT, "0", "COUNT", _JUDGING,
           "connections of one client at once; more are answered 421",
           "In this section a client is an IPv4 address or an IPv6 /64, whichever workers it has got.",
           public="50"),
    Option("client_connection_rate", _COUNT, "0", "COUNT", _JUDGING,
           "new connections of one client in a minute", public="600"),
    Option("client_message_rate", _COUNT, "0", "COUNT", _JUDGING, "messages of one client in a minute"),
    Option("client_recipient_rate", _COUNT, "0", "COUNT", _JUDGING, "recipients of one client in a minute"),
    Option("client_tls_rate", _COUNT, "0", "COUNT", _JUDGING,
           "TLS handshakes of one client in a minute", public="120"),
    Option("client_byte_rate", _COUNT, "0", "BYTES", _JUDGING,
           "octets of one client in a minute; whoever sends more is answered 421",
           "Looked at once a second."),
    Option("soft_errors", _COUNT, "0", "COUNT", _JUDGING,
           "mistakes after which each reply is held back for a second",
           "A message forgives the mistakes before it.", public="10"),
    Option("max_errors", _COUNT, "0", "COUNT", _JUDGING, "mistakes after which the session is closed",
           public="20"),
    Option("max_junk", _COUNT, "0", "COUNT", _JUDGING,
           "commands that lead nowhere, such as NOOP, before they count as mistakes", public="100"),
    Option("max_recipients", _COUNT, "0", "COUNT", _JUDGING,
           "recipients of a message; more are answered 452", public="1000"),
    Option("max_messages", _COUNT, "0", "COUNT", _JUDGING,
           "messages of a session; the next is answered 421", public="1000"),
    Option("min_data_rate", _COUNT, "0", "BYTES", _JUDGING,
           "what a body must bring in a second, on average", "Measured over timeout seconds.", public="500"),
    Option("session_timeout", _seconds(0, 604800), "0", "SECONDS", _JUDGING, "how long a session may last",
           public="3600"),
    Option("workers", _workers, "auto", "COUNT", "Process", "processes that serve clients",
           otherwise="one for each CPU core"),
    Option("user", _printable, "", "USER", "Process", "who the workers become, when started by root",
           otherwise="blackhole if there is one, else nobody"),
    Option("group", _printable, "", "GROUP", "Process", "their group", otherwise="that of the user"),
    Option("pid", _path, "", "FILE", "Process", "file with the process id, locked while we run",
           "Without root the default is $XDG_RUNTIME_DIR/blackhole.pid, or ~/.blackhole.pid.",
           otherwise="/run/blackhole.pid; none in the foreground"),
    Option("drain_timeout", _seconds(0, 86400), "30", "SECONDS", "Process",
           "how long sessions may go on when told to stop"),
    Option("conf", _path, "", "FILE", "Process", "read more options from this file"),
    Option("log", _path, "", "FILE", "Logging", "file to log to",
           "Without root the default is blackhole.log in $XDG_STATE_HOME or ~/.local/state.",
           otherwise="/var/log/blackhole.log; stderr in the foreground"),
    Option("debug", _switch, "no", "", "Logging", "log every line received and sent",
           warning="every line of every client goes to the log, which is slow, fills disks and is private"),
    Option("http", _http, "127.0.0.1:8025", "ADDRESS:PORT|off", "Dashboard",
           "where a browser finds the dashboard, and Prometheus its metrics",
           "It has no password: who reaches it may look, and start runs. Names of this host besides its own "
           "stand behind: 0.0.0.0:8025,name=sink.example.com; requests by another name are refused. "
           "Where the default is taken, Blackhole does without."),
    Option("show_clients", _switch, "no", "", "Dashboard",
           "keep the addresses of clients, and show them with what they did",
           "On the dashboard, in /stats.json, and where status and report tell of all since the start."),
    Option("progress", _switch, "no", "", "Reports", "a line a second on standard error, in the foreground"),
    Option("format", _format, "text", "text|json|junit", "Reports", "how report prints what it found"),
    Option("json", _switch, "no", "", "Reports", "status and report print JSON"),
    Option("fail_on", _fail_on, "never", "never|must|should|style", "Reports",
           "report exits with 1 if the sender broke a rule of that level or of a graver one"),
)
# fmt: on
"""The one table."""

REQUESTS = {
    "help": (("-h", "--help"), "show this text"),
    "version": (("-v", "-V", "--version"), "show versions: Blackhole, Tornado, Python, OpenSSL"),
    "print-config": (("--print-config",), "show every option's value and where it came from"),
    "test": (("-t", "--test-config", "--check-config"), "check the configuration, and bind nothing"),
}
"""What can be asked for in place of an action: `Invocation.wants` -> its flags and help.

When several are given, the first of this table is done.
"""

_UNUSED = ", not used"

_BY_NAME = {option.name: option for option in OPTIONS}


@dataclass(frozen=True, slots=True)
class Invocation:
    """What one command line, with its environment and conf file, asks for."""

    action: str = "run"
    """A key of ACTIONS."""
    settings: Settings = field(default_factory=Settings)
    wants: str = ""
    """Empty, or a key of REQUESTS: to be done in place of the action."""
    warnings: tuple[str, ...] = ()
    """A line each, for standard error."""
    case: Mapping[str, str] = field(default_factory=dict)
    """What explain was told: keys of CASE."""


class _Given(NamedTuple):
    """A value somebody gave."""

    value: Any
    origin: str
    """As --print-config says it."""
    where: str
    """As errors and warnings begin."""
    code: int

    def wrong(self, message: str) -> OperatorError:
        return OperatorError(f"{self.where}: {message}", self.code)


_Found = dict[str, _Given]


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Invocation:
    """What `argv` (without the program's name) and `environ` ask for.

    Reads the conf file, and for the hostname /etc/mailname and /etc/hosts; prints and asks
    the network nothing. Raises OperatorError: EX_USAGE for the command line, else EX_CONFIG.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    words, rest = _parser().parse_known_args(_spelled(argv[:end]))
    wants = next((wants for wants in REQUESTS if wants in (words.wants or ())), "")
    if wants in ("help", "version"):
        return Invocation(wants=wants)
    action = _action(rest, argv[end + 1 :], words.daemon)
    case = {name: getattr(words, name) for name in CASE if getattr(words, name) is not None}
    if case and action != "explain":
        raise OperatorError(f"--{next(iter(case))}: only with the action explain", os.EX_USAGE)
    warnings: list[str] = []
    given = _from_environment(environ, warnings) | _from_command_line(words)
    if conf := given.get("conf"):
        given = _from_conf(conf) | given
    warnings += (
        f"{found.where}: {_BY_NAME[name].warning}"
        for name, found in given.items()
        if _BY_NAME[name].warning and found.value
    )
    return Invocation(action, _settings(given, action, environ, warnings), wants, tuple(warnings), case)


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OperatorError(message.removeprefix("argument "), os.EX_USAGE)


def _parser() -> argparse.ArgumentParser:
    """Takes the command line apart, and leaves values as they are."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    for wants, (flags, _) in REQUESTS.items():
        parser.add_argument(*flags, dest="wants", action="append_const", const=wants)
    parser.add_argument("--daemon", action="store_true")
    for name in CASE:
        parser.add_argument(f"--{name}")
    for option in OPTIONS:
        parser.add_argument(f"--{option.name}", action="append" if option.repeats else "store")
    return parser


_FLAGS = ["--daemon", *(flag for flags, _ in REQUESTS.values() for flag in flags if flag.startswith("--"))]
_SPELLINGS = {flag[2:].replace("-", "_"): flag for flag in [*_FLAGS, *(f"--{name}" for name in _BY_NAME)]}


def _spelled(argv: Sequence[str]) -> list[str]:
    """`argv` with - and _ as in the table, and a yes for every switch that stands alone."""
    words = list(argv)
    for place, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            key = name[2:].replace("-", "_")
            if not equals and key in _BY_NAME and _BY_NAME[key].read is _switch:
                following = words[place + 1].lower() if place + 1 < len(words) else ""
                equals, value = ("", "") if following in _SWITCH else ("=", "yes")
            if value == "--":  # argparse would take it away
                raise OperatorError(f"{_shown(name)}: expected a value, not '--'", os.EX_USAGE)
            words[place] = _SPELLINGS.get(key, name) + equals + value
    return words


def _action(rest: Sequence[str], last: Sequence[str], daemon: bool) -> str:
    """The action word, once it is sure that nothing else was left over."""
    for word in rest:
        if word.startswith("-"):
            name = word.partition("=")[0]
            close = _suggest("--" + name.strip("-").replace("-", "_"), _SPELLINGS.values())
            raise OperatorError(f"{_shown(name)}: no such option{close}", os.EX_USAGE)
    words = dict.fromkeys((*rest, *last, *(["start"] if daemon else [])))
    for word in words:
        if word not in ACTIONS:
            message = f"{word[:60]!r}: no such action, there are {', '.join(ACTIONS)}"
            raise OperatorError(message + _suggest(word, ACTIONS), os.EX_USAGE)
    if len(words) > 1:
        raise OperatorError(f"one action at a time, not {' and '.join(words)}", os.EX_USAGE)
    return next(iter(words), "run")


def _from_command_line(words: argparse.Namespace) -> _Found:
    found = {}
    for option in OPTIONS:
        text = getattr(words, option.name)
        if text is not None:
            text = " ".join(text) if option.repeats else text
            found[option.name] = _read(option, text, "command line", f"--{option.name}", os.EX_USAGE)
    return found


# The environment


def _from_environment(environ: Mapping[str, str], warnings: list[str]) -> _Found:
    """A variable that is empty counts as not set."""
    variables = {option.variable: option for option in OPTIONS}
    found = {}
    for name, text in environ.items():
        where = f"environment {_shown(name)}"
        if name in variables and text.startswith(("tcp://", "udp://")):
            # Kubernetes sets BLACKHOLE_PORT=tcp://10.0.0.7:25 in every pod beside a Service "blackhole".
            warnings.append(f"{where}: ignored {text[:60]!r}, set by Kubernetes for a Service of that name")
        elif name in variables:
            if text:
                option = variables[name]
                found[option.name] = _read(option, text, where, where, os.EX_CONFIG)
        elif name.startswith("BLACKHOLE_"):
            # Others may own such names, so this is no error; only what looks mistyped is spoken of.
            close = _suggest(name[10:].lower(), _BY_NAME, 0.75)
            warnings += [f"{where}: no such option{close}"] if close else []
    return found


# The conf file


_LINE = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(.*)")
_VALUE = re.compile(
    r"""(?:"([^"]*)"|'([^']*)')\s*(?:#.*)?"""  # in quotes
    r"""|([^"'#](?:.*?\S)??)?\s*(?:(?<!\S)#.*)?"""  # without; a comment has a blank before it
)


def _from_conf(conf: _Given) -> _Found:
    """One `name = value` a line. Blackhole 1.x ran the file as Python; plain assignments still load.

    `configparser` would join indented lines to the value above them, cut a comment sign
    out of quotes, and forget which line a value stood on.
    """
    found: _Found = {}
    for number, line in _lines(conf):
        where = f"{conf.value}:{number}"
        origin = f"conf {where}"
        complain = _Given(None, origin, where, os.EX_CONFIG).wrong
        assignment = _LINE.fullmatch(line)
        if not assignment:
            raise complain(str(_expected("NAME = VALUE", line)))
        name = assignment[1].replace("-", "_").lower()
        option = _BY_NAME.get(name)
        value = _VALUE.fullmatch(assignment[2])
        if not option:
            raise complain(f"{_shown(name)}: no such option{_suggest(name, _BY_NAME)}")
        if name == "conf":
            raise complain("conf: a conf file cannot name another")
        if not value:
            raise complain(f"{name}: {_expected('a value with matching quotes', assignment[2])}")
        if value[3] == "None":  # what 1.x files say for "the default"
            continue
        text = next(filter(None, value.groups()), "")
        given = _read(option, text, origin, f"{where}: {name}", os.EX_CONFIG)
        if name in found:
            first = found[name]
            if not option.repeats:
                raise complain(f"{name}: given already, at {first.origin.removeprefix('conf ')}")
            given = first._replace(value=first.value + given.value, origin=f"{first.origin},{number}")
        found[name] = given
    return found


def _lines(conf: _Given) -> Iterator[tuple[int, str]]:
    """Every line of the file that says something, stripped, with its number."""
    try:
        status = os.stat(conf.value)
        if not stat.S_ISREG(status.st_mode):
            raise OperatorError(f"{conf.where}: {conf.value}: not a regular file")
        if os.geteuid() == 0 and (
            status.st_uid or status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0))
        ):
            # Whoever writes it chooses what root opens and creates.
            raise OperatorError(f"{conf.where}: {conf.value}: others than root may write it")
        with open(conf.value, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text and not text.startswith("#"):
                    yield number, text
    except OSError as error:
        raise OperatorError(f"{conf.where}: {conf.value}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OperatorError(f"{conf.value}:{number}: not UTF-8 text") from None


# From what was given to Settings


def _read(option: Option, text: str, origin: str, where: str, code: int) -> _Given:
    try:
        return _Given(option.read(text.strip()), origin, where, code)
    except ValueError as error:
        raise OperatorError(f"{where}: {error}", code) from None


_PID = ("/run/blackhole.pid", "XDG_RUNTIME_DIR", "~/.blackhole.pid")
_LOG = ("/var/log/blackhole.log", "XDG_STATE_HOME", "~/.local/state/blackhole.log")


def _settings(given: _Found, action: str, environ: Mapping[str, str], warnings: list[str]) -> Settings:
    public = "public" in given and given["public"].value
    by_public = {option.name: public and option.public for option in OPTIONS}
    values = {option.name: option.read(by_public[option.name] or option.default) for option in OPTIONS}
    values |= {name: found.value for name, found in given.items()}
    values["hostname"] = values["hostname"] or own_name()
    if action != "run":
        values["pid"] = values["pid"] or _standard(environ, *_PID)
    if action in ("start", "restart"):
        values["log"] = values["log"] or _standard(environ, *_LOG)
    texts = {name: _text(value) for name, value in values.items()}

    cert, key = values["ssl_cert"], values["ssl_key"]
    if not values["ssl"]:
        cert = key = ""
    elif key and not cert:
        raise given["ssl_key"].wrong("a key, but no certificate; give ssl_cert too")
    elif not cert:
        idle = (given[name].where for name in ("ssl", "ssl_port") if name in given)
        warnings += (f"{where}: no effect without ssl_cert" for where in idle)
    values |= {"ssl_cert": cert, "ssl_key": key}
    if values["auth"] != "off" and not (cert or values["auth_plaintext"]):
        warnings.append(f"{given['auth'].where}: no effect without ssl_cert or auth_plaintext")

    listeners, unused = _listeners(values, given)
    origins = {name: "public" if by_public[name] else "default" for name in values}
    origins |= {name: found.origin for name, found in given.items()}
    origins |= {name: origins[name] + _UNUSED for name in unused}
    of_settings = {field.name: values[field.name] for field in fields(Settings) if field.name in values}
    return Settings(listeners=listeners, origins=origins, texts=texts, **of_settings)


def _listeners(values: Mapping[str, Any], given: _Found) -> tuple[tuple[Listener, ...], set[str]]:
    """Where to listen, and the names of options that have no say in it."""
    tls = bool(values["ssl_cert"])
    mode, delay = values["mode"], values["delay"]
    listeners = []
    unused = {"ssl"} if values["ssl"] and not tls else set()
    alone = values["listen"] and given.keys().isdisjoint(("host", "port"))
    if alone:
        unused |= {"host", "port"}
    else:
        listeners.append(Listener(values["host"], values["port"], False, mode, delay))
    if tls and ("ssl_port" in given or not alone):
        listeners.append(Listener(values["host"], values["ssl_port"], True, mode, delay))
    else:
        unused.add("ssl_port")
    for item in values["listen"]:
        listeners.append(_listener(item, mode, delay))
        if listeners[-1].tls and not tls:
            missing = "there is no ssl_cert" if values["ssl"] else "ssl is off"
            raise given["listen"].wrong(f"{item}: no TLS, as {missing}")
        if listeners[-1].proxy and not values["proxy_from"]:
            raise given["listen"].wrong(f"{item}: whose PROXY headers are to be believed? Give proxy_from")
    taken = set()
    for listener in listeners:
        if listener.port and str(listener) in taken:
            blame = next(given[name] for name in ("listen", "ssl_port", "port") if name in given)
            raise blame.wrong(f"{listener} is listened on already")
        taken.add(str(listener))
    return tuple(listeners), unused


def _standard(environ: Mapping[str, str], of_root: str, variable: str, elsewhere: str) -> str:
    """Where a file goes that nobody gave a place to, by the XDG base directory specification."""
    if os.geteuid() == 0:
        return of_root
    folder = environ.get(variable, "")
    if folder.startswith("/") and folder.isprintable():
        return f"{folder}/{os.path.basename(of_root)}"
    return _path(elsewhere)


def own_name(mailname: str = "/etc/mailname", hosts: str = "/etc/hosts") -> str:
    """The name this machine has for mail. No resolver is asked: one that fails takes many seconds."""
    host = socket.gethostname()
    for first in _words(mailname):
        if _NAME.fullmatch(" ".join(first)):
            return first[0]
        break
    for _, *names in _words(hosts):
        if host in names and "." in names[0] and not names[0].startswith("localhost."):
            host = names[0]
            break
    return host if _NAME.fullmatch(host) else "localhost"


def _words(path: str) -> Iterator[list[str]]:
    """The words of every line that has some, without comments."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if words := line.partition("#")[0].split():
                    yield words
    except OSError:
        return  # no such file: it has no answer


# What is shown


def help_text() -> str:
    """The answer to --help, for a terminal of 80 columns."""
    requests = [(", ".join(flags), about) for flags, about in REQUESTS.values()]
    lines = [
        "Usage: blackhole [OPTIONS] [ACTION]",
        "",
        "An SMTP server that accepts any mail from anyone and forgets it.",
        "Defaults stand in [brackets].",
        *_section("Actions", 15, ACTIONS.items()),
    ]
    for title, rows in _groups():
        lines += _section(title, 28, ((row.usage, row.summary) for row in rows))
    lines += [
        *_section("In place of an action", 28, requests),
        *_section(
            "With explain", 28, ((f"--{name} {value}", about) for name, (value, about) in CASE.items())
        ),
        *_section("Modes", 15, MODES.items()),
        *_section("Signals to the master", 15, SIGNALS.items()),
        "",
        *_wrapped(
            "Options may also stand in a conf file (port = 2525) or the environment (BLACKHOLE_PORT=2525). "
            "The command line wins over the environment, and that over the conf file. "
            "In names - and _ are alike."
        ),
        "",
        "Examples:",
    ]
    for command, about in EXAMPLES.items():
        lines += [f"  {command}", f"      {about}"]
    return "\n".join(lines) + "\n"


def sample_conf() -> str:
    """The text of blackhole.conf.sample."""
    lines = [
        "# A conf file for Blackhole: blackhole --conf FILE",
        "#",
        "# Every option stands here at its default. Take the # away from those you change.",
        "# One name = value a line; quotes around a value are taken off, # begins a comment.",
        "# The environment (BLACKHOLE_PORT=25) wins over this file, the command line over both.",
    ]
    for title, rows in _groups():
        lines += ["", "", f"# {title}"]
        for row in rows:
            if row.name != "conf":
                default = row.otherwise and f"Default: {row.otherwise}."
                public = row.public and f"With public: {row.public}."
                words = " ".join(filter(None, (_sentence(row.help), row.notes, default, public)))
                lines += ["", *_wrapped(words, "# "), f"#{row.name} = {row.default}".rstrip()]
    return "\n".join(lines) + "\n"


def print_config(settings: Settings) -> str:
    """Every value and where it came from: a conf file that means just these settings."""
    lines = [f"# Blackhole {__version__} would listen on"]
    for listener in settings.listeners:
        tls = ", TLS from the first byte" if listener.tls else ""
        delay = f", delay {_text(listener.delay)}" if listener.delay else ""
        proxy = ", behind a proxy" if listener.proxy else ""
        lines.append(f"#   {listener}, mode {listener.mode}{delay}{tls}{proxy}")
    for title, rows in _groups():
        lines += ["", f"# {title}"]
        for row in rows:
            origin = settings.origins.get(row.name, "default")
            value = settings.texts.get(row.name, row.default)
            mark = "#" if row.name == "conf" or origin.endswith(_UNUSED) else ""
            lines.append(f"{f'{mark}{row.name} = {_quoted(value)}':<45} # {origin}")
    return "\n".join(lines) + "\n"


def version_text() -> str:
    """What a report of a bug should begin with."""
    import platform
    import ssl

    import tornado

    return (
        f"Blackhole {__version__}\nTornado {tornado.version}\n"
        f"Python {platform.python_version()} ({platform.python_implementation()})\n{ssl.OPENSSL_VERSION}\n"
    )


def _groups() -> Iterator[tuple[str, list[Option]]]:
    for title in dict.fromkeys(option.group for option in OPTIONS):
        yield title, [option for option in OPTIONS if option.group == title]


def _section(title: str, column: int, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Two columns under a title; what is too wide for the left one has a line of its own."""
    yield from ("", f"{title}:")
    for left, right in rows:
        head = f"  {left}".ljust(column - 1) + " "
        first, *more = _wrapped(right, " " * column)
        if len(head) > column:
            yield head.rstrip()
            yield first
        else:
            yield head + first[column:]
        yield from more


def _wrapped(text: str, indent: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(text, 79, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."


def _text(value: object) -> str:
    """A value as an operator would write it."""
    match value:
        case None:
            return "0"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6f}".rstrip("0").rstrip(".")
        case (float(least), float(most)):
            return _text(least) if least == most else f"{_text(least)},{_text(most)}"
        case tuple():
            return " ".join(value)
    return str(value)


def _quoted(text: str) -> str:
    """`text` so that a conf file gives it back."""
    value = _VALUE.fullmatch(text)
    if value and (value[3] or "") == text != "None":
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def _shown(word: str) -> str:
    """A word from outside, in a message of one line."""
    return word if word.isprintable() and len(word) <= 60 else repr(word[:60])


def _suggest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """How a message about `word`, which is none of `known`, ends."""
    import difflib

    close = difflib.get_close_matches(word[:60], known, 1, likeness)
    return f"; did you mean {close[0]}?" if close else ""
