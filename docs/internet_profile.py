"""Make profile:internet of the profiles of providers: their rules, each for the recipients at a provider."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from blackhole.rules import scenario

DOMAINS: Final = {
    "gmail": ("gmail.com", "googlemail.com"),
    "microsoft": ("outlook.com", "hotmail.com", "live.com", "msn.com"),
    "yahoo": ("yahoo.com", "ymail.com", "aol.com"),
    "icloud": ("icloud.com", "me.com", "mac.com"),
    "orange": ("orange.fr", "wanadoo.fr"),
    "gmx": ("gmx.net", "gmx.de", "gmx.com", "web.de"),
    "proofpoint": ("proofpoint.com",),
    "mimecast": ("mimecast.com",),
    "barracuda": ("barracuda.com",),
    "comcast": ("comcast.net",),
    "qq": ("qq.com", "foxmail.com"),
}
"""Profile of a provider -> its domains. Domains such as gmail.test and mail.gmail.test stand in for them."""

HEAD: Final = f"""\
# Written by `make reference` from the profiles of providers, which say what is modelled on whom. Do not edit.
about = "The internet: the profiles of {len(DOMAINS)} providers at once, by the domain of the recipient."
seed = 1

# Shares that --set changes, as in: blackhole --scenario profile:internet --set gmail_deferral=0.05
[set]
"""

BLOCK: Final = "\n[[rule]]\n"

PHASES_WITHOUT_RECIPIENT: Final = ("CONNECT", "EHLO")


def profile_text() -> str:
    """Return the text of the profile."""
    blocks = [block for provider in DOMAINS for block in blocks_of(provider)]
    used = {*re.findall(r'"\$(\w+)"', "".join(blocks))}
    variables = "".join(
        f"{provider}_{name} = {default:g}\n"
        for provider in DOMAINS
        for name, default in source_of(provider).variables.items()
        if f"{provider}_{name}" in used
    )
    return HEAD + variables + "".join(f"{BLOCK}{block}" for block in blocks)


def source_of(provider: str) -> scenario.ScenarioSource:
    """Return the profile of a provider."""
    return scenario.read_source(f"{scenario.PROFILE_PREFIX}{provider}")


def blocks_of(provider: str) -> Iterator[str]:
    """Yield the rules of a provider for its recipients; without those of phases that know no recipient."""
    text = source_of(provider).text
    _, *blocks = text.split(BLOCK)
    for block in blocks:
        (rule,) = tomllib.loads(f"[[rule]]\n{block}")["rule"]
        phase = phase_of(rule)
        if phase not in PHASES_WITHOUT_RECIPIENT:
            heading = (
                f'name = "{provider}: {rule["name"]}"',
                f'phase = "{phase}"',
                f"recipient = {globs_of(provider)}",
            )
            rest = re.sub(r"^(name|phase) = .*\n", "", block, flags=re.MULTILINE)
            rest = re.sub(r'"\$(\w+)"', rf'"${provider}_\1"', rest)
            yield "\n".join((*heading, rest.rstrip("\n"), ""))


def phase_of(rule: dict[str, Any]) -> str:
    """Return where a rule is tried when it has to know the recipient: after MAIL."""
    throttle = rule.get("throttle", {})
    if "concurrent" in throttle:
        return "CONNECT"
    if "messages" in throttle:
        return "DATA"
    phase = str(rule.get("phase", "RCPT"))
    return "RCPT" if phase == "MAIL" else phase


def globs_of(provider: str) -> str:
    """Return the recipients at a provider, as TOML."""
    globs = [f"*@{domain}" for domain in (*DOMAINS[provider], f"{provider}.test")]
    return "[" + ", ".join(f'"{glob}"' for glob in (*globs, f"*@*.{provider}.test")) + "]"
