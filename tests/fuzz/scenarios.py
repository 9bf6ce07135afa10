"""Random scenarios and sessions, each compared with the model of scenarios."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from blackhole.rules.attempt_store import Answer, HeldSlot, Update
from blackhole.rules.evaluator import RuleEnvironment, RulePolicy
from blackhole.rules.scenario_file import parse_rules
from blackhole.settings import OperatorError
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.smtp.state import ListenerConfig
from tests.fuzz.scenario_model import Model, ModelSession, Received, Rule

BLOCK_SCENARIOS = 50
"""Scenarios in a block."""

LISTENER = "192.0.2.25:25"

CLIENTS = ("192.0.2.1", "192.0.2.77", "198.51.100.1", "2001:db8::1")
NAMES = ("one.example", "MÜLLER.example", "two.test")
ADDRESSES = (
    *("ann@a.example", "ANN@A.example", "bob@b.example", "müller@ü.example", "MÜLLER@Ü.EXAMPLE", "x"),
    *("450-4.2.1@a.example", "550-4.2.1@b.example", "Rcpt551-Full@a.example", "421-at-data@b.example"),
    *("wait-2.5@a.example", "wait-3601@a.example", "250-2.1.5@b.example", "451-at-end-of-data@a.example"),
)
FIELDS = ("Subject: Ein Rückruf", "subject: RÜCKRUF", "X-Mailer: swaks", "Subject:  two  ", "List-Id: a")

GLOBS = (
    "*@a.example",
    "ann@*",
    "MÜLLER@*",
    "m?ller@*",
    "*@?.example",
    "*",
    "b*b@*",
    "<>",
    "*Ü*",
    "x",
    "??l*",
)
NAMED_GLOBS = (
    "{code}-{status}@*",
    "*{code}-{word}@a.*",
    "{phase}{code}-?*@*",
    "{code}-at-{phase}@{domain}",
    "wait-{seconds}@*",
)
"""Globs with named parts."""
NAME_GLOBS = ("*.example", "müller.*", "M?LLER*", "two.test", "*")
FIELD_GLOBS = ("Subject: *RÜCKRUF*", "Subject: *r?ckruf", "*: swaks", "X-*: *", "Subject: two")

PHASES = (
    *("CONNECT", "HELO", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", ".", "RSET", "NOOP"),
    *("VRFY", "EXPN", "HELP", "QUIT", "other"),
)
LIKELY = ("MAIL", "RCPT", "RCPT", "RCPT", "DATA", ".", "RSET", "EHLO", "CONNECT")

DRIP = {"drip": 100}

OWNERS = (
    *("client", "all", "sender-domain", "recipient-domain", "network", "helo", "user", "sender"),
    *("recipient", "pair", "listener"),
)

ENDS = {"close": NextAction.CLOSE, "reset": NextAction.ABORT, "stall": NextAction.HANG}


class DictStore:
    """A store of attempts that forgets nothing."""

    def __init__(self, available: bool) -> None:
        self.available = available
        self.records: dict[bytes, tuple[int, float, float]] = {}
        self.held: dict[bytes, int] = {}

    def update(self, key: bytes, now: float, change: Update[Answer]) -> Answer | None:
        if not self.available:
            return None
        self.records[key], answer = change(self.records.get(key, (0, now, now)), now)
        return answer

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | None:
        if not self.available:
            return None
        if self.held.get(key, 0) >= limit:
            return True
        self.held[key] = self.held.get(key, 0) + 1
        return False

    def release(self, slot: HeldSlot) -> None:
        assert isinstance(slot, bytes)
        self.held[slot] -= 1


def toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml(one)}' for key, one in value.items())} }}"
    return str(value)


def table(kind: str, values: Rule) -> str:
    return f"[[{kind}]]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in values.items())


def some(source: Random, values: tuple[str, ...]) -> Any:
    """Return one of the values, or a list of them."""
    if source.random() < 0.7:
        return source.choice(values)
    return source.sample(values, 2)


CONDITIONS: dict[str, tuple[Any, ...]] = {
    "sender": GLOBS,
    "recipient": GLOBS,
    "helo": NAME_GLOBS,
    "client": ("192.0.2.0/24", "198.51.100.1", "2001:db8::/32"),
    "listener": ("*:25", "192.0.2.*", "*:26"),
    "tls": (True, False),
    "size": ("> 10", "<= 30", "> 1k", "= 0"),
    "header": FIELD_GLOBS,
    "recipients": ("> 1", "<= 1", 2),
    "message": ("> 1", "<= 2", 1),
    "extension": ("SIZE", "SMTPUTF8", "CHUNKING", "STARTTLS"),
}
"""Conditions, and values of them."""

WITH_SIGNS = ("sender", "recipient", "helo", "client", "listener", "header", "extension")
"""Those that a "!" negates."""


def negate_some(source: Random, rule: Rule) -> None:
    """Add conditions that must not hold, or turn some round."""
    for key in WITH_SIGNS:
        if key in rule and source.random() < 0.2:
            values = rule[key] if isinstance(rule[key], list) else [rule[key]]
            signed = [f"!{one}" if source.random() < 0.7 else one for one in values]
            rule[key] = signed if len(signed) > 1 else signed[0]
    if source.random() < 0.12:
        keys = source.sample([*CONDITIONS], source.choice((1, 1, 2)))
        rule["not"] = {
            key: some(source, CONDITIONS[key]) if key in WITH_SIGNS else source.choice(CONDITIONS[key])
            for key in keys
        }


def name_parts(source: Random, rule: Rule) -> None:
    """Let some globs for addresses have named parts."""
    for key in ("sender", "recipient"):
        if source.random() < 0.08:
            rule[key] = some(source, (*NAMED_GLOBS, *NAMED_GLOBS, *GLOBS))


def use_parts(source: Random, rule: Rule, number: int) -> None:
    """Let the reply or the delay of a rule show its named parts; an invalid rule is left out later."""
    globs = " ".join(str(rule.get(key, "")) for key in ("sender", "recipient"))
    if "{seconds}" in globs and source.random() < 0.7:
        rule["delay"] = "{seconds}"
        rule.pop("reply", None)
    elif "{code}" in globs and isinstance(rule.get("reply"), str) and source.random() < 0.7:
        words = [f"{{{name}}}" for name in ("phase", "word", "domain", "status") if f"{{{name}}}" in globs]
        status = "{status} " if "{status}" in globs else ""
        rule["reply"] = f"{{code}} {status}p{number} {' '.join(words)}".strip()


def random_owners(source: Random) -> Any:
    """Return what a limit is counted for."""
    if source.random() < 0.75:
        return source.choice(OWNERS)
    return source.sample(OWNERS, 2)


def random_rule(source: Random, number: int) -> Rule:
    """Return a rule that may be invalid."""
    likely = source.choice(LIKELY)
    rule: Rule = {"phase": [likely] if source.random() < 0.8 else source.sample(PHASES, 3)}
    if source.random() < 0.08:
        rule["phase"] = list(PHASES)
    if source.random() < 0.25:
        rule["name"] = source.choice(("same", "same", "1", "2", "3", "4"))
    for key, likelihood, value in (
        ("sender", 0.25, lambda: some(source, GLOBS)),
        ("recipient", 0.3, lambda: some(source, GLOBS)),
        ("helo", 0.12, lambda: some(source, NAME_GLOBS)),
        ("client", 0.15, lambda: some(source, ("192.0.2.0/24", "198.51.100.1", "2001:db8::/32"))),
        ("listener", 0.05, lambda: source.choice(("*:25", "192.0.2.*", "*:26"))),
        ("tls", 0.08, lambda: source.random() < 0.5),
        ("size", 0.12, lambda: source.choice(("> 10", "<= 30", "> 1k", "= 0"))),
        ("header", 0.1 if likely != "." else 0.5, lambda: some(source, FIELD_GLOBS)),
        ("recipients", 0.06, lambda: source.choice(CONDITIONS["recipients"])),
        ("message", 0.06, lambda: source.choice(CONDITIONS["message"])),
        ("extension", 0.06, lambda: some(source, CONDITIONS["extension"])),
        ("attempt", 0.2, lambda: source.choice(("<= 1", "<= 2", "> 1", 2, ">= 3"))),
        ("window", 0.12, lambda: source.choice(("early", "again", "rising"))),
    ):
        if source.random() < likelihood:
            rule[key] = value()
    negate_some(source, rule)
    name_parts(source, rule)
    code = source.choice((450, 451, 550, 550, 421, 250))
    if code == 250 and "DATA" in rule["phase"]:
        code = 354
    text = f"{code} {source.choice(('', f'{code // 100}.7.1 '))}r{number}"
    if code == 354:
        text = f"354 r{number}"
    kind = source.random()
    if kind < 0.6:
        rule["reply"] = text + source.choice(("", "", " {client}", " {sender} {recipient}", " {helo}"))
    elif kind < 0.68:
        rule["reply"] = [text, f"{text} or another"]
        if source.random() < 0.5:
            rule["weights"] = source.choice(([1, 0], [0, 2], [3, 0.5]))
    elif kind < 0.74:
        rule["reply"] = "accept"
    elif kind < 0.8:
        rule["blocklist"] = "zen.example.org"
    elif kind < 0.83 and rule["phase"] == ["EHLO"]:
        rule["hide"], rule["add"] = ["PIPELINING"], ["XTEST 1"]
    use_parts(source, rule, number)
    if source.random() < 0.15 or len(rule) == 1:
        rule["delay"] = source.choice((1, "2s", [1, 3]))
    if source.random() < 0.12:
        rule["then"] = source.choice(
            (
                "close",
                "reset",
                "stall",
                "close-before-reply",
                "half-reply",
                "close-after-reply",
                {"drip": 100},
            )
        )
    limiter = source.random()
    if limiter < 0.15:
        rule["greylist"] = source.choice((True, {"min": 60, "max": "1h"}, {"min": 0}))
        if source.random() < 0.3:
            rule["greylist"] = {"min": 60, "by": random_owners(source)}
    elif limiter < 0.4:
        what = source.choice(("messages", "recipients", "bytes", "connections", "concurrent"))
        limit = source.choice((20, 60)) if what == "bytes" else source.choice((0, 1, 2, 3))
        throttle = rule["throttle"] = {what: limit, "by": random_owners(source)}
        if what != "concurrent":
            throttle["per"] = source.choice(("minute", "connection", "minute", "90s"))
        kind = source.random()
        if kind < 0.35:
            throttle["window"] = "sliding"
        elif kind < 0.6:
            throttle["burst"] = source.choice((1, 2, 50))
        if source.random() < 0.7:
            at = {"messages": "MAIL", "recipients": "RCPT", "bytes": "."}
            if what == "concurrent":
                at["concurrent"] = source.choice(("CONNECT", "EHLO", "MAIL", "RCPT", "RCPT"))
            rule["phase"] = [at.get(what, "CONNECT")]
    elif (
        limiter < 0.5
        and isinstance(rule.get("reply"), str)
        and rule["reply"] != "accept"
        and "then" not in rule
    ):
        rule["chance"] = 0.5
    if code == 354:
        # At BDAT such a rule has no reply of its own, by which the model could tell what was drawn.
        rule.pop("chance", "")
        if rule.get("window") == "rising":
            del rule["window"]
    if {"attempt", "greylist", "throttle"} & rule.keys() and source.random() < 0.3:
        rule["when_unknown"] = f"451 4.3.0 u{number}"
    return rule


WINDOWS: dict[str, Rule] = {
    "early": {"name": "early", "at": 0, "for": "100s"},
    "again": {"name": "again", "at": 50, "for": "1m", "every": "2m"},
    "rising": {"name": "rising", "at": 10, "for": "1h", "ramp": "1m"},
}

WINDOW_TEXT = "".join(table("window", window) for window in WINDOWS.values())


def can_be_modelled(rule: Rule) -> bool:
    """Return whether the model can tell what a rule does from the reply that was received."""
    uncertain = "chance" in rule or rule.get("window") == "rising"
    has_text = isinstance(rule.get("reply"), str) and rule["reply"] != "accept" and "then" not in rule
    return not uncertain or (has_text and not {"greylist", "throttle"} & rule.keys())


def random_rules(source: Random) -> list[Rule]:
    """Return the rules of a scenario, all of them valid."""
    rules: list[Rule] = []
    wanted = source.randrange(1, 9)
    while len(rules) < wanted:
        rule = random_rule(source, len(rules))
        try:
            parse_rules(table("rule", rule) + WINDOW_TEXT, "random")
        except OperatorError:
            continue
        if can_be_modelled(rule):
            rules.append(rule)
            if {"greylist", "throttle"} & rule.keys() and source.random() < 0.5:
                rules.append(twin(rule, len(rules)))
    return rules


def twin(rule: Rule, number: int) -> Rule:
    """Return a rule that remembers as the one before it does, and has its name, or its number as a name."""
    other = {**rule, "name": rule.get("name", str(number))}
    if isinstance(rule.get("reply"), str) and rule["reply"] != "accept":
        other["reply"] = f"{rule['reply']} twin"
    return other


# Sessions.


def random_commands(source: Random) -> Iterator[str]:
    """Yield the commands of a session, mostly in an order that makes sense."""
    while True:
        if source.random() < 0.6:
            yield f"{source.choice(('EHLO', 'HELO'))} {source.choice(NAMES)}"
        for _ in range(source.randrange(1, 4)):
            yield mail_command(source)
            for _ in range(source.randrange(1, 4)):
                yield f"RCPT TO:<{source.choice(ADDRESSES)}>"
                if source.random() < 0.25:
                    yield any_command(source)
            yield "DATA"
        yield any_command(source)


def mail_command(source: Random) -> str:
    size = f" SIZE={source.choice((5, 25, 2000))}" if source.random() < 0.3 else ""
    return f"MAIL FROM:<{source.choice(('', *ADDRESSES))}> SMTPUTF8{size}"


def any_command(source: Random) -> str:
    return source.choice(
        (
            *("RSET", "RSET", "NOOP", "NOOP", "VRFY bob", "EXPN list", "HELP", "STARTTLS", "AUTH PLAIN"),
            *(
                "BDAT 7\r\nhello",
                "BDAT 6\r\nQUIT",
                "XYZZY",
                "DATA",
                mail_command(source),
                f"RCPT TO:<{source.choice(ADDRESSES)}>",
            ),
            *(f"EHLO {source.choice(NAMES)}", f"HELO {source.choice(NAMES)}", "QUIT"),
        )
    )


@dataclass
class Played:
    """A connection: the session, its model, and what the session has sent."""

    session: Session
    model: ModelSession
    commands: Iterator[str]
    log: list[str] = field(default_factory=list)
    pending: bytes = b""
    waited: float = 0.0

    def take(self, out: bytes) -> list[Received]:
        """Return the replies that are complete, after all that the session waits for."""
        replies: list[Received] = []
        session = self.session
        while True:
            self.pending += out
            *lines, self.pending = self.pending.split(b"\r\n")
            reply: list[str] = []
            for line in lines:
                reply.append(line.decode())
                if line[3:4] == b" ":
                    replies.append(Received(reply, self.waited))
                    reply, self.waited = [], 0.0
            if reply:
                self.pending = "\r\n".join([*reply, ""]).encode() + self.pending
            session.counted_events.clear()
            if session.next_action is NextAction.SLEEP:
                self.waited += session.wait
                out = session.resume()
            elif session.next_action is NextAction.LOOKUP:
                out = session.resume_with_answer(None)
            else:
                return replies

    def send(self, source: Random, octets: bytes) -> list[Received]:
        """Send octets, cut at will; return the replies."""
        replies: list[Received] = []
        while octets and self.session.next_action is NextAction.READ:
            size = len(octets) if source.random() < 0.5 else source.randrange(1, len(octets) + 1)
            replies += self.take(self.session.receive(octets[:size]))
            octets = octets[size:]
        return replies


@dataclass
class ScenarioResult:
    """The result of a run, or of a block of it."""

    scenarios: int = 0
    commands: int = 0
    differences: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, block: ScenarioResult) -> None:
        """Add the result of a block."""
        self.scenarios += block.scenarios
        self.commands += block.commands
        self.differences += block.differences
        self.examples = [*self.examples, *block.examples][:10]


class Comparison:
    """A scenario that is played by the server and by the model."""

    def __init__(self, source: Random) -> None:
        self.source = source
        rules = random_rules(source)
        mode = source.choice(("accept", "accept", "accept", "greylist", "bounce"))
        available = source.random() < 0.85
        seeded = source.random() < 0.5
        self.text = "seed = 7\n" * seeded + "".join(table("rule", rule) for rule in rules) + WINDOW_TEXT
        self.model = Model(rules, WINDOWS, LISTENER, mode, source.random() < 0.3, available, seeded)
        config = ListenerConfig(
            hostname="mx.test", strict=self.model.strict, starttls=True, fast_path=source.random() < 0.6
        )
        environment = RuleEnvironment(lambda: self.model.now, DictStore(available))
        parsed = parse_rules(self.text, "random")
        policy = RulePolicy(parsed, mode, LISTENER, Random(7), environment)
        self.engine = SMTPEngine(config, Random(7), policy=policy)
        self.open: list[Played] = []
        self.ends: set[str] = set()
        """The ways in which connections have ended."""
        self.commands = 0

    def run(self, turns: int) -> str:
        """Play so many turns; return how the server differs from the model, empty if it does not."""
        for _ in range(turns):
            if self.source.random() < 0.15:
                self.model.now += self.source.choice((1, 30, 60, 299, 400))
            if not self.open or (len(self.open) < 3 and self.source.random() < 0.2):
                problem = self.arrive()
            else:
                problem = self.say(self.source.choice(self.open))
            if problem:
                return problem
        return ""

    def arrive(self) -> str:
        client = self.source.choice(CLIENTS)
        played = Played(
            self.engine.session(client=client), ModelSession(self.model, client), random_commands(self.source)
        )
        self.open.append(played)
        self.commands += 1
        replies = played.take(played.session.greet())
        played.log.append(f"greeting {replies}")
        problem = played.model.greeting(replies[0] if replies else None)
        return self.after(played, problem, replies[1:])

    def say(self, played: Played) -> str:
        """Send a group of commands, or a message."""
        if played.session.in_body:
            return self.send_message(played)
        group = [next(played.commands)]
        while self.source.random() < 0.5 and group[-1].split()[0] not in ("DATA", "STARTTLS", "QUIT"):
            group.append(next(played.commands))
        replies = played.send(self.source, "".join(f"{line}\r\n" for line in group).encode())
        played.log.append(f"{group} {replies}")
        problem = ""
        for line in group:
            if problem or played.model.ended:
                break
            self.commands += 1
            problem = played.model.command(line, replies.pop(0) if replies else None)
        return self.after(played, problem, replies)

    def send_message(self, played: Played) -> str:
        fields = self.source.sample(FIELDS, self.source.randrange(3))
        body = "".join(f"{one}\r\n" for one in fields).encode() + b"\r\nHello\r\n"
        replies = played.send(self.source, body + b".\r\n")
        played.log.append(f"{fields} {replies}")
        self.commands += 1
        # Blanks around a value are no part of the field.
        unfolded = [": ".join(part.strip() for part in one.split(":", 1)) for one in fields]
        problem = played.model.end_of_message(unfolded, len(body), replies.pop(0) if replies else None)
        return self.after(played, problem, replies)

    def after(self, played: Played, problem: str, left: list[Received]) -> str:
        """Compare what follows the replies; return all that is wrong."""
        session, ended = played.session, played.model.ended
        if session.next_action is NextAction.START_TLS:
            session.secured()
        if left and not problem:
            problem = f"{left} besides"
        expected = ENDS.get(ended, NextAction.READ)
        if not problem and session.next_action is not expected:
            problem = f"{session.next_action} in place of {expected}"
        if ended:
            self.ends.add(ended)
            session.closed()
            played.model.close()
            self.open.remove(played)
        return "\n".join((problem, self.describe(), *played.log)) if problem else ""

    def describe(self) -> str:
        model = self.model
        return (
            f"mode {model.mode}, strict {model.strict}, store {model.available}, {model.now} s\n{self.text}"
        )


def run_block(seed: int, number: int, count: int = BLOCK_SCENARIOS) -> ScenarioResult:
    """Run a block of scenarios, which is the same for the same seed and number."""
    result = ScenarioResult()
    for turn in range(count):
        comparison = Comparison(Random(f"{seed} {number} {turn}"))
        difference = comparison.run(60)
        result.scenarios += 1
        result.commands += comparison.commands
        if difference:
            result.differences += 1
            result.examples = [*result.examples, f"scenario {number} {turn}: {difference}"][:10]
    return result
