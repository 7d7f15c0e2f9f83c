#!/usr/bin/env python3
"""h2spec in full against Nuncio, over plaintext and over TLS: `tests/h2spec/run.py [section]...`.

NUNCIO_BIN and H2SPEC_BIN name other binaries than target/debug/nuncio and the `h2spec` of PATH, of `go install` or of the lab."""
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "differential"))

from harness import tls  # noqa: E402
from harness.config import bootstrap, extension, route, say  # noqa: E402
from harness.proxy import Proxy  # noqa: E402
from harness.setup import Setup  # noqa: E402

# Long enough to be cut into many frames by the windows that h2spec sets.
BODY = "nuncio " * 100


def h2spec_binary():
    gopath = os.environ.get("GOPATH") or os.path.expanduser("~/go")
    lab = os.path.join(os.environ.get("LAB_DIR", "/var/lib/mesh-lab"), "bin", "h2spec")
    for candidate in (os.environ.get("H2SPEC_BIN"), shutil.which("h2spec"), os.path.join(gopath, "bin", "h2spec"), lab):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    sys.exit("h2spec is missing: tests/need h2spec")


def setup(secure):
    """A listener that speaks HTTP/2 alone and answers every whole request itself: h2spec sends heads whose bodies belie them."""
    chain = {}
    if secure:
        chain = {"transport_socket": extension(
            "envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context={
                "alpn_protocols": ["h2"],
                "tls_certificates": [{"certificate_chain": {"filename": tls.path("server.pem")}, "private_key": {"filename": tls.path("server.key")}}]})}
    return Setup("h2spec", routes=[route("/", direct_response=say(BODY))], clusters=[], chain=chain, hcm={"codec_type": "HTTP2"}, log="", filters=[
        extension("envoy.filters.http.buffer", "filters.http.buffer.v3.Buffer", max_request_bytes=1 << 20)])


def run(secure, sections):
    directory = tempfile.mkdtemp(prefix="nuncio-h2spec-")
    proxy = Proxy("nuncio", bootstrap(setup(secure)), directory, {})
    try:
        proxy.start()
        # Cases that pass do not wait for it.
        command = [h2spec_binary(), "-h", "127.0.0.1", "-p", str(proxy.ports["main"]), "-o", "5", *(["-t", "-k"] if secure else []), *sections]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        text = done.stdout + done.stderr
        print(("TLS: " if secure else "plaintext: ") + text.strip().splitlines()[-1], flush=True)
        if done.returncode != 0:
            print(text[text.find("Failures:"):], flush=True)
        return done.returncode == 0
    finally:
        proxy.stop()


def main():
    tls.prepare()
    passed = [run(secure, sys.argv[1:]) for secure in (False, True)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
