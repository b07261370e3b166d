"""An authority of one's own and the certificates that it signs, made by the `openssl` command.

For servers on loopback and their clients. Elliptic keys, PEM, private files readable by their owner alone.
"""

import os
from pathlib import Path
from typing import NamedTuple

from app.core.errors import SetupError
from app.local.process import find_program, run_quietly

DAYS = "825"
"""As long as common clients accept at most."""


class Certificate(NamedTuple):
    """Two PEM files."""

    certificate: Path
    key: Path


def make_authority(directory: Path, name: str) -> Certificate:
    """A new authority, whose certificate is `directory/ca.pem`.

    Raises: SetupError without `openssl`, or when it fails.
    """
    made = _new_key(directory, "ca")
    _run(
        "req", "-x509", "-new", "-key", str(made.key), "-out", str(made.certificate), "-days", DAYS,
        "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    return made


def issue(directory: Path, authority: Certificate, name: str, host: str = "") -> Certificate:
    """A new certificate for the subject CN=`name`, `directory/name.pem`; for the address `host`, where it is a server's.

    Raises: SetupError as above.
    """
    made = _new_key(directory, name)
    request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
    lines = ["basicConstraints=CA:FALSE", "keyUsage=critical,digitalSignature", "authorityKeyIdentifier=keyid"]
    lines += ["subjectKeyIdentifier=hash", "extendedKeyUsage=serverAuth,clientAuth"]
    lines += [f"subjectAltName=IP:{host}"] if host else []
    extensions.write_text("\n".join(lines))
    _run("req", "-new", "-key", str(made.key), "-out", str(request), "-subj", f"/CN={name}")
    _run(
        "x509", "-req", "-in", str(request), "-out", str(made.certificate), "-days", DAYS,
        "-CA", str(authority.certificate), "-CAkey", str(authority.key), "-CAcreateserial",
        "-extfile", str(extensions),
    )  # fmt: skip
    request.unlink()
    extensions.unlink()
    return made


def write_private(file: Path, text: str) -> None:
    """A file that only its owner may read."""
    file.unlink(missing_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as opened:
        opened.write(text)


def _new_key(directory: Path, name: str) -> Certificate:
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    write_private(made.key, "")
    _run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(made.key))
    return made


def _run(*arguments: str) -> None:
    program = find_program("openssl")
    if program is None:
        raise SetupError("openssl", "makes the certificates and is not on the PATH; type: apt-get install openssl")
    run_quietly([str(program), *arguments], "making a certificate")
