"""Hosts accept only the lab's key, and only for its ordinary user."""

import subprocess
from collections.abc import Callable

from testinfra.host import Host

Session = Callable[..., subprocess.CompletedProcess[str]]


def test_what_sshd_itself_says_it_does(host: Host) -> None:
    rows = host.check_output("sudo -n /usr/sbin/sshd -T").splitlines()
    settings = dict(line.split(" ", 1) for line in rows if " " in line)
    assert settings["passwordauthentication"] == "no"
    assert settings["kbdinteractiveauthentication"] == "no"
    assert settings["permitemptypasswords"] == "no"
    assert settings["permitrootlogin"] == "no"
    assert settings["pubkeyauthentication"] == "yes"
    # limits.d reaches a login through PAM
    assert settings["usepam"] == "yes"


def test_root_does_not_get_in_with_the_key(new_session: Session) -> None:
    assert new_session("true").returncode == 0
    refused = new_session("true", user="root")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_no_password_is_asked_for(new_session: Session) -> None:
    options = ("-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password")
    refused = new_session("true", *options)
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr
