"""An interpreter of scenarios that is naive, and written from docs/scenarios.md and not from the rules.

Rules are the tables of a scenario file. What is random cannot be predicted: where a rule has a random choice,
the reply that was received tells which choice was made, and the model takes it if it was a possible one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Rule = dict[str, Any]

IN_BRACKETS = re.compile(r"<([^>]*)>(?:.* SIZE=([0-9]+))?")

UNITS = {"k": 1 << 10, "s": 1, "m": 60, "h": 3600}

PERIODS = {"second": 1, "minute": 60, "hour": 3600}

USUAL = {
    "CONNECT": 220, "STARTTLS": 220, "AUTH": 502, "DATA": 354, "VRFY": 252, "EXPN": 252,
    "HELP": 214, "QUIT": 221, "other": 500,
}  # fmt: skip
"""Codes of the replies to commands that are carried out, where they are not 250."""

NAMED = ("HELO", "EHLO", "MAIL", "RCPT", "BDAT", "RSET", "NOOP")
"""Further phases, whose usual reply is 250."""

THROTTLED_AT = {"messages": "MAIL", "recipients": "RCPT", "bytes": ".", "connections": "CONNECT"}

NOTHING = "nothing"
CLOSES = {"close", "close-before-reply", "half-reply", "close-after-reply"}


def same(one: str, other: str) -> bool:
    """Return whether two letters are the same but for their case."""
    return one == other or one.lower() == other.lower() or one.upper() == other.upper()


def fits(glob: str, text: str) -> bool:
    """Return whether a glob matches the whole text."""
    reached = {0}
    for sign in glob:
        if sign == "*":
            reached = {place for start in reached for place in range(start, len(text) + 1)}
        else:
            reached = {
                place + 1
                for place in reached
                if place < len(text) and (sign == "?" or same(sign, text[place]))
            }
    return len(text) in reached


def any_fits(globs: str | list[str], text: str) -> bool:
    listed = globs if isinstance(globs, list) else [globs]
    return any(fits("" if glob == "<>" else glob, text) for glob in listed)


PART_FORMS = {
    "code": "[245][0-5][0-9]",
    "status": r"[245]\.[0-9]{1,3}\.[0-9]{1,3}",
    "seconds": r"[0-9]{1,4}(\.[0-9]{1,3})?",
    "phase": "[a-z-]+",
}


def named_parts(glob: str, text: str, phases: set[str]) -> dict[str, str] | None:
    """Return the named parts of a text; None if the glob does not match it."""
    for parts in all_parts(glob, text.lower(), {}):
        if "status" in parts and parts["status"][0] != parts.get("code", parts["status"])[0]:
            continue
        words = {"end-of-data" if phase == "." else phase.lower() for phase in phases if phase}
        if parts.get("phase") not in (None, *words) or float(parts.get("seconds", 0)) > 3600:
            continue
        return parts
    return None


def all_parts(glob: str, text: str, found: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield the parts for each way in which a text matches a glob, with those found before it."""
    if not glob:
        if not text:
            yield found
    elif glob[0] == "*":
        for place in range(len(text) + 1):
            yield from all_parts(glob[1:], text[place:], found)
    elif glob[0] == "{":
        name, _, rest = glob[1:].partition("}")
        for place in range(1, min(64, len(text)) + 1):
            part = text[:place]
            if re.fullmatch(PART_FORMS.get(name, f"[^{re.escape(rest[:1])}]+" if rest else ".+"), part):
                yield from all_parts(rest, text[place:], {**found, name: part})
    elif text and (glob[0] == "?" or same(glob[0], text[0])):
        yield from all_parts(glob[1:], text[1:], found)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def compares(comparison: str | int, number: int) -> bool:
    """Return whether a number is, say, "<= 2"."""
    sign, digits = str(comparison).split() if " " in str(comparison) else ("=", str(comparison))
    limit = int(digits.rstrip("k")) * (UNITS["k"] if digits.endswith("k") else 1)
    return {
        "<=": number <= limit,
        ">=": number >= limit,
        "<": number < limit,
        ">": number > limit,
        "=": number == limit,
    }[sign]


def seconds(value: Any) -> float:
    if not isinstance(value, str):
        return float(value)
    return PERIODS.get(value) or float(value[:-1]) * UNITS[value[-1]]


