"""Privileges: which user the workers run as, and that root is dropped for good."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

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


CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def capabilities_after(code: str, user: str) -> dict[str, int]:
    """Return the sets of a process after `code` and `drop_privileges`."""
    done = run_python(f"""
        import ctypes
        libc = ctypes.CDLL(None)
        {code}
        privileges.drop_privileges({user!r}, "")
        print(open("/proc/self/status").read())
    """)
    lines = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert lines["NoNewPrivs"] == "1", done.stderr
    return {name: int(lines[name], 16) for name in CAPABILITY_SETS}


@as_root
@pytest.mark.parametrize("user", ["nobody", "root"])
def test_no_capability_is_left_in_any_set_when_root_drops_its_privileges(user: str) -> None:
    assert capabilities_after("", user) == dict.fromkeys(CAPABILITY_SETS, 0)


@as_root
def test_capability_that_a_service_manager_granted_is_given_up() -> None:
    """As by AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd unit."""
    granted = f"""
        libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid})
        words = (ctypes.c_uint32 * 6)(1 << 10, 1 << 10, 1 << 10)
        assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), words) == 0
        assert libc.prctl(47, 2, 10, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE
    """
    left = capabilities_after(dedent(granted).replace("\n", "\n" + 8 * " "), "")
    assert {name for name, value in left.items() if value} == {"CapBnd"}, "which needs CAP_SETPCAP"


@as_root
@pytest.mark.parametrize("ids", ["0, {0}, 0", "0, {0}, {0}", "{0}, {0}, 0"])
def test_root_as_the_real_or_saved_user_is_given_up(ids: str) -> None:
    """As a program of root does that lowers its effective user alone, before it starts the server."""
    done = run_python(f"""
        os.setgroups([])
        os.setresgid({ids.format(NOBODY.pw_gid)})
        os.setresuid({ids.format(NOBODY.pw_uid)})
        privileges.drop_privileges("", "")
        print(*os.getresuid(), *os.getresgid())
    """)
    found = [*map(int, done.stdout.split())]
    assert found == [NOBODY.pw_uid] * 3 + [NOBODY.pw_gid] * 3, done.stderr


@as_root
def test_capabilities_that_were_not_given_up_are_an_error() -> None:
    done = run_python("""
        from blackhole.process import capabilities
        capabilities.drop_all = lambda: None
        try:
            privileges.drop_privileges("root", "")
        except settings.OperatorError as error:
            print(error, error.code)
    """)
    assert done.stdout == f"did not give up all capabilities {os.EX_SOFTWARE}\n", done.stderr


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
