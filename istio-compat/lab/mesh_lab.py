"""Handles of the mesh lab for end-to-end tests: commands, pods, requests, load. Standard library only."""

import json
import os
import re
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LAB = os.path.join(HERE, "lab")
STATE = os.environ.get("LAB_DIR", "/var/lib/mesh-lab")
GATEWAY = "10.44.0.10"
ENVOY = os.environ.get("DATA_PLANE_IS_ENVOY") == "1"


class Failure(AssertionError):
    """A check that did not hold; the text says what was expected and what was found."""


def check(condition, text):
    if not condition:
        raise Failure(text)


def sh(*args, input=None, timeout=120, ok=True):
    """Runs a command; gives its stdout."""
    done = subprocess.run(args, input=input, text=True, capture_output=True, timeout=timeout)
    if ok and done.returncode != 0:
        raise Failure(f"{' '.join(args)} failed ({done.returncode}): {done.stderr.strip()[-600:]} {done.stdout.strip()[-300:]}")
    return done.stdout


def lab(*args, **more):
    return sh(LAB, *args, **more)


def apply(yaml):
    lab("k", "apply", "-f", "-", input=yaml)


def delete(kind, namespace, name):
    lab("k", "delete", kind, "-n", namespace, name, "--ignore-not-found")


def eventually(text, probe, seconds=30, every=0.2):
    """Waits until `probe` is true; gives its value."""
    end = time.monotonic() + seconds
    last = None
    while True:
        try:
            last = probe()
            if last:
                return last
        except (Failure, subprocess.TimeoutExpired, ValueError) as error:
            last = error
        if time.monotonic() > end:
            raise Failure(f"{text}: not within {seconds} s; last: {last}")
        time.sleep(every)


def in_pod(pod, *cmd, **more):
    return lab("in", pod, *cmd, **more)


def admin(path, pod="ingress-1", method="GET"):
    return in_pod(pod, "curl", "-s", "-g", "-X", method, f"http://127.0.0.1:15000{path}")


def dump(pod="ingress-1", query=""):
    return json.loads(admin(f"/config_dump{query}", pod))


def section(config, kind):
    return next((c for c in config["configs"] if c["@type"].endswith(f".{kind}")), {})


class Response:
    def __init__(self, text):
        head, _, self.body = text.replace("\r\n", "\n").partition("\n\n")
        lines = head.split("\n")
        self.status = int(lines[0].split()[1]) if len(lines[0].split()) > 1 else 0
        self.headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()


def curl(path="/", host="shop.example.com", *more, pod="client-1", port=8080, scheme="http"):
    """One request through the gateway from another pod."""
    out = in_pod(pod, "curl", "-s", "-i", "-m", "10", "-H", f"Host: {host}", *more, f"{scheme}://{GATEWAY}:{port}{path}", ok=False)
    return Response(out) if out else Response("HTTP/1.1 0 none\r\n\r\n")


def spread(n, host="shop.example.com", path="/"):
    """Which pods answer `n` requests on one connection; anything but 200 counts under its status."""
    script = f"for i in $(seq {n}); do echo 'url = \"http://{GATEWAY}:8080{path}\"'; echo 'output = \"/dev/null\"'; done | curl -s -m 60 -H 'Host: {host}' -D - -K -"
    out = in_pod("client-1", "sh", "-c", script, timeout=180)
    counts = {}
    for block in out.replace("\r", "").split("\n\n"):
        if not block.strip():
            continue
        status = block.split()[1]
        pod = re.search(r"^x-pod: (.*)$", block, re.M | re.I)
        key = pod.group(1) if status == "200" and pod else status
        counts[key] = counts.get(key, 0) + 1
    return counts


class Load:
    """Constant load by fortio while something happens; `failures()` at the end."""

    def __init__(self, qps=200, connections=8, seconds=300, url=None, *more, host="shop.example.com"):
        url = url or f"http://{GATEWAY}:8080/"
        self.file = f"/tmp/mesh-lab-load-{os.getpid()}-{time.monotonic_ns()}.json"
        args = [LAB, "in", "client-1", f"{STATE}/bin/fortio", "load", "-qps", str(qps), "-c", str(connections), "-t", f"{seconds}s",
                "-allow-initial-errors", "-loglevel", "Error", "-json", self.file, "-H", f"Host: {host}", *more, url]
        self.process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)

    def stop(self):
        """Ends the load; gives (requests, {code: count}) of everything that was not 200."""
        sh("ip", "netns", "exec", "lab-client-1", "pkill", "-INT", "-f", self.file, ok=False)
        self.process.wait(timeout=30)
        with open(self.file, encoding="utf-8") as file:
            result = json.load(file)
        os.unlink(self.file)
        codes = result["RetCodes"]
        bad = {code: n for code, n in codes.items() if code != "200"}
        return sum(codes.values()), bad

    def without_failure(self, what):
        total, bad = self.stop()
        check(total > 50, f"{what}: only {total} requests were sent")
        check(not bad, f"{what}: {bad} of {total} requests failed")
        return total


def stat(name, pod="ingress-1"):
    for line in admin("/stats", pod).splitlines():
        key, _, value = line.partition(": ")
        if key == name:
            return int(value)
    return 0


def route_version(pod="ingress-1"):
    return admin("/config_dump?resource=dynamic_route_configs", pod)


def virtual_service(http, name="shop", gateways="istio-system/public", hosts="shop.example.com"):
    apply(f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{hosts}]
  gateways: [{gateways}]
  http:
{http}
""")


def envoy_filter(name, patches):
    """An EnvoyFilter for the gateways; `patches` is the YAML of its list, indented by two."""
    apply(f"""
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {{name: {name}, namespace: istio-system}}
spec:
  workloadSelector: {{labels: {{istio: ingressgateway}}}}
  configPatches:
{patches}
""")


def split(v1, v2):
    return f"""
  - name: split-{v1}-{v2}
    route:
    - {{destination: {{host: catalog.shop.svc.cluster.local, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: catalog.shop.svc.cluster.local, subset: v2}}, weight: {v2}}}
"""


def settled(marker):
    """Waits until the gateway's routes mention `marker`."""
    eventually(f"route with {marker}", lambda: marker in route_version())