def network(client: str) -> str:
    """Return the network that a greylist counts by."""
    length = 24 if ip_address(client).version == 4 else 64
    return str(ip_network(f"{client}/{length}", strict=False))


def domain(address: str) -> str:
    return address.rpartition("@")[2].lower()


def shown(text: str) -> str:
    """Return a text as replies show it."""
    return re.sub("[^ -~]", "?", text.encode().decode("latin-1"))


def is_random(rule: Rule, windows: dict[str, Rule]) -> bool:
    """Return whether a rule has a random choice."""
    return (
        "chance" in rule
        or (isinstance(rule.get("reply"), list) and len(rule["reply"]) > 1)
        or (isinstance(rule.get("delay"), list) and rule["delay"][0] != rule["delay"][1])
        or bool(windows.get(rule.get("window", ""), {}).get("ramp"))
    )


@dataclass
class Received:
    """A reply, and the seconds for which it was held back."""

    lines: list[str]
    waited: float

    @property
    def code(self) -> int:
        return int(self.lines[-1][:3])

    @property
    def text(self) -> str:
        return "\n".join([self.lines[0], *(line[4:] for line in self.lines[1:])])


@dataclass
class Memory:
    """What the rules of all sessions remember."""

    attempts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    first_seen: dict[tuple[Any, ...], float] = field(default_factory=dict)
    passed: set[tuple[Any, ...]] = field(default_factory=set)
    quotas: dict[tuple[Any, ...], tuple[int, float]] = field(default_factory=dict)
    buckets: dict[tuple[Any, ...], tuple[float, float]] = field(default_factory=dict)
    windows: dict[tuple[Any, ...], tuple[int, list[tuple[int, int]]]] = field(default_factory=dict)
    held: Counter[tuple[Any, ...]] = field(default_factory=Counter)


@dataclass
class Model:
    """A listener with its scenario."""

    rules: list[Rule]
    windows: dict[str, Rule]
    listener: str
    mode: str = "accept"
    strict: bool = False
    available: bool = True
    """The attempt store answers."""
    seeded: bool = False
    """The file has a seed."""
    now: float = 0.0
    memory: Memory = field(default_factory=Memory)


