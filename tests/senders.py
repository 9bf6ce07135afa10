"""Real senders: programs and libraries of other projects that send mail, and how to let each of them do it.

Most come from Debian packages that are unpacked, not installed, as mail servers conflict with each other:

    python3 tests/senders.py .venv/senders

fetches them, and those of npm. This module needs no other one, so that it can do so before there is anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent.parent / ".venv" / "senders"
"""Where the senders are; BLACKHOLE_TEST_SENDERS says otherwise."""

DEBIAN: Final = """
exim4-base exim4-daemon-light opensmtpd dma nullmailer ssmtp esmtp libesmtp6 s-nail mutt sendemail git-email
libphp-phpmailer php8.2-cli php8.2-common ruby3.1 libruby3.1 libmail-java libactivation-java
prometheus-alertmanager tcl8.6 libtcl8.6 tcllib lua5.4 lua-socket monit
libsisimai-perl libclass-accessor-lite-perl libjson-perl

libgnutls-dane0 libunbound8 libevent-2.1-7 libidn12 libnsl2 libtokyocabinet9 libgpgme11 libassuan0
libargon2-1 libsodium23 libmagic1 libio-socket-inet6-perl libsocket6-perl libmailtools-perl libtimedate-perl
"""
"""Packages of the senders, and of the libraries that a machine for tests may lack."""

NPM: Final = ("nodemailer", "emailjs")

SENDER: Final = "ann@client.test"
RECIPIENT: Final = "bob@example.com"
OTHER: Final = "carol@example.com"
REFUSED: Final = "refused@example.com"
DEFERRED: Final = "later@example.com"

TEXT: Final = (
    f"From: {SENDER}\nTo: {RECIPIENT}\nSubject: a test\nDate: Mon, 01 Jan 2024 12:00:00 +0000\n"
    "\nHello\n.\n..\n.x\n\nGoodbye\n"
)
"""A message with lines that begin with dots."""


def fetch(folder: Path) -> None:
    """Download the packages, and unpack them below `folder`."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    # As root, apt would warn that its own user cannot write here.
    options = ("-qq", "-o", "APT::Sandbox::User=root")
    subprocess.run(["apt-get", "download", *options, *DEBIAN.split()], cwd=packages, check=True)
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        package.unlink()
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM], cwd=folder, check=True)


ETC_FILES: Final = (
    "passwd",
    "group",
    "hosts",
    "nsswitch.conf",
    "services",
    "protocols",
    "ld.so.cache",
    "localtime",
)
"""What a program may need of /etc besides its own files."""


