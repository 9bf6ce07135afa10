"""The actions of commands: each changes the state of the session and returns the reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from blackhole.smtp import replies
from blackhole.smtp.arguments import Mailbox
from blackhole.smtp.auth import FAIL, PASS, Credentials, authenticate, challenge, failure_challenge
from blackhole.smtp.chunking import Chunk
from blackhole.smtp.offer import NO_OFFER
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import BINARY_BODY, CHUNKED, GREETED, MAIL, RCPT, UNDECLARED, SessionState

Action = Callable[[SessionState, Any], Reply]
"""Carries a command out: changes the state and returns the reply."""

MAX_LMTP_RECIPIENTS: Final = 1000
MAX_LMTP_OCTETS: Final = 1 << 15
"""Recipients of a message in LMTP, whose addresses are kept until it is answered, and octets of all of them:
enough for 100 of the longest (RFC 5321 4.5.3.1.8). Further ones get 452, and belong in another message."""


def connect(state: SessionState, argument: bytes) -> Reply:
    """Greet the client (RFC 5321 3.1)."""
    return state.listener.greeting


def helo(state: SessionState, argument: object) -> Reply:
    """Begin a session without extensions (RFC 5321 4.1.1.1)."""
    state.reset()
    state.stage |= GREETED
    state.offered = NO_OFFER
    return state.listener.helo


def ehlo(state: SessionState, argument: object) -> Reply:
    """Begin a session, and offer the extensions (RFC 5321 4.1.1.1)."""
    state.reset()
    state.stage |= GREETED
    listener, number = state.listener, state.offer_number
    state.offered = listener.offers[number]
    return listener.ehlo[number]


def mail(state: SessionState, sender: Mailbox) -> Reply:
    """Begin a transaction, in place of one that is open (RFC 5321 4.1.1.2)."""
    if state.stage > GREETED:
        state.reset()
    if sender.parameters:
        size = int(sender.parameters.get(b"SIZE", UNDECLARED))
        limit = state.listener.config.message_size_limit
        if limit and size > limit:
            return replies.TOO_LARGE
        state.size = size
        state.smtputf8 = b"SMTPUTF8" in sender.parameters
        body = sender.parameters.get(b"BODY", b"").upper()
        state.eightbit = state.smtputf8 or body in (b"8BITMIME", b"BINARYMIME")
        if body == b"BINARYMIME":
            state.stage |= BINARY_BODY
    state.stage |= MAIL
    state.refused = 0
    return replies.SENDER_OK


def rcpt(state: SessionState, recipient: Mailbox) -> Reply:
    """Add a recipient (RFC 5321 4.1.1.3)."""
    state.stage |= RCPT
    state.recipients += 1
    return replies.RECIPIENT_OK


def add_recipient(state: SessionState, recipient: Mailbox) -> Reply:
    """Add a recipient of LMTP, to which the message will be answered on its own (RFC 2033 4.2)."""
    if not state.recipients:
        state.forward_paths = []
        state.forward_path_octets = 0
    octets = state.forward_path_octets + len(recipient.address)
    if len(state.forward_paths) == MAX_LMTP_RECIPIENTS or octets > MAX_LMTP_OCTETS:
        return replies.TOO_MANY_RECIPIENTS
    state.forward_paths.append(recipient.address)
    state.forward_path_octets = octets
    return rcpt(state, recipient)


def data(state: SessionState, argument: object) -> Reply:
    """Ask for the message (RFC 5321 4.1.1.4)."""
    return replies.START_INPUT


def bdat(state: SessionState, piece: Chunk) -> Reply:
    """Accept a chunk of the message, unless the message is too large by now (RFC 3030 2)."""
    if not piece.is_last and 0 < state.listener.config.message_size_limit < state.octets:
        return replies.TOO_LARGE
    state.stage |= CHUNKED
    return replies.LAST_CHUNK if piece.is_last else replies.CHUNK_OK


def end(state: SessionState, argument: object) -> Reply:
    """Accept a message, unless it is larger than the limit (RFC 1870 6.3)."""
    limit = state.listener.config.message_size_limit
    if 0 < limit < state.octets:
        return replies.TOO_LARGE if state.octets <= 2 * limit else replies.FAR_TOO_LARGE
    return replies.QUEUED


def rset(state: SessionState, argument: object) -> Reply:
    """Forget the transaction (RFC 5321 4.1.1.5)."""
    state.reset()
    return replies.RESET


def starttls(state: SessionState, argument: object) -> Reply:
    """Agree to a TLS handshake (RFC 3207 4)."""
    if state.secure:
        return replies.ALREADY_SECURE
    return replies.START_TLS if state.listener.config.starttls else replies.NOT_OFFERED


def auth(state: SessionState, found: Credentials | bytes) -> Reply:
    """Verify the credentials of an AUTH exchange that has ended (RFC 4954 4)."""
    if not isinstance(found, Credentials):
        return replies.NOT_OFFERED
    if authenticate(state.listener.config.passwords, found):
        state.authenticated, state.must_authenticate = True, False
        return replies.AUTHENTICATED
    return refuse_credentials(state, found, replies.AUTHENTICATION_FAILED)


def refuse_credentials(state: SessionState, found: Credentials | bytes, refusal: Reply) -> Reply:
    """Return the reply to credentials that are refused: with a token, a challenge that says why comes first,
    and the refusal follows the client's answer to it (RFC 7628 3.2.3)."""
    if not isinstance(found, Credentials) or not found.failure_challenge or refusal.code < 500:
        return refusal
    state.auth_exchange = failure_challenge(refusal)
    next(state.auth_exchange)
    return challenge(found.failure_challenge)


def xclient(state: SessionState, attributes: Mapping[bytes, bytes]) -> Reply:
    """Learn who the client is from another server, and begin anew (Postfix XCLIENT_README)."""
    state.named_client = state.named_client.updated(attributes)
    return replies.CLIENT_NAMED


def xforward(state: SessionState, attributes: Mapping[bytes, bytes]) -> Reply:
    """Learn whose message comes next, which is only shown (Postfix XFORWARD_README)."""
    state.forwarded_client = state.forwarded_client.updated(attributes)
    return replies.OK


def help_(state: SessionState, argument: bytes) -> Reply:
    """Explain a verb, or list all of them (RFC 5321 4.1.1.8)."""
    return state.listener.help.get(argument.strip().upper(), state.listener.help[b""])


def quit_(state: SessionState, argument: object) -> Reply:
    """Say goodbye (RFC 5321 4.1.1.10)."""
    state.quit_received = True
    return replies.GOODBYE


def always(reply: Reply) -> Action:
    """Return an action that does nothing but answer."""
    return lambda state, argument: reply


def by_request(otherwise: Reply, passed: Reply, failed: Reply) -> Action:
    """Return an action whose reply the client chooses with "pass=" or "fail=" anywhere in the argument."""

    def answer(state: SessionState, argument: bytes) -> Reply:
        text = argument.lower()
        if FAIL in text:
            return failed
        return passed if PASS in text else otherwise

    return answer
