"""A private CA, by the openssl command, and certificates of it: also some that nobody should accept."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import NamedTuple

_CONFIG = """
[ca]
default_ca = own
[own]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
HERE = ("DNS:localhost", "IP:127.0.0.1")


class Issued(NamedTuple):
    """A certificate and its private key, as files of PEM."""

    cert: Path
    key: Path


class Authority:
    """A CA in a folder of its own; `cert` is what its friends trust."""

    def __init__(self, folder: Path, above: Authority | None = None) -> None:
        """Makes a CA: one that signs itself, or by `above`."""
        folder.mkdir(parents=True)
        self._folder = folder
        self.cert = folder / "ca.pem"
        (folder / "index").touch()
        (folder / "config").write_text(_CONFIG.format(folder=folder))
        self._openssl(
            "req",
            "-x509",
            *_KEY,
            "-days",
            "2",
            "-subj",
            f"/CN={folder.name}",
            *(("-CA", str(above.cert), "-CAkey", str(above.cert.with_suffix(".key"))) if above else ()),
            out=Issued(self.cert, folder / "ca.key"),
        )

    def issue(self, name: str, *alternatives: str, begins: float = -1, ends: float = 1) -> Issued:
        """Makes a certificate, valid between two moments: days from now."""
        made = Issued(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request = self._folder / f"{name}.csr"
        names = ("-addext", f"subjectAltName={','.join(alternatives)}") if alternatives else ()
        self._openssl("req", "-new", *_KEY, "-subj", f"/CN={name}", *names, out=Issued(request, made.key))
        times = ("-startdate", _moment(begins), "-enddate", _moment(ends))
        own = ("-config", "config", "-cert", str(self.cert), "-keyfile", "ca.key")
        self._openssl("ca", "-batch", "-notext", *own, *times, "-in", str(request), "-out", str(made.cert))
        return made

    def _openssl(self, *words: str, out: Issued | None = None) -> None:
        files = ("-out", str(out.cert), "-keyout", str(out.key)) if out else ()
        command = ["openssl", *words, *files]
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True)


def _moment(days: float) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    return f"{moment:%Y%m%d%H%M%SZ}"