@dataclass
class Delivery:
    """What a sender is to do: one message from SENDER."""

    port: int
    recipients: tuple[str, ...]
    tls: bool
    """With STARTTLS, and a check of the server's certificate where the sender can."""
    ca: str
    """The path of the authority's certificate."""
    folder: Path
    """For the sender's own files; empty."""
    senders: Path
    """Where the senders were unpacked."""

    def path(self, name: str) -> str:
        """Return the path of an unpacked file."""
        return str(self.senders / name)

    @property
    def perl(self) -> dict[str, str]:
        """Return the environment in which Perl finds the unpacked modules."""
        folders = ("usr/share/perl5", "usr/lib/x86_64-linux-gnu/perl5/5.36")
        return {"PERL5LIB": ":".join(map(self.path, folders))}

    def write(self, name: str, text: str) -> str:
        """Write a file into the folder; return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def run(self, *command: str, text: str = TEXT, env: Mapping[str, str] | None = None) -> str:
        """Run a command with the unpacked libraries; return its output, whatever its status."""
        libraries = ":".join(self.path(f"{one}lib/x86_64-linux-gnu") for one in ("usr/", ""))
        environment = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": libraries,
            **(env or {}),
        }
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment,
            cwd=self.folder,
        )
        self.output = f"{done.returncode}\n{done.stdout}{done.stderr}"
        return self.output

    def run_as_installed(
        self, script: str, files: Mapping[str, str], users: Mapping[str, int] | None = None
    ) -> str:
        """Run a shell script where the files are below /etc and /var/spool is empty, without changing them.

        In a mount namespace of its own, as these programs find their files nowhere else. Needs root.
        """
        etc = self.folder / "etc"
        etc.mkdir()
        for name in ETC_FILES:
            if (Path("/etc") / name).exists():
                shutil.copy(Path("/etc") / name, etc)
        for name, text in files.items():
            path = etc / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o644)
        with (etc / "passwd").open("a") as passwd, (etc / "group").open("a") as group:
            for user, number in (users or {}).items():
                passwd.write(f"{user}:x:{number}:{number}::/:/bin/false\n")
                group.write(f"{user}:x:{number}:\n")
        mounts = f"mount --bind {etc} /etc && mount -t tmpfs tmpfs /var/spool && mount -t tmpfs tmpfs /run"
        return self.run("unshare", "-m", "sh", "-c", f"set -e; {mounts}; {script}")


def _smtplib(delivery: Delivery) -> None:
    import smtplib
    import ssl

    with smtplib.SMTP("127.0.0.1", delivery.port, local_hostname="client.test", timeout=20) as client:
        if delivery.tls:
            client.starttls(context=ssl.create_default_context(cafile=delivery.ca))
        with suppress(smtplib.SMTPRecipientsRefused):
            client.sendmail(SENDER, delivery.recipients, TEXT)


def _aiosmtplib(delivery: Delivery) -> None:
    import asyncio

    import aiosmtplib

    async def send() -> None:
        with suppress(aiosmtplib.SMTPRecipientsRefused):
            await aiosmtplib.send(
                TEXT,
                sender=SENDER,
                recipients=list(delivery.recipients),
                hostname="127.0.0.1",
                port=delivery.port,
                local_hostname="client.test",
                start_tls=delivery.tls,
                cert_bundle=delivery.ca if delivery.tls else None,
            )

    asyncio.run(send())


def _curl(delivery: Delivery) -> None:
    mail = delivery.write("mail", TEXT)
    recipients = [part for one in delivery.recipients for part in ("--mail-rcpt", one)]
    tls = ["--ssl-reqd", "--cacert", delivery.ca] if delivery.tls else []
    command = (
        "curl",
        "-sS",
        "--crlf",
        "--mail-rcpt-allowfails",
        "--mail-from",
        SENDER,
        *recipients,
        *tls,
        "-T",
        mail,
    )
    # The libraries of the machine, not those that were unpacked.
    delivery.run(*command, f"smtp://127.0.0.1:{delivery.port}/client.test", env={"LD_LIBRARY_PATH": ""})


def _swaks(delivery: Delivery) -> None:
    tls = ["--tls", "--tls-verify", "--tls-ca-path", delivery.ca] if delivery.tls else []
    server = (
        "--server",
        "127.0.0.1",
        "--port",
        str(delivery.port),
        "--helo",
        "client.test",
        "--from",
        SENDER,
    )
    delivery.run(
        "swaks",
        *server,
        "--to",
        ",".join(delivery.recipients),
        "--data",
        "-",
        *tls,
        env={"LD_LIBRARY_PATH": ""},
    )


def _msmtp(delivery: Delivery) -> None:
    tls = ["--tls=on", f"--tls-trust-file={delivery.ca}"] if delivery.tls else ["--tls=off"]
    server = (f"--from={SENDER}", "--domain=client.test", "--host=127.0.0.1", f"--port={delivery.port}")
    delivery.run("msmtp", *server, *tls, *delivery.recipients, env={"LD_LIBRARY_PATH": ""})


def _exim(delivery: Delivery) -> None:
    tls = (
        f"hosts_require_tls = *\n  tls_verify_certificates = {delivery.ca}"
        if delivery.tls
        else "hosts_avoid_tls = *"
    )
    exim = delivery.path("usr/sbin/exim4")
    conf = f"""\
primary_hostname = client.test
spool_directory = /var/spool/exim4
log_file_path = {delivery.folder}/%slog
exim_path = {exim}
trusted_users = root
local_from_check = false
disable_ipv6
keep_environment =
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = smtp
begin transports
smtp:
  driver = smtp
  port = {delivery.port}
  {tls}
