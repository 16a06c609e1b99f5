#!/usr/bin/env python3
"""What filters add to a request: CPU time through sockets, of a chain with one and with five filters beside one with none.

The chains stand in one process, on one core, and are loaded in turn, a tenth of a second each, in an order that changes from
round to round. So the differences of a round know nothing of where a process happens to lie in memory, and little of what
else the machine does. Request and response have no body. The very same module is measured on Envoy, in the same rounds,
where Envoy is installed. Needs nginx (the origin), h2load, a built node and the guests (`make bench-guest`).
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from contestants import BODIES, PROJECT, Envoy, Scenario, Selvedge, start_origin
from measure import Cores, Failure, find_program, free_port, spawn

CHAINS = (0, 1, 5)
REQUESTS = 4000  # of a chain in a round
CONNECTIONS = 16
LIMIT = 30  # seconds for them


def path(count):
    return f"/chain-{count}"


class SelvedgeChains(Selvedge):
    """One route for each chain."""

    def command(self, scenario, port, origin_port, directory):
        words = super().command(scenario, port, origin_port, directory)
        file = directory / "selvedge.yaml"
        config = json.loads(file.read_text())
        names = list(config["filters"])
        config["sites"][0]["routes"] = [
            {"name": f"chain-{count}", "match": {"path": path(count)}, "to": "origin", "filters": names[:count]}
            for count in CHAINS
        ]
        file.write_text(json.dumps(config, indent=2))
        return words

    def ports(self, port):
        return {count: port for count in CHAINS}


class EnvoyChains(Envoy):
    """One listener for each chain."""

    def command(self, scenario, port, origin_port, directory):
        words = super().command(scenario, port, origin_port, directory)
        file = directory / "envoy.yaml"
        config = json.loads(file.read_text())
        (whole,) = config["static_resources"]["listeners"]
        self.found = {count: port if count == max(CHAINS) else free_port() for count in CHAINS}
        config["static_resources"]["listeners"] = [listener(whole, count, self.found[count]) for count in CHAINS]
        file.write_text(json.dumps(config, indent=2))
        return words

    def ports(self, _port):
        return self.found


def listener(whole, count, port):
    """Envoy's listener with so many of its filters, on a port of its own."""
    own = json.loads(json.dumps(whole))
    own["name"] = f"chain-{count}"
    own["address"]["socket_address"]["port_value"] = port
    connections = own["filter_chains"][0]["filters"][0]["typed_config"]
    *filters, router = connections["http_filters"]
    connections["http_filters"] = [*filters[:count], router]
    return own


class Chain:
    """One of a process's chains."""

    def __init__(self, server, port, count):
        self.server, self.count = server, count
        self.url = f"http://127.0.0.1:{port}{path(count)}"

    def load(self, h2load, core):
        """What a request costs, in microseconds of CPU."""
        words = [h2load, "--h1", "-t1", f"-c{CONNECTIONS}", f"-n{REQUESTS}", self.url]
        before = self.server.cpu_seconds_exactly()
        with spawn(words, core, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            try:
                output, _ = running.communicate(timeout=LIMIT)
            finally:
                running.kill()
        spent = self.server.cpu_seconds_exactly() - before
        if not re.search(rf"status codes: {REQUESTS} 2xx", output):
            raise Failure(f"h2load said: {output.strip()}")
        return spent * 1e6 / REQUESTS


def told(name, differences):
    """Minimum, median and maximum, and the middle half, of what a chain added in each round."""
    ordered = sorted(differences)
    quarter = len(ordered) // 4
    low, high = ordered[quarter], ordered[-1 - quarter]
    print(
        f"{name:<22} min {ordered[0]:6.2f}  median {statistics.median(ordered):6.2f}  max {ordered[-1]:6.2f}"
        f"  middle half {low:.2f} to {high:.2f} us"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    guests = PROJECT / "target/guests/wasm32-wasip1/wasm/examples"
    parser.add_argument("--rounds", type=int, default=100, help="rounds; one takes a second or so (default 100)")
    parser.add_argument("--selvedge", type=Path, default=[], action="append", help="a node's binary; may be repeated")
    parser.add_argument("--guest", type=Path, default=guests / "hello.wasm", help="the filter (default: the SDK's hello)")
    parser.add_argument("--alone", action="store_true", help="without Envoy")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    nginx, h2load = find_program("nginx"), find_program("h2load")
    if not nginx or not h2load:
        sys.exit("added: nginx and h2load are needed: run `make setup-full` as root, or install them.")

    cores, guest = Cores.choose(), options.guest.resolve()
    BODIES.update({path(count): b"" for count in CHAINS})
    nodes = options.selvedge or [PROJECT / "target/release/selvedge"]
    contestants = [SelvedgeChains(node.resolve(), guest) for node in nodes]
    contestants += [] if options.alone else [EnvoyChains(guest)]
    most = Scenario("added", path(max(CHAINS)), (), "", filters=max(CHAINS))
    spent = {}
    with ExitStack() as run:
        scratch = Path(run.enter_context(tempfile.TemporaryDirectory(prefix="selvedge-added-")))
        origin = run.enter_context(start_origin(nginx, cores.load, scratch))
        origin.wait_until_ready(path(0))
        chains = []
        for number, contestant in enumerate(contestants):
            absent = contestant.absent(most)
            if absent:
                print(f"{contestant.name}: skipped: {absent}")
                continue
            directory = scratch / str(number)
            directory.mkdir()
            server = run.enter_context(contestant.start(most, origin.port, cores.proxy, directory))
            server.wait_until_ready(most.path)
            label = contestant.name if len(nodes) == 1 or contestant.name == "envoy" else contestant.path.name
            chains += [(label, Chain(server, contestant.ports(server.port)[count], count)) for count in CHAINS]

        for _, chain in chains:
            chain.load(h2load, cores.load)  # warms up
        for _ in range(options.rounds):
            random.shuffle(chains)
            for label, chain in chains:
                spent.setdefault((label, chain.count), []).append(chain.load(h2load, cores.load))

    for label in dict.fromkeys(label for label, _ in sorted(spent)):
        none, *others = ((count, spent[label, count]) for count in CHAINS)
        print(f"{label}: {statistics.median(none[1]):.2f} us of CPU for a request without filters")
        for count, costs in others:
            differences = [cost - base for cost, base in zip(costs, none[1], strict=True)]
            told(f"  {count} filter{'s' if count > 1 else ''} add{'' if count > 1 else 's'}", differences)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"added: {failure}")
