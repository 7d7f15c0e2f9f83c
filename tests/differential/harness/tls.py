"""Certificates of a run, made once by the openssl command, and TLS contexts of the harness's clients and upstreams."""
import os
import ssl
import subprocess
import tempfile
import threading

DIRECTORY = tempfile.mkdtemp(prefix="nuncio-diff-tls-")
LOCK = threading.Lock()
MADE = set()


def path(name):
    return os.path.join(DIRECTORY, name)


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=DIRECTORY)


def make(name, subject, san, ca=None):
    """Makes NAME.pem and NAME.key: a CA of its own, or signed by `ca`."""
    with LOCK:
        if name in MADE:
            return
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "30"]
        sign = ["-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"] if ca else ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        extra = ["-addext", f"subjectAltName={san}", "-addext", "basicConstraints=critical,CA:FALSE"] if san else []
        openssl("req", "-x509", *key, "-subj", subject, *sign, *extra)
        MADE.add(name)


def prepare():
    """The certificates that cases use: a CA, a server for host.test and *.wild.test, a client with a URI, and a stranger's client."""
    make("ca", "/CN=Test CA", None)
    make("other-ca", "/CN=Other CA", None)
    make("server", "/O=Org/CN=server", "DNS:host.test,DNS:*.wild.test", "ca")
    make("client", "/C=CH/O=Client Org/CN=client", "URI:spiffe://test/ns/a/sa/b,DNS:client.test", "ca")
    make("stranger", "/CN=stranger", "DNS:stranger.test", "other-ca")


def server_context():
    prepare()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path("server.pem"), path("server.key"))
    context.set_alpn_protocols(["http/1.1"])
    return context


def client(options):
    """(context, server name) for options: sni, alpn, cert, maximum, minimum, ciphers."""
    prepare()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if options.get("alpn"):
        context.set_alpn_protocols(options["alpn"])
    if options.get("cert"):
        context.load_cert_chain(path(options["cert"] + ".pem"), path(options["cert"] + ".key"))
    if options.get("maximum"):
        context.maximum_version = options["maximum"]
    if options.get("minimum"):
        context.minimum_version = options["minimum"]
    if options.get("ciphers"):
        context.set_ciphers(options["ciphers"])
    return context, options.get("sni")