begin retry
* * F,1h,15m
"""
    send = f"{exim} -C /etc/exim.conf -odf -i -f {SENDER} {' '.join(delivery.recipients)}"
    spool = "mkdir -m 750 /var/spool/exim4; chown 61003:61003 /var/spool/exim4"
    delivery.run_as_installed(
        f"chmod 777 {delivery.folder}; {spool}; {send}", {"exim.conf": conf}, {"Debian-exim": 61003}
    )


def _opensmtpd(delivery: Delivery) -> None:
    smtpd, control = delivery.path("usr/sbin/smtpd"), delivery.path("usr/sbin/smtpctl")
    how, verify = ("smtp+tls", "tls no-verify") if delivery.tls else ("smtp+notls", "")
    files = {
        "smtpd.conf": "listen on socket\nmta limit session-keepalive 0\n"
        f'action "out" relay host "{how}://127.0.0.1:{delivery.port}" helo client.test {verify}\n'
        'match from any for any action "out"\n',
        "mailname": "client.test\n",
    }
    log, count = f"{delivery.folder}/log", len(delivery.recipients)
    script = f"""
umask 022; mkdir -m 711 /var/spool/smtpd; mount -t tmpfs tmpfs /var/lib; mkdir -p /var/lib/opensmtpd/empty
mkdir /run/bin; cp {control} /run/bin/sendmail
chown 61001:61002 /run/bin/sendmail; chmod 2755 /run/bin/sendmail
cat > /run/mail
{smtpd} -d -v > {log} 2>&1 &
server=$!
for try in $(seq 50); do [ -S /run/smtpd.sock ] && break; sleep 0.05; done
/run/bin/sendmail -f {SENDER} {" ".join(delivery.recipients)} < /run/mail || true
for try in $(seq 50); do [ "$(grep -c ' mta delivery ' {log})" -ge {count} ] && break; sleep 0.05; done
sleep 0.3; kill $server; wait $server || true; cat {log}
"""
    delivery.run_as_installed(script, files, {"opensmtpd": 61001, "opensmtpq": 61002})


def _dma(delivery: Delivery) -> None:
    tls = "SECURETRANSFER\nSTARTTLS\n" if delivery.tls else ""
    conf = f"SMARTHOST 127.0.0.1\nPORT {delivery.port}\nMAILNAME client.test\nSPOOLDIR /var/spool/dma\n{tls}"
    script = f"""
