# The one front door. CI calls these targets and nothing else.
CARGO ?= cargo
LAB = istio-compat/lab

.PHONY: demo build test differential h2spec e2e bench stall lint advisories fuzz

build:            ## the release binary: target/release/nuncio
	$(CARGO) build --release --locked -p nuncio

demo: build       ## builds, runs the gateway on an embedded example, shows canary, ejection, route change
	NUNCIO_BIN=target/release/nuncio $(CARGO) run --release --locked -q -p nuncio-tests --bin demo

test:             ## every test that needs nothing but Rust
	$(CARGO) build --locked -p nuncio
	$(CARGO) test --locked --workspace -q

differential:     ## Envoy and Nuncio side by side: same configuration, same bytes, same behaviour (see docs/envoy-differences.md)
	tests/need differential
	$(CARGO) build --locked -p nuncio
	python3 tests/differential/run.py $(CASES)

h2spec:           ## h2spec in full, over plaintext and TLS
	tests/need h2spec
	$(CARGO) build --locked -p nuncio
	python3 tests/h2spec/run.py

lint:             ## formatting, clippy, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -q -- -D warnings
	$(CARGO) deny --log-level error check bans licenses sources

advisories:       ## known vulnerabilities; needs the RustSec database from the network
	$(CARGO) deny --log-level error check advisories

e2e: build        ## the mesh: real istiod, Kubernetes API, pilot-agent (root, Go, Debian packages; see docs/testing.md)
	tests/need mesh
	$(LAB)/lab built || $(LAB)/lab build
	install -D -m 755 target/release/nuncio /var/lib/mesh-lab/bin/nuncio
	python3 $(LAB)/e2e.py /var/lib/mesh-lab/bin/nuncio $(CHECKS)

bench: build      ## side by side with Envoy, nginx and haproxy, as ratios
	tests/need bench
	python3 tests/bench/bench.py $(ROWS)

stall:            ## 20,000 requests of 100 KB through concurrency_queue while the upstream stalls: over HTTP/2, twice, and over HTTP/1.1
	$(CARGO) build --release --locked -p nuncio
	python3 tests/bench/stall.py
	python3 tests/bench/stall.py --last-first
	python3 tests/bench/stall.py --max-wait 5 --places 4
	python3 tests/bench/stall.py --http1 --requests 9000

fuzz:             ## each fuzz target (or TARGETS) for SECONDS_EACH (60)
	tests/need fuzz
	cd tests/fuzz && for t in $${TARGETS:-$$($(CARGO) fuzz list)}; do mkdir -p corpus/$$t && \
	  RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run -s none $$t corpus/$$t seeds/$$t -- -max_total_time=$${SECONDS_EACH:-60} -dict=words.dict || exit 1; done