class ModelSession:
    """One connection. Its methods for commands return what is wrong with the reply; empty: nothing."""

    def __init__(self, model: Model, client: str) -> None:
        self.model, self.client = model, client
        self.tls = self.greeted = self.refused = False
        self.helo = ""
        self.quotas: Counter[tuple[Any, ...]] = Counter()
        self.slots: list[tuple[Any, ...]] = []
        self.phases: set[str] = set()
        """The phases whose rules are asked."""
        self.messages = 1
        """The number of the message that is sent, or comes next."""
        self.found: dict[str, str] = {}
        """The named parts of the rule that was looked at last."""
        self.ended = ""
        """What became of the connection: "close", "reset" or "stall"."""
        self.clear()

    def clear(self) -> None:
        """Begin without a transaction."""
        self.sender = self.recipient = ""
        self.drawn_at: tuple[str, ...] = ()
        self.size = 0
        self.used: frozenset[str] = frozenset()
        """Extensions that the transaction has used."""
        self.has_sender = self.utf8 = self.mail_refused = self.recipient_refused = False
        self.recipients = 0
        self.chunked = self.chunk_refused = False

    def close(self) -> None:
        for slot in self.slots:
            self.model.memory.held[slot] -= 1

    def command(self, line: str, received: Received | None) -> str:
        """Take a command and the reply to it; return what is wrong with the reply."""
        verb, _, argument = line.partition(" ")
        phase = verb if verb in (*USUAL, *NAMED) else "other"
        if self.refused and phase != "QUIT":
            return self.expect(received, 503)
        if self.model.strict and not self.in_order(phase):
            return self.refuse(phase, received, 503)
        before = self.helo, self.sender, self.recipient, self.size, self.drawn_at
        used_before = self.used
        if phase in ("HELO", "EHLO"):
            self.helo = argument
        if phase in ("MAIL", "RCPT"):
            match = IN_BRACKETS.search(argument)
            assert match
            address = match[1]
            if self.model.strict and address and "@" not in address:
                return self.refuse(phase, received, 501)
            if not address.isascii() and "SMTPUTF8" not in argument and not (phase == "RCPT" and self.utf8):
                return self.refuse(phase, received, 553)
            if phase == "RCPT" and self.has_no_sender:
                return self.expect(received, 503)
            if phase == "MAIL":
                self.sender, self.recipient, self.size = address, "", int(match[2] or 0)
                self.used = frozenset(word for word in ("SIZE", "SMTPUTF8") if f" {word}" in argument)
            else:
                self.recipient = address
            self.drawn_at = ()
        if phase in ("DATA", "BDAT"):
            has_no_recipient = self.recipient_refused and not self.recipients
            failed = self.chunk_refused if phase == "BDAT" else self.chunked
            if failed or self.has_no_sender or has_no_recipient:
                return self.refuse(phase, received, 503)
        # A message begins with DATA or with its first chunk, and rules for either see it.
        begins = phase == "BDAT" and not self.chunked
        if phase == "BDAT":
            self.used |= {"CHUNKING"}
        problem, done = self.decide("DATA" if begins else phase, received, also="BDAT" if begins else "")
        if phase == "BDAT" and not done:
            self.refuse_chunk()
        if done:
            self.carry_out(phase, argument)
        else:
            self.helo, self.sender, self.recipient, self.size, drawn_at = before
            self.used = used_before
            if phase in ("MAIL", "RCPT"):
                self.drawn_at = drawn_at
            if phase == "MAIL":
                self.clear()
                self.mail_refused = True
            elif phase == "RCPT":
                self.recipient_refused = True
        return problem

    @property
    def has_no_sender(self) -> bool:
        """Whether MAIL was refused, and nothing before it is left of the transaction."""
        return self.mail_refused and not (self.has_sender or self.recipients)

    def refuse(self, phase: str, received: Received | None, code: int) -> str:
        """Refuse a command for what is wrong with it; return what is wrong with the reply."""
        self.mail_refused |= phase == "MAIL"
        self.recipient_refused |= phase == "RCPT"
        if phase == "BDAT":
            self.refuse_chunk()
        return self.expect(received, code)

    def refuse_chunk(self) -> None:
        """Refuse a chunk, and all that follow it in the transaction."""
        if self.chunked or self.has_sender or self.recipients:
            self.chunked = self.chunk_refused = True

    def in_order(self, phase: str) -> bool:
        if phase in ("MAIL", "AUTH"):
            return self.greeted and not self.has_sender
        if phase == "RCPT":
            return self.has_sender and not self.chunked
        return phase not in ("DATA", "BDAT") or self.recipients > 0

    def carry_out(self, phase: str, argument: str) -> None:
        if phase in ("HELO", "EHLO", "RSET"):
            self.clear()
            self.greeted = self.greeted or phase != "RSET"
        elif phase == "MAIL":
            sender, size, used = self.sender, self.size, self.used
            self.clear()
            self.sender, self.size, self.used, self.has_sender = sender, size, used, True
            self.utf8 = "SMTPUTF8" in argument
        elif phase == "RCPT":
            self.recipients += 1
        elif phase == "STARTTLS" and not self.tls:
            self.clear()
            self.tls, self.greeted, self.helo = True, False, ""
        elif phase == "BDAT":
            self.chunked = True
        elif phase == "QUIT":
            self.ended = "close"

    def greeting(self, received: Received | None) -> str:
        problem, done = self.decide("CONNECT", received)
        self.refused = not done
        return problem

    def end_of_message(self, fields: list[str], octets: int, received: Received | None) -> str:
        self.size = octets
        problem, _ = self.decide(".", received, fields)
        self.clear()
        self.messages += 1
        return problem

    def decide(
        self, phase: str, received: Received | None, fields: list[str] | None = None, also: str = ""
    ) -> tuple[str, bool]:
        """Return what is wrong with a reply, and whether the command is carried out.

        Rules for the phase `also` apply too.
        """
        self.phases = {phase, also}
        usual = 250 if also else USUAL.get(phase, 250)
        if phase == "STARTTLS" and self.tls:
            usual = 503
        if received is not None and received.code == 421:
            self.ended = "close"
        self.count_attempt(phase)
        for number, rule in enumerate(self.model.rules):
            reply = self.answer(number, rule, phase, received, fields or [])
            if reply != NOTHING:
                return self.obey(rule, reply, usual, received)
        code = usual
        if self.model.mode == "bounce" and phase == ".":
            code = 0
        if self.model.mode == "greylist" and phase == "RCPT" and self.model.available:
            code = 450 if self.greylisted("mode", {"min": 300, "max": 172800}) else usual
        return self.expect(received, code), code == usual

    def count_attempt(self, phase: str) -> None:
        """Count an attempt, if a rule may match it that reads the count, or begins to draw."""
        pair = self.sender.lower(), self.recipient.lower()
        key = (phase, *pair) if any(pair) else (phase, self.client)
        may_match = [
            rule
            for rule in self.model.rules
            if self.phases.intersection(rule["phase"]) and self.matches_addresses(rule)
        ]
        draws = self.model.seeded and any(is_random(rule, self.model.windows) for rule in may_match)
        begins = draws and (not self.recipient or not self.drawn_at or phase in self.drawn_at)
        if begins or any("attempt" in rule for rule in may_match):
            self.model.memory.attempts[key] += 1
        if draws:
            self.drawn_at = (phase,) if begins else (*self.drawn_at, phase)
        self.attempt = self.model.memory.attempts[key]

    def matches_addresses(self, rule: Rule) -> bool:
        return self.fulfils(rule, ("client", "listener", "tls", "sender", "recipient"), [])

    def fulfils(self, rule: Rule, keys: tuple[str, ...], fields: list[str]) -> bool:
        """Return whether the conditions with some keys hold, and those that must not hold do not."""
        for key in keys:
            values = listed(rule[key]) if key in rule else []
            plain = [one for one in values if not str(one).startswith("!")]
            unwanted = [str(one)[1:].strip() for one in values if str(one).startswith("!")]
            unwanted += listed(rule.get("not", {}).get(key, []))
            if plain and not any(self.holds(key, one, fields) for one in plain):
                return False
            if any(self.holds(key, one, fields) for one in unwanted):
                return False
        return True

    def holds(self, key: str, value: Any, fields: list[str]) -> bool:
        """Return whether a condition with one value holds."""
        if key in ("size", "recipients", "message"):
            here = self.phases & {"RCPT"}
            numbers = {"size": self.size, "recipients": self.recipients + len(here), "message": self.messages}
            return compares(value, numbers[key])
        if key == "tls":
            return self.tls is bool(value)
        if key == "client":
            return ip_address(self.client) in ip_network(value)
        if key == "extension":
            return value in self.used or (value == "STARTTLS" and self.tls)
        if key == "header":
            return any(any_fits(value, one) for one in fields)
        texts = {
            "listener": self.model.listener,
            "sender": self.sender,
            "recipient": self.recipient,
            "helo": self.helo,
        }
        if "{" in str(value):
            return named_parts(value, texts[key], self.phases) is not None
        return any_fits(value, texts[key])

    def parts(self, rule: Rule) -> dict[str, str]:
        """Return the named parts of the texts that a rule matches."""
        found: dict[str, str] = {}
        for key, text in (("sender", self.sender), ("recipient", self.recipient)):
            globs = [str(one) for one in listed(rule.get(key, []))]
            if any("{" in one for one in globs):
                matching = (named_parts(one, text, self.phases) for one in globs)
                found |= next((one for one in matching if one is not None), {})
        return found

    def answer(
        self, number: int, rule: Rule, phase: str, received: Received | None, fields: list[str]
    ) -> Any:
        """Return the reply of a rule if it matches, as its file has it, or None for none; else NOTHING."""
        if (
            not self.phases.intersection(rule["phase"])
            or not self.matches_addresses(rule)
            or not self.fulfils(rule, ("helo", "size", "recipients", "message", "extension"), [])
            or not self.fulfils(rule, ("header",), fields)
            or not self.is_open(rule)
        ):
            return NOTHING
        self.found = self.parts(rule)
        unknown = not self.model.available and ("attempt" in rule or self.asks_store(rule))
        reply = self.reply_of(rule)
        if "weights" in rule:
            reply = [one for one, weight in zip(reply, rule["weights"], strict=True) if weight]
        if unknown:
            reply = rule.get("when_unknown", "accept")
        elif "attempt" in rule and not compares(rule["attempt"], self.attempt):
            return NOTHING
        if ("chance" in rule or self.model.windows.get(rule.get("window", ""), {}).get("ramp")) and (
            received is None or received.text not in self.possible(reply)
        ):
            return NOTHING
        if unknown:
            return NOTHING if reply == "accept" else reply
        return reply if self.is_blocked(number, rule) else NOTHING

    def asks_store(self, rule: Rule) -> bool:
        return "greylist" in rule or rule.get("throttle", {"per": "connection"}).get("per") != "connection"

    def is_open(self, rule: Rule) -> bool:
        if "window" not in rule:
            return True
        window = self.model.windows[rule["window"]]
        since = self.model.now - seconds(window["at"])
        if since >= 0 and "every" in window:
            since %= seconds(window["every"])
        return 0 <= since < seconds(window["for"])

    def reply_of(self, rule: Rule) -> Any:
        if "blocklist" in rule:
            listed = [
                (key, word)
                for key, word in (
                    ("client", "Client host [{client}]"),
                    ("helo", "Helo command [{helo}]"),
                    ("sender", "Sender address [{sender}]"),
                    ("recipient", "Recipient address [{recipient}]"),
                )
                if key in rule
            ]
            return f"554 5.7.1 Service unavailable; {listed[0][1]} blocked using {rule['blocklist']}"
        if "greylist" in rule and not {"reply", "delay", "then", "hide", "add"} & rule.keys():
            return "450 4.7.1 Greylisted, try again later"
        return rule.get("reply")

    def possible(self, reply: Any) -> list[str]:
        """Return the replies that may be received for a reply of a rule."""
        words = {
            "client": self.client,
            "helo": self.helo,
            "sender": self.sender,
            "recipient": self.recipient,
        }
        found = []
        for one in reply if isinstance(reply, list) else [reply]:
            text = str(one)
            if "status" not in self.found:
                text = text.replace("{status} ", "")
            for name, word in self.found.items():
                text = text.replace(f"{{{name}}}", shown(word))
            text = re.sub(r"\{(word|domain|phase|status)\}", "", text)
            for name, word in words.items():
                text = text.replace(f"{{{name}}}", shown(word))
            found.append(text)
        return found

    # Limiters.

    def owner(self, by: str | list[str]) -> tuple[str, ...]:
        """Return what a limit is counted for."""
        known = {
            "client": self.client,
            "network": network(self.client),
            "helo": self.helo.lower(),
            "user": "",
            "sender": self.sender.lower(),
            "sender-domain": domain(self.sender),
            "recipient": self.recipient.lower(),
            "recipient-domain": domain(self.recipient),
            "pair": f"{self.sender.lower()} {self.recipient.lower()}",
            "listener": self.model.listener,
            "all": "",
        }
        return tuple(known[name] for name in (by if isinstance(by, list) else [by]))

    def is_blocked(self, number: int, rule: Rule) -> bool:
        if "greylist" in rule:
            bounds = rule["greylist"] if isinstance(rule["greylist"], dict) else {}
            return self.greylisted(number, {"min": 300, "max": 172800} | bounds)
        if "throttle" not in rule:
            return True
        throttle = rule["throttle"]
        owner = self.owner(throttle.get("by", "client"))
        if "concurrent" in throttle:
            slot = number, owner
            if slot in self.slots:
                return False
            if self.model.memory.held[slot] >= throttle["concurrent"]:
                return True
            self.model.memory.held[slot] += 1
            self.slots.append(slot)
            return False
        (what,) = throttle.keys() & THROTTLED_AT.keys()
        amount, limit = self.size if what == "bytes" else 1, throttle[what]
        if throttle["per"] == "connection":
            if self.quotas[number, owner] + amount > limit:
                return True
            self.quotas[number, owner] += amount
            return False
        period = seconds(throttle["per"])
        if "burst" in throttle:
            return self.has_no_tokens((number, owner), amount, throttle["burst"], limit / period)
        if throttle.get("window") == "sliding":
            return self.slides((number, owner), amount, limit, period)
        used, began = self.model.memory.quotas.get((number, owner), (0, self.model.now))
        if not used or self.model.now - began >= period:
            used, began = 0, self.model.now
        if used + amount > limit:
            return True
        self.model.memory.quotas[number, owner] = used + amount, began
        return False

    def has_no_tokens(self, key: tuple[Any, ...], amount: int, burst: int, rate: float) -> bool:
        """Take from a bucket of tokens; return whether it has too few."""
        now = self.model.now
        tokens, at = self.model.memory.buckets.get(key, (float(burst), now))
        tokens = min(burst, tokens + (now - at) * rate)
        if tokens < amount - 1e-5:
            return True
        self.model.memory.buckets[key] = tokens - amount, now
        return False

    def slides(self, key: tuple[Any, ...], amount: int, limit: int, period: float) -> bool:
        """Take from a sliding window; return whether it is full."""
        parts = 15 if limit <= 15 else 7 if limit <= 255 else 3 if limit <= 65535 else 1
        length, now = round(period * 1e6) // parts, round(self.model.now * 1e6)
        began, taken = self.model.memory.windows.get(key, (now, []))
        part = (now - began) // length
        if not any(its_part >= part - parts for its_part, _ in taken):
            began, part, taken = now, 0, []
        used = sum(number for its_part, number in taken if its_part > part - parts)
        leaving = sum(number for its_part, number in taken if its_part == part - parts)
        inside = length - (now - began) % length
        if leaving:
            used += (leaving - 1) * inside // length
        if used + amount > limit:
            return True
        self.model.memory.windows[key] = began, [*taken, (part, amount)]
        return False

    def greylisted(self, rule: int | str, bounds: dict[str, Any]) -> bool:
        triplet = rule, self.owner(bounds.get("by", ["network", "sender", "recipient"]))
        memory, now = self.model.memory, self.model.now
        if triplet in memory.passed:
            return False
        first = memory.first_seen.get(triplet)
        if first is None or now - first > seconds(bounds["max"]):
            memory.first_seen[triplet] = now
            return True
        if now - first < seconds(bounds["min"]):
            return True
        memory.passed.add(triplet)
        return False

    # Effects.

    def obey(self, rule: Rule, reply: Any, usual: int, received: Received | None) -> tuple[str, bool]:
        """Return what is wrong with a reply by a rule, and whether the command is carried out."""
        if reply is not None and reply == rule.get("when_unknown"):
            rule = {"reply": reply}
        fault = rule.get("then", "")
        own = reply not in (None, "accept")
        replaced = fault in ("close", "reset", "stall")
        done = not replaced and not (own and int(self.possible(reply)[0][:3]) >= 400)
        if isinstance(fault, str) and fault:
            self.ended = "close" if fault in CLOSES else fault
        if fault == "close-before-reply" or (replaced and not own):
            return ("" if received is None else f"{received} in place of none"), done
        if fault == "half-reply":
            return ("" if received is None else f"{received} in place of half a reply"), done
        if received is None:
            return "no reply", done
        other_class = own and int(self.possible(reply)[0][:3]) // 100 not in (usual // 100, 4, 5)
        if not own or other_class:
            problem = self.expect(received, usual, rule)
        else:
            allowed = self.possible(reply)
            problem = "" if received.text in allowed else f"{received.lines} in place of {allowed}"
        return problem or self.check_wait(rule, received), done

    def check_wait(self, rule: Rule, received: Received) -> str:
        if isinstance(rule.get("then"), dict):
            return ""
        delay = rule.get("delay", 0)
        if delay == "{seconds}":
            delay = float(self.found.get("seconds", 0))
        least, most = delay if isinstance(delay, list) else (seconds(delay), seconds(delay))
        waited = received.waited
        return "" if least - 1e-6 <= waited <= most + 1e-6 else f"held back for {waited} and not {delay}"

    def expect(self, received: Received | None, code: int, rule: Rule | None = None) -> str:
        """Return what is wrong with a reply that should have a code; 0 is any refusal."""
        if received is None:
            return f"no reply in place of {code}"
        if not code:
            return "" if received.code >= 400 else f"{received.lines} in place of a refusal"
        if received.code != code:
            return f"{received.lines} in place of {code}"
        offered = {line[4:] for line in received.lines[1:]}
        for key, expected in (("hide", False), ("add", True)):
            for line in (rule or {}).get(key, ()):
                if (line in offered) is not expected:
                    return f"{key} {line}: {received.lines}"
        return "" if rule or not received.waited else f"held back for {received.waited}"