mkdir -m 2775 /var/spool/dma; chown root:mail /var/spool/dma; cat > /run/mail
timeout 1 {delivery.path("usr/sbin/dma")} -D -f {SENDER} {" ".join(delivery.recipients)} < /run/mail || true
"""
    delivery.run_as_installed(script, {"dma/dma.conf": conf, "dma/auth.conf": ""})


def _nullmailer(delivery: Delivery) -> None:
    mail = delivery.write("mail", "\n".join((SENDER, *delivery.recipients, "", TEXT)))
    options = f"host=127.0.0.1\nport={delivery.port}\n" + (
        f"starttls\nx509cafile={delivery.ca}\n" if delivery.tls else ""
    )
    smtp = delivery.path("usr/lib/nullmailer/smtp")
    delivery.run("sh", "-c", f"exec {smtp} 3< {mail}", text=options, env={"HELOHOST": "client.test"})


def _ssmtp(delivery: Delivery) -> None:
    tls = "UseTLS=YES\nUseSTARTTLS=YES\n" if delivery.tls else ""
    conf = delivery.write(
        "ssmtp.conf", f"mailhub=127.0.0.1:{delivery.port}\nhostname=client.test\nFromLineOverride=YES\n{tls}"
    )
    delivery.run(delivery.path("usr/sbin/ssmtp"), "-C", conf, "-f", SENDER, *delivery.recipients)


def _esmtp(delivery: Delivery) -> None:
    conf = delivery.write("esmtprc", f"hostname = 127.0.0.1:{delivery.port}\nstarttls = disabled\n")
    os.chmod(conf, 0o600)
    delivery.run(delivery.path("usr/bin/esmtp"), "-C", conf, "-f", SENDER, *delivery.recipients)


def _s_nail(delivery: Delivery) -> None:
    tls = (
        ["-S", "smtp-use-starttls", "-S", f"tls-ca-file={delivery.ca}", "-S", "tls-verify=ignore"]
        if delivery.tls
        else []
    )
    server = (
        "-S",
        "v15-compat",
        "-S",
        f"mta=smtp://127.0.0.1:{delivery.port}",
        "-S",
        "smtp-auth=none",
        "-S",
        "hostname=client.test",
        "-S",
        "smtp-hostname=client.test",
    )
    delivery.run(
        delivery.path("usr/bin/s-nail"),
        "-n",
        *server,
        *tls,
        "-S",
        f"from={SENDER}",
        "-r",
        SENDER,
        "-s",
        "a test",
        *delivery.recipients,
        text="Hello\n.x\n..\n",
    )


def _mutt(delivery: Delivery) -> None:
    tls = (
        f"set ssl_starttls=yes\nset ssl_force_tls=yes\nset ssl_ca_certificates_file={delivery.ca}\n"
        if delivery.tls
        else "set ssl_starttls=no\nset ssl_force_tls=no\n"
    )
    conf = delivery.write(
        "muttrc",
        f"set smtp_url=smtp://127.0.0.1:{delivery.port}\nset hostname=client.test\nset from={SENDER}\n"
        f"set envelope_from_address={SENDER}\nset use_envelope_from=yes\nset copy=no\n{tls}",
    )
    delivery.run(
        delivery.path("usr/bin/mutt"),
        "-n",
        "-F",
        conf,
        "-s",
        "a test",
        "--",
        *delivery.recipients,
        text="Hello\n.x\n..\n",
    )


def _sendemail(delivery: Delivery) -> None:
    tls = "yes" if delivery.tls else "no"
    delivery.run(
        "perl",
        delivery.path("usr/bin/sendemail"),
        "-f",
        SENDER,
        "-t",
        *delivery.recipients,
        "-u",
        "a test",
        "-s",
        f"127.0.0.1:{delivery.port}",
        "-o",
        f"tls={tls}",
        "-o",
        "fqdn=client.test",
        text="Hello\n.x\n..\n",
        env={"LD_LIBRARY_PATH": "", "SSL_CERT_FILE": delivery.ca, **delivery.perl},
    )


def _net_smtp(delivery: Delivery) -> None:
    script = """\
use Net::SMTP;
my ($port, $ca, @to) = @ARGV;
my $smtp = Net::SMTP->new("127.0.0.1", Port => $port, Hello => "client.test") or die;
$smtp->starttls(SSL_ca_file => $ca, SSL_verifycn_name => "mx.test") or die if $ca ne "-";
my $text = do { local $/; <STDIN> };
$smtp->mail('ann@client.test');
if ($smtp->recipient(@to, {SkipBad => 1})) { $smtp->data($text) or warn; }
$smtp->quit;
"""
    delivery.run(
        "perl",
        "-e",
        script,
        str(delivery.port),
        delivery.ca if delivery.tls else "-",
        *delivery.recipients,
        env={"LD_LIBRARY_PATH": ""},
    )


def _git_send_email(delivery: Delivery) -> None:
    mail = delivery.write(
        "0001.patch", "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n" + TEXT
    )
    tls = ["--smtp-encryption=tls", f"--smtp-ssl-cert-path={delivery.ca}"] if delivery.tls else []
    recipients = [f"--to={one}" for one in delivery.recipients]
    delivery.run(
        "perl",
        delivery.path("usr/lib/git-core/git-send-email"),
        "--quiet",
        "--suppress-cc=all",
        "--confirm=never",
        f"--from={SENDER}",
        "--smtp-server=127.0.0.1",
        f"--smtp-server-port={delivery.port}",
        "--smtp-domain=client.test",
        *tls,
        *recipients,
        mail,
        env={
            **delivery.perl,
            "LD_LIBRARY_PATH": "",
            **dict.fromkeys(("GIT_COMMITTER_NAME", "GIT_AUTHOR_NAME"), "Ann"),
            **dict.fromkeys(("GIT_COMMITTER_EMAIL", "GIT_AUTHOR_EMAIL"), SENDER),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_EXEC_PATH": "/usr/lib/git-core",
        },
        text="",
    )


def _nodemailer(delivery: Delivery) -> None:
    script = """\
