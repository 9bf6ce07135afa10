"""Privileges: which user the workers run as, and dropping root for good."""

from __future__ import annotations

import grp
import os
import pwd
import resource

from blackhole.process import capabilities
from blackhole.process.prctl import PR_GET_NO_NEW_PRIVS, PR_SET_NO_NEW_PRIVS, prctl
from blackhole.settings import OperatorError


def resolve(user: str, group: str) -> tuple[int, int]:
    """Return the uid and gid that the workers run with, from names or numbers.

    Two numbers are taken as they are, whether or not such a user exists. Where `user` is empty,
    root's workers run as `blackhole`, or else as `nobody`; those of any other user run as that user.

    Raises OperatorError: EX_NOUSER for an unknown name, EX_NOPERM for what only root may ask.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return _ids(user, group)
    if not user:
        user, group = str(uid), group or str(gid)
    wanted = _ids(user, group)
    if wanted != (uid, gid):
        raise OperatorError(
            f"only root may run workers as user {user}, group {group or wanted[1]}", os.EX_NOPERM
        )
    return wanted


def user_id(user: str) -> int:
    """Return the uid of a name or a number. Raises OperatorError (EX_NOUSER) for an unknown name."""
    return int(user) if user.isdecimal() else _account(user).pw_uid


def _ids(user: str, group: str) -> tuple[int, int]:
    if user.isdecimal() and group.isdecimal():
        return int(user), int(group)
    account = _account(user) if user else _default_account()
    return account.pw_uid, group_id(group) if group else account.pw_gid


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise OperatorError(f"there is no user {user}", os.EX_NOUSER) from None


def _default_account() -> pwd.struct_passwd:
    try:
        return _account("blackhole")
    except OperatorError:
        return _account("nobody")


def group_id(group: str) -> int:
    """Return the gid of a name or a number. Raises OperatorError (EX_NOUSER) for an unknown name."""
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise OperatorError(f"there is no group {group}", os.EX_NOUSER) from None


def drop_privileges(user: str, group: str) -> None:
    """Become the user for good, if this process is root; in any case give up every capability.

    A process that is not root gives up other real and saved ids than its effective ones.

    Capabilities are given up by root too, and by a user whose service manager granted one. No later
    execve(2) may gain privileges. The order is groups, gid, uid: each step needs a right that the
    next one gives up. Each result is verified; a call that fails without notice would leave a worker
    with root's rights (Exim, CVE-2011-0017).

    Raises OperatorError: EX_NOPERM if the kernel refuses, EX_SOFTWARE if the result is not as
    asked for.
    """
    uid, gid = resolve(user, group)
    os.umask(0o027)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    was_root = os.geteuid() == 0
    try:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        capabilities.drop_bounding()
        if was_root:
            os.setgroups([gid])
        # Whoever started with an effective user of its own may have root as the real or the saved one.
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        capabilities.drop_all()
    except OSError as error:
        raise OperatorError(
            f"cannot become user {uid}, group {gid}: {error.strerror}", os.EX_NOPERM
        ) from None
    dropped = (os.getresuid(), os.getresgid()) == ((uid,) * 3, (gid,) * 3)
    if (was_root and os.getgroups() != [gid]) or not dropped or _can_regain_root(uid):
        raise OperatorError(f"did not become user {uid}, group {gid}", os.EX_SOFTWARE)
    if capabilities.remaining() or prctl(PR_GET_NO_NEW_PRIVS) != 1:
        raise OperatorError("did not give up all capabilities", os.EX_SOFTWARE)


def _can_regain_root(uid: int) -> bool:
    """Return whether a process that dropped to `uid` can become root again; False if `uid` is root."""
    if uid == 0:
        return False
    try:
        os.setuid(0)
    except OSError:  # EPERM, or EINVAL in a user namespace without root
        return False
    return True
