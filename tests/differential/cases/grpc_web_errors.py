"""What grpc_web makes of responses that are not gRPC: their body becomes the message, whenever it comes."""
from harness.config import extension
from harness.setup import Setup, reply


def setups():
    setup = Setup("explained", filters=[extension("envoy.filters.http.grpc_web", "filters.http.grpc_web.v3.GrpcWeb")])
    answers = {
        "503": [reply(503, [], "no room\n", reason="Service Unavailable")], "empty": [reply(404, [], "", reason="Not Found")], "html": [reply(200, [("content-type", "text/html")], "<p>100%</p>")],
        "chunked": [[b"HTTP/1.1 502 Bad Gateway\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"]],
        "slow": [[b"HTTP/1.1 502 Bad Gateway\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n", 0.2, b"3\r\ntwo\r\n0\r\n\r\n"]],
        "until close": [[b"HTTP/1.1 429 Slow\r\n\r\nwait", 0.1, "close"]],
    }
    for kind in ("application/grpc-web", "application/grpc-web-text", "application/grpc-web+proto", "application/grpc"):
        for name, answer in answers.items():
            setup.get(f"{kind} {name}", "/a.B/C", [("content-type", kind), ("accept", kind)], method="POST", body=b"AAAAAAA=", upstream=answer)
    return [setup]