const mail = require("nodemailer");
const [port, ca, ...to] = process.argv.slice(1);
const text = require("fs").readFileSync(0);
const check = {ca: ca === "-" ? "" : require("fs").readFileSync(ca), servername: "mx.test"};
const tls = ca === "-" ? {ignoreTLS: true} : {requireTLS: true, tls: check};
mail.createTransport({host: "127.0.0.1", port: Number(port), name: "client.test", ...tls})
  .sendMail({envelope: {from: "ann@client.test", to}, raw: text})
  .catch((error) => console.log(String(error)));
"""
    delivery.run(
        "node",
        "-e",
        script,
        str(delivery.port),
        delivery.ca if delivery.tls else "-",
        *delivery.recipients,
        env={"NODE_PATH": delivery.path("node_modules"), "LD_LIBRARY_PATH": ""},
    )


def _emailjs(delivery: Delivery) -> None:
    delivery.write(
        "send.mjs",
        f"""\
import {{ SMTPClient }} from "{delivery.path("node_modules/emailjs/dist/index.js")}";
import fs from "fs";
const [port, ca, ...to] = process.argv.slice(2);
const tls = ca === "-" ? {{}} : {{tls: {{ca: fs.readFileSync(ca), servername: "mx.test"}}}};
const client = new SMTPClient({{host: "127.0.0.1", port: Number(port), domain: "client.test", ...tls}});
try {{
  const text = "Hello\\n.x\\n.\\n..\\nBye\\n";
  await client.sendAsync({{from: "ann@client.test", to: to.join(", "), subject: "a test", text}});
}} catch (error) {{ console.log(String(error)); }}
client.smtp.quit();
""",
    )
    delivery.run(
        "node",
        "send.mjs",
        str(delivery.port),
        delivery.ca if delivery.tls else "-",
        *delivery.recipients,
        env={"LD_LIBRARY_PATH": ""},
    )


def _phpmailer(delivery: Delivery) -> None:
    folder = delivery.path("usr/share/php/libphp-phpmailer/src")
    script = delivery.write(
        "send.php",
        f"""\
<?php
foreach (["Exception", "PHPMailer", "SMTP"] as $name) require "{folder}/$name.php";
[$port, $ca] = [$argv[1], $argv[2]];
$mail = new PHPMailer\\PHPMailer\\PHPMailer(true);
$mail->isSMTP(); $mail->Host = "127.0.0.1"; $mail->Port = (int)$port;
$mail->Helo = $mail->Hostname = "client.test";
$mail->SMTPAutoTLS = false;
if ($ca != "-") {{
  $mail->SMTPSecure = "tls"; $mail->SMTPOptions = ["ssl" => ["cafile" => $ca, "peer_name" => "mx.test"]];
}}
$mail->setFrom("ann@client.test"); foreach (array_slice($argv, 3) as $to) $mail->addAddress($to);
$mail->Subject = "a test"; $mail->Body = "Hello\\n.x\\n.\\n..\\nBye\\n";
try {{ $mail->send(); }} catch (Exception $error) {{ echo $error; }}
""",
    )
    delivery.run(
        delivery.path("usr/bin/php8.2"),
        "-n",
        *_modules_of_php(delivery),
        script,
        str(delivery.port),
        delivery.ca if delivery.tls else "-",
        *delivery.recipients,
    )


def _modules_of_php(delivery: Delivery) -> list[str]:
    """Return the options for the modules of PHP that PHPMailer needs."""
    found = sorted(delivery.senders.glob("usr/lib/php/*/*.so"))
    wanted = ("ctype.so", "iconv.so", "filter.so")
    return [part for path in found if path.name in wanted for part in ("-d", f"extension={path}")]


def _javamail(delivery: Delivery) -> None:
    script = delivery.write(
        "Send.java",
        """\
