"""Path normalisation: dot segments, slashes, escapes, fragments, case. What the route saw is told by the route's name in the log and by
the path that the access log and the upstream see."""
from harness.config import route, say
from harness.setup import Setup

PATHS = [
    "/", "/a", "/a/b", "/a/", "//a", "/a//b", "///a", "/a///", "/./a", "/a/.", "/a/./b", "/../a", "/a/..", "/a/../b", "/a/b/../../c",
    "/a/b/../../../c", "/a/b/../c/..", "/..", "/.", "/...", "/a/...", "/a..b", "/a/.b", "/a/b.", "/%2e/a", "/%2E/a", "/a/%2e%2e/b",
    "/a/%2E%2E/b", "/a/.%2e/b", "/a/%2e./b", "/%61", "/%41", "/%7Ea", "/%7ea", "/a%20b", "/a%2Fb", "/a%2fb", "/a%5Cb", "/a%5cb", "/a\\b",
    "/a\\..\\b", "/a/..\\b", "/a%", "/a%2", "/a%zz", "/a%2fb%2F..", "/a?x=1", "/a/../b?x=/../y", "/a?x=%2e%2e", "/a?x//y", "/a#frag",
    "/a?q#frag", "/a#frag?q", "/a/..#x", "/#", "/?", "/?#", "?", "/a;b=c", "/a;b/../c", "/a%3Bb", "/a%3bb/%2e%2e/c", "/a:b@c", "/a%00b",
    "/a%0ab", "/a%0d%0ab", "/a%25", "/a%252fb", "/a%252e%252e/b", "/~user", "/!$&'()*+,;=:@", "/[x]", "/{x}", "/|x|", "/^x", "/`x`",
    '/"x"', "/<x>", "/a%7fb", "/%c3%a9", "/%C3%A9", "/a+b", "/a%2Bb", "*", "/*", "/a//../b", "/a/%2e%2e//b", "//..//a", "/a/.%2E", "/%2e",
    "/%2e%2e", "/A/B", "/a%2F..%2Fb", "/a/%5c../b", "/a%5c..%5cb",
]
HTTP1_ONLY = ["http://host/a/../b", "http://other/a", "http://other", "http://other/", "http://other?x", "HTTP://other/a", "https://other/a",
              "http://other:80/a", "http://other:8080//b", "ftp://other/a", "http:///a", "http://", "a", "a/b", "http://u:p@other/a"]

OPTIONS = {
    "plain": {},
    "normalize": {"normalize_path": True},
    "merge": {"merge_slashes": True},
    "both": {"normalize_path": True, "merge_slashes": True},
    "reject": {"normalize_path": True, "merge_slashes": True, "path_with_escaped_slashes_action": "REJECT_REQUEST"},
    "redirect": {"normalize_path": True, "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT"},
    "forward": {"normalize_path": True, "merge_slashes": True, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"},
    "keep": {"path_with_escaped_slashes_action": "KEEP_UNCHANGED"},
    "unescape": {"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"},
}
INTERESTING = [path for path in PATHS if any(mark in path for mark in ("%2", "//", "..", "%5", "\\", "#", "%2e"))]


def setups():
    made = []
    for name, options in OPTIONS.items():
        routes = [
            route({"path": "/b"}, name="exact-b", direct_response=say("exact b")),
            route({"prefix": "/a/"}, name="under-a", direct_response=say("under a")),
            route({"prefix": "/a"}, name="prefix-a", direct_response=say("prefix a")),
            route({"prefix": "/"}, name="rest", direct_response=say("rest")),
        ]
        setup = Setup(name, routes=routes, hcm=options)
        for path in (PATHS + HTTP1_ONLY if name in ("plain", "both") else INTERESTING):
            setup.get(path)
        made.append(setup)
    wire = Setup("http2", routes=[route("/", name="rest", direct_response=say("rest"))], hcm={"normalize_path": True, "merge_slashes": True})
    for path in ["/", "/a//b", "/a/../b", "*", "", "a", "/a b", "/a#b", "/a%00b", "/é", "/a\tb", "http://x/y", "/%2e%2e/a"]:
        wire.http2(repr(path), path=path)
    made.append(wire)
    return made
