# SPDX-License-Identifier: MIT
"""Certificates made with openssl(1): one authority and what it signed, good and bad."""
import pathlib
import subprocess

CA_CONFIG = """
[ca]
default_ca = test
[test]
database = {dir}/index.txt
new_certs_dir = {dir}
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def openssl(*args, cwd):
    subprocess.run(["openssl", *args], cwd=cwd, check=True, timeout=60, stdin=subprocess.DEVNULL,
                   capture_output=True)


class Certificates:
    """cert(name) and key(name) are paths; ca is the authority's certificate."""

    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.ca = self.dir / "ca.pem"
        (self.dir / "index.txt").touch()
        (self.dir / "ca.cnf").write_text(CA_CONFIG.format(dir=self.dir))
        self._key("ca")
        openssl("req", "-new", "-x509", "-key", "ca.key", "-out", "ca.pem", "-days", "3650",
                "-subj", "/CN=mailfs test authority", cwd=self.dir)

    def cert(self, name):
        return self.dir / f"{name}.pem"

    def key(self, name):
        return self.dir / f"{name}.key"

    def _key(self, name):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key",
                cwd=self.dir)
        self.key(name).chmod(0o644)  # read by a mail server that runs as another user

    def issue(self, name, san, start="20200101000000Z", end="20491231235959Z",
              usage="serverAuth"):
        self._key(name)
        openssl("req", "-new", "-key", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}",
                cwd=self.dir)
        (self.dir / f"{name}.ext").write_text(
            f"subjectAltName={san}\nbasicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n")
        openssl("ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile",
                "ca.key", "-in", f"{name}.csr", "-out", f"{name}.pem", "-startdate", start,
                "-enddate", end, "-extfile", f"{name}.ext", cwd=self.dir)
        return self

    def self_signed(self, name, san):
        self._key(name)
        openssl("req", "-new", "-x509", "-key", f"{name}.key", "-out", f"{name}.pem", "-days",
                "3650", "-subj", f"/CN={name}", "-addext", f"subjectAltName={san}", cwd=self.dir)
        return self

    def pin(self, name):
        """sha256 of the public key, as tls_pin= wants it: lower-case hex."""
        der = subprocess.run(f"openssl x509 -in {self.cert(name)} -noout -pubkey | "
                             "openssl pkey -pubin -outform DER | sha256sum", shell=True, check=True,
                             capture_output=True, text=True, timeout=30)
        return der.stdout.split()[0]