import javax.mail.*; import javax.mail.internet.*; import java.util.*;
public class Send { public static void main(String[] args) throws Exception {
  Properties options = new Properties();
  options.put("mail.smtp.host", "127.0.0.1"); options.put("mail.smtp.port", args[0]);
  options.put("mail.smtp.localhost", "client.test");
  options.put("mail.smtp.sendpartial", "true"); options.put("mail.smtp.from", "ann@client.test");
  if (!args[1].equals("-")) {
    options.put("mail.smtp.starttls.enable", "true"); options.put("mail.smtp.starttls.required", "true");
    options.put("mail.smtp.ssl.trust", "*");
  }
  MimeMessage message = new MimeMessage(Session.getInstance(options));
  message.setFrom("ann@client.test"); message.setSubject("a test");
  message.setText("Hello\\n.x\\n.\\n..\\nBye\\n");
  for (int next = 2; next < args.length; next++) message.addRecipients(Message.RecipientType.TO, args[next]);
  try { Transport.send(message); } catch (MessagingException error) { System.out.println(error); }
} }
""",
    )
    jars = ":".join(
        delivery.path(f"usr/share/java/{name}.jar")
        for name in ("javax.mail", "javax.activation", "activation", "jakarta.activation")
    )
    delivery.run(
        "java",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        jars,
        script,
        str(delivery.port),
        delivery.ca if delivery.tls else "-",
        *delivery.recipients,
        env={"LD_LIBRARY_PATH": ""},
    )


def _ruby(delivery: Delivery) -> None:
    script = """\
require "net/smtp"
port, ca, *to = ARGV
smtp = Net::SMTP.new("127.0.0.1", port.to_i)
if ca == "-" then smtp.disable_starttls else
  context = OpenSSL::SSL::SSLContext.new; context.set_params(ca_file: ca, verify_hostname: false)
  smtp.enable_starttls(context)
end
begin
  smtp.start("client.test") { |one| one.send_message(STDIN.read, "ann@client.test", *to) }
rescue => error
  puts error
end
"""
    paths = [
        delivery.path(f"usr/lib/{one}")
        for one in ("ruby/3.1.0", "x86_64-linux-gnu/ruby/3.1.0", "ruby/vendor_ruby")
    ]
    paths += map(str, delivery.senders.glob("usr/lib/ruby/gems/3.1.0/gems/*/lib"))
    delivery.run(
        delivery.path("usr/bin/ruby3.1"),
        "--disable-gems",
        *(f"-I{one}" for one in paths),
        "-e",
        script,
        str(delivery.port),
        delivery.ca if delivery.tls else "-",
        *delivery.recipients,
    )


def _tcllib(delivery: Delivery) -> None:
    script = delivery.write(
        "send.tcl",
        f"""\
lappend auto_path {delivery.path("usr/share/tcltk/tcllib1.21")}
package require mime
package require smtp
set token [mime::initialize -canonical text/plain -string "Hello\\n.x\\n.\\n..\\nBye\\n"]
mime::setheader $token Subject "a test"
set to "{",".join(delivery.recipients)}"
catch {{
  smtp::sendmessage $token -servers 127.0.0.1 -ports {delivery.port} -client client.test -usetls 0 \\
    -atleastone 1 -queue 0 -originator ann@client.test -recipients $to
}} result
puts $result
""",
    )
    delivery.run(
        delivery.path("usr/bin/tclsh8.6"),
        script,
        env={"TCL_LIBRARY": delivery.path("usr/share/tcltk/tcl8.6")},
    )


def _luasocket(delivery: Delivery) -> None:
    script = delivery.write(
        "send.lua",
        f"""\
package.path = "{delivery.path("usr/share/lua/5.4")}/?.lua"
package.cpath = "{delivery.path("usr/lib/x86_64-linux-gnu/lua/5.4")}/?.so"
local smtp = require("socket.smtp")
local to = {{}}
for number = 2, #arg do to[#to + 1] = "<" .. arg[number] .. ">" end
print(smtp.send{{from = "<ann@client.test>", rcpt = to, domain = "client.test",
  server = "127.0.0.1", port = tonumber(arg[1]),
  source = smtp.message{{headers = {{subject = "a test"}}, body = "Hello\\n.x\\n.\\n..\\nBye\\n"}}}})
