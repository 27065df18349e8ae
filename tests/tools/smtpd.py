#!/usr/bin/env python3
"""smtpd.py DIR [starttls|tls|plain|othername]: a mail server for tests, on a free loopback port.

starttls (default): STARTTLS, then AUTH (user u, password $SMTPD_PASSWORD or pw), are required. tls: TLS from the first byte, AUTH required.
plain: neither is offered. The certificate is for localhost and 127.0.0.1, signed by the authority DIR/ca.pem;
othername: as starttls, with a certificate for another host.
Each accepted mail becomes DIR/mail/N.eml, with its envelope as headers put first. Recipients reject@ get 550,
tempfail@ get 451; DIR/rcpt lists every recipient that was asked for. DIR/port appears once the server is ready.
It ends with its standard input, so that it never outlives the test.
"""
import itertools
import os
import pathlib
import socket
import ssl
import subprocess
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

where = pathlib.Path(sys.argv[1])
mode = sys.argv[2] if len(sys.argv) > 2 else "starttls"
password = os.environ.get("SMTPD_PASSWORD", "pw").encode()
(where / "mail").mkdir(parents=True, exist_ok=True)
numbers = itertools.count(1)


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def certificates():
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-days", 2, "-subj", "/CN=authority", "-addext", "basicConstraints=critical,CA:TRUE",
            "-keyout", where / "ca.key", "-out", where / "ca.pem")
    openssl("req", "-new", *key, "-subj", "/CN=localhost", "-keyout", where / "key.pem", "-out", where / "csr.pem")
    names = "DNS:mail.example.com" if mode == "othername" else "DNS:localhost,IP:127.0.0.1"
    (where / "ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", where / "csr.pem", "-CA", where / "ca.pem", "-CAkey", where / "ca.key",
            "-set_serial", 1, "-days", 2, "-extfile", where / "ext", "-out", where / "cert.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(where / "cert.pem", where / "key.pem")
    return context


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        with open(where / "rcpt", "a") as f:
            f.write(address + "\n")
        if address.startswith("reject@"):
            return "550 5.1.1 no such user"
        if address.startswith("tempfail@"):
            return "451 4.3.0 try later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        number = next(numbers)
        head = f"X-Envelope-From: {envelope.mail_from}\r\nX-Envelope-To: {', '.join(envelope.rcpt_tos)}\r\n"
        head += f"X-Tls: {session.ssl is not None or mode == 'tls'}\r\nX-Auth: {session.authenticated}\r\n"
        partial = where / "mail" / f".{number}"
        partial.write_bytes(head.encode() + envelope.original_content)
        partial.rename(where / "mail" / f"{number}.eml")
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"u", password)
    return AuthResult(success=good, handled=False)


class Server(Controller):
    def factory(self):
        settings = {"hostname": "localhost"}
        if mode != "plain":
            settings |= {"authenticator": authenticate, "auth_required": True}
        if mode in ("starttls", "othername"):
            settings |= {"tls_context": context, "require_starttls": True, "auth_require_tls": True}
        if mode == "tls":
            settings |= {"auth_require_tls": False}
        return SMTP(self.handler, **settings)


context = certificates()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = Server(Handler(), hostname="127.0.0.1", port=port, ssl_context=context if mode == "tls" else None)
server.start()
(where / "port.new").write_text(f"{port}\n")
(where / "port.new").rename(where / "port")
sys.stdin.read()
server.stop()
