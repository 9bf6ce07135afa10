"""Privileges: which user the workers run as, and that root is dropped for good."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blackhole.process import privileges
from blackhole.settings import OperatorError
from tests.external_programs import requires
from tests.program import AS_NOBODY, NOBODY, as_root, environment, run_python


def refusal(user: str, group: str = "") -> tuple[str, int]:
    with pytest.raises(OperatorError) as caught:
        privileges.resolve(user, group)
    return str(caught.value), caught.value.code


def test_resolve_refuses_unknown_users_and_groups() -> None:
    assert refusal("no-such-user") == ("there is no user no-such-user", os.EX_NOUSER)
    assert refusal("4000000001") == ("there is no user 4000000001", os.EX_NOUSER)
    assert refusal("root", "no-such-group") == ("there is no group no-such-group", os.EX_NOUSER)
    assert refusal("9" * 30)[1] == os.EX_NOUSER


@as_root
def test_resolve_returns_the_ids_of_the_user_that_root_asks_for() -> None:
    nobody = NOBODY.pw_uid, NOBODY.pw_gid
    assert privileges.resolve("nobody", "") == nobody
    assert privileges.resolve(str(nobody[0]), "") == nobody
    assert privileges.resolve("nobody", "root") == (nobody[0], 0)
    assert privileges.resolve("4000000001", "4000000002") == (4000000001, 4000000002)
    assert privileges.resolve("root", "") == (0, 0)
    try:
        pwd.getpwnam("blackhole")
    except KeyError:
        assert privileges.resolve("", "") == nobody
        assert privileges.resolve("", "root") == (nobody[0], 0)


def test_only_root_may_ask_for_another_user() -> None:
    done = run_python(f"""
        if os.geteuid() == 0:
            {AS_NOBODY}
        def ask(*names):
            try:
                print(privileges.resolve(*names) == (os.getuid(), os.getgid()))
            except settings.OperatorError as error:
                print(error.code)
        ask("", "")
        ask(str(os.getuid()), str(os.getgid()))
        ask("root", "")
        ask("", "root")
        privileges.drop_privileges("", "")
        print(os.getresuid() == (os.getuid(),) * 3 != (0,) * 3)
    """)
    assert done.stdout.split() == ["True", "True", "77", "77", "True"], done.stderr


@as_root
def test_dropped_root_cannot_be_regained() -> None:
    done = run_python("""
        os.setgroups([0, 4, 27])
        privileges.drop_privileges("nobody", "")
        print(open("/proc/self/status").read())
        print("CoreLimit:", *resource.getrlimit(resource.RLIMIT_CORE))
        print("Mask:", oct(os.umask(0)))
        for step in (os.setuid, os.seteuid, os.setgid, os.setegid, lambda gid: os.setgroups([gid])):
            try:
                step(0)
            except PermissionError:
                print("Refused:", step)
    """)
    lines = [line.partition(":") for line in done.stdout.splitlines()]
    seen = {name: " ".join(value.split()) for name, _, value in lines}
    uid, gid = str(NOBODY.pw_uid), str(NOBODY.pw_gid)
    assert seen["Uid"] == " ".join([uid] * 4), done.stderr
    assert seen["Gid"] == " ".join([gid] * 4)
    assert seen["Groups"] == gid
    assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == 0
    assert seen["NoNewPrivs"] == "1"
    assert seen["CoreLimit"] == "0 0"
    assert seen["Mask"] == "0o27"
    assert done.stdout.count("Refused:") == 5


@as_root
def test_workers_that_run_as_root_keep_no_supplementary_group() -> None:
    done = run_python("""
        os.setgroups([4, 27])
        privileges.drop_privileges("root", "")
        print(os.getresuid(), os.getgroups())
    """)
    assert done.stdout == "(0, 0, 0) [0]\n", done.stderr


@as_root
def test_root_without_the_capability_to_change_user_is_an_error() -> None:
    """As in a container without CAP_SETUID."""
    done = run_python("""
        import ctypes
        for capability in (6, 7):  # PR_CAPBSET_DROP: CAP_SETGID, CAP_SETUID
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
        code = "from blackhole.process import privileges; privileges.drop_privileges('nobody', '')"
        os.execv(sys.executable, [sys.executable, "-c", code])
    """)
    reason = f"cannot become user {NOBODY.pw_uid}, group {NOBODY.pw_gid}: Operation not permitted"
    assert done.stderr.endswith(f"OperatorError: {reason}\n")


@as_root
@pytest.mark.parametrize("step", ["setgroups", "setresgid", "setresuid"])
def test_step_that_silently_failed_is_an_error(step: str) -> None:
    """Exim did not look (CVE-2011-0017)."""
    done = run_python(f"""
        os.setgroups([0, 4])
        os.{step} = lambda *ids: None
        try:
            privileges.drop_privileges("nobody", "")
        except settings.OperatorError as error:
            print(error.code, error)
    """)
    reason = f"did not become user {NOBODY.pw_uid}, group {NOBODY.pw_gid}"
    assert done.stdout == f"{os.EX_SOFTWARE} {reason}\n", done.stderr


@as_root
def test_root_that_can_be_regained_is_an_error() -> None:
    done = run_python("""
        os.setuid = lambda uid: None
        try:
            privileges.drop_privileges("nobody", "")
        except settings.OperatorError as error:
            print(error.code)
    """)
    assert done.stdout == f"{os.EX_SOFTWARE}\n", done.stderr


@as_root
@requires("strace")
def test_groups_are_dropped_before_the_gid_and_the_gid_before_the_uid(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = "from blackhole.process import privileges; privileges.drop_privileges('nobody', '')"
    subprocess.run(
        [
            "strace",
            "-o",
            str(trace),
            "-e",
            "trace=/set.*[gu]id.*,setgroups,prctl",
            sys.executable,
            "-c",
            code,
        ],
        env=environment(),
        check=True,
    )
    calls = re.findall(r"^(set\w+)\(.*= (\S+)", trace.read_text(), re.MULTILINE)
    assert calls == [("setgroups", "0"), ("setresgid", "0"), ("setresuid", "0"), ("setuid", "-1")]