""",
    )
    delivery.run(delivery.path("usr/bin/lua5.4"), script, str(delivery.port), *delivery.recipients)


def _alertmanager(delivery: Delivery) -> None:
    import json
    import socket
    import time
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    conf = delivery.write(
        "conf.yml",
        json.dumps(
            {
                "global": {
                    "smtp_smarthost": f"127.0.0.1:{delivery.port}",
                    "smtp_from": SENDER,
                    "smtp_hello": "client.test",
                    "smtp_require_tls": delivery.tls,
                },
                "route": {"receiver": "mail", "group_wait": "0s"},
                "receivers": [
                    {
                        "name": "mail",
                        "email_configs": [
                            {
                                "to": ", ".join(delivery.recipients),
                                "tls_config": {"ca_file": delivery.ca, "server_name": "mx.test"},
                            }
                        ],
                    }
                ],
            }
        ),
    )
    templates = delivery.path("usr/share/prometheus")
    mounted = f'mount --bind {templates} /usr/share/prometheus && exec "$@"'
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        mounted,
        "sh",
        delivery.path("usr/bin/prometheus-alertmanager"),
        f"--config.file={conf}",
        f"--storage.path={delivery.folder}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with (
        (delivery.folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=delivery.folder) as process,
    ):
        alerts = json.dumps([{"labels": {"alertname": "test"}}]).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/v2/alerts", alerts, {"Content-Type": "application/json"}
        )
        for _ in range(50):
            try:
                urllib.request.urlopen(request).close()
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(0.7)
        process.terminate()
    delivery.output = (delivery.folder / "log").read_text()


def _monit(delivery: Delivery) -> None:
    conf = delivery.write(
        "monitrc",
        f"""\
set daemon 1
set pidfile {delivery.folder}/pid
set statefile {delivery.folder}/state
set idfile {delivery.folder}/id
set log {delivery.folder}/log
set mailserver 127.0.0.1 port {delivery.port} using hostname client.test
set mail-format {{ from: {SENDER} }}
"""
        + "".join(f"set alert {one}\n" for one in delivery.recipients)
        + "check file none with path /nonexistent/file\n",
    )
    os.chmod(conf, 0o600)
    delivery.run("timeout", "0.7", delivery.path("usr/bin/monit"), "-I", "-c", conf)


@dataclass(frozen=True)
class Task:
    """What a sender is given to do."""

    recipients: tuple[str, ...]
    tls: bool = False
    is_accepted: bool = True
    """The server takes the message for one of the recipients."""


TASKS: Final = {
    "plain": Task((RECIPIENT,)),
    "two recipients": Task((RECIPIENT, OTHER)),
    "one of two refused": Task((REFUSED, RECIPIENT)),
    "refused": Task((REFUSED,), is_accepted=False),
    "deferred": Task((DEFERRED,), is_accepted=False),
    "STARTTLS": Task((RECIPIENT, OTHER), tls=True),
}

SENT: Final = ("plain", "two recipients", "STARTTLS")
FAILED: Final = ("refused", "deferred")
UNSENT: Final = ("one of two refused", *FAILED)


@dataclass(frozen=True)
class ExpectedViolation:
    """A violation that a sender commits."""

    violation: str
    why: str
    kinds: tuple[str, ...] = tuple(TASKS)
    """When it commits it."""


@dataclass(frozen=True)
class Sender:
    """A row of the table of senders."""

    name: str
    version: str
    """The version that was tried."""
    send: Callable[[Delivery], None] | None
    """Lets it send; None: another test does."""
    accused: tuple[ExpectedViolation, ...] = ()
    programs: tuple[str, ...] = ()
    """Those of the machine that it needs."""
    without: tuple[str, ...] = ()
    """What it cannot do, or would take long for."""

    def accused_of(self, kind: str) -> set[str]:
        """Return the violations that it commits."""
        return {one.violation for one in self.accused if kind in one.kinds}


def no_quit(kinds: tuple[str, ...] = UNSENT) -> ExpectedViolation:
    return ExpectedViolation("no-quit", "closes without QUIT when a recipient is refused", kinds)


NO_TLS: Final = ("STARTTLS",)

SENDERS: Final = (
    Sender("aiosmtplib", "5.1", _aiosmtplib),
    Sender(
        "curl",
        "7.88",
        _curl,
        (
            ExpectedViolation("bare-lf", "sends a file unchanged; `--crlf` converts line endings", ()),
            ExpectedViolation(
                "size-wrong", "with `--crlf` and short lines: computes SIZE before converting", ()
            ),
        ),
        programs=("curl",),
    ),
    Sender("dma", "0.13", _dma, (no_quit(),)),
    Sender(
        "emailjs",
        "5.0",
        _emailjs,
        (ExpectedViolation("bare-lf", "sends the text unchanged", SENT),),
        programs=("node",),
    ),
    Sender(
        "esmtp (libESMTP)",
        "1.2",
        _esmtp,
        (ExpectedViolation("hello-name", "gives the name of the machine, which may have no dot"),),
        without=NO_TLS,
    ),
    Sender("Exim", "4.96", _exim),
    Sender("git send-email", "2.39", _git_send_email, (no_quit(),), programs=("perl", "git")),
    Sender("Go net/smtp (Alertmanager)", "1.19", _alertmanager),
    Sender("HAProxy's check", "2.6", None),
    Sender("JavaMail", "1.6.5", _javamail, programs=("java",), without=("plain", "refused")),
    Sender(
        "LuaSocket",
        "3.1",
        _luasocket,
        (ExpectedViolation("bare-lf", "sends the text unchanged", SENT), no_quit()),
        without=NO_TLS,
    ),
    Sender(
        "Monit",
        "5.33",
        _monit,
        (ExpectedViolation("syntax", "writes a blank after `MAIL FROM:` and `RCPT TO:`"),),
        without=NO_TLS,
    ),
    Sender(
        "msmtp",
        "1.8.23",
        _msmtp,
        (
            ExpectedViolation(
                "hung-up-in-body", "closes when one of two recipients is refused", ("one of two refused",)
            ),
            no_quit(FAILED),
            ExpectedViolation("hello-name", "sends `localhost` without a full name in `--domain`", ()),
        ),
        programs=("msmtp",),
    ),
    Sender("mutt", "2.2.12", _mutt, (no_quit(),)),
    Sender("Net::SMTP (Perl)", "3.14", _net_smtp, programs=("perl",)),
    Sender(
        "nodemailer",
        "10.6",
        _nodemailer,
        (ExpectedViolation("no-quit", "closes without QUIT after each message"),),
        programs=("node",),
    ),
    Sender("nullmailer", "2.2", _nullmailer),
    Sender("OpenSMTPD", "6.8.0p2", _opensmtpd),
    Sender("PHPMailer", "6.6", _phpmailer),
    Sender(
        "Postfix",
        "3.7",
        None,
        (
            ExpectedViolation(
                "no-quit",
                "without TLS: closes a cached connection that has expired; "
                "`smtp_connection_cache_on_demand = no` avoids that",
            ),
        ),
    ),
    Sender("Ruby net/smtp", "3.1", _ruby),
    Sender(
        "sendEmail",
        "1.56",
        _sendemail,
        (
            ExpectedViolation(
                "unstuffed-dot", "doubles only a dot that is alone on its line", (*SENT, UNSENT[0])
            ),
            no_quit(FAILED),
        ),
        programs=("perl",),
    ),
    Sender("s-nail", "14.9.24", _s_nail, (no_quit(),)),
    Sender(
        "smtp-source",
        "Postfix 3.7",
        None,
        (
            ExpectedViolation(
                "hello-name", "gives the name of the machine, which may have no dot; `-M` sets another"
            ),
        ),
    ),
    Sender(
        "smtplib",
        "Python 3.11",
        _smtplib,
        (
            ExpectedViolation(
                "8bit-undeclared", "`send_message()` sends 8-bit text without `BODY=8BITMIME`", ()
            ),
            ExpectedViolation("bare-lf", "`sendmail()` sends bytes unchanged; it converts `str` only", ()),
        ),
    ),
    Sender("ssmtp", "2.64", _ssmtp, (no_quit(),)),
    Sender("swaks", "20201014", _swaks, programs=("swaks",)),
    Sender("tcllib smtp", "1.21", _tcllib, without=NO_TLS),
)
"""The senders, and what each is accused of. An accusation of no kind is shown by `test_real_senders`."""


def documented() -> list[str]:
    """Return the rows of the table of senders in docs/report.md."""
    return [
        f"| {one.name} | {one.version} | "
        + ("; ".join(f"`{reason.violation}`: {reason.why}" for reason in one.accused) or "none")
        + " |"
        for one in SENDERS
    ]


if __name__ == "__main__":
    fetch(Path(sys.argv[1]).resolve())
