#!/usr/bin/env python3
"""Many requests through five filters, and what becomes of the node's memory.

Prints the resident memory after each slice of the run. Fails when the last is more than 5 % above the one after the first
200,000 requests, which are the warm-up, or when any answer is not as it should be. Needs nginx (the origin), wrk and a built node.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from contestants import PROJECT, Scenario, Selvedge, start_origin
from measure import Cores, Load, find_program

SLICE_SECONDS = 4
WARM_UP = 200_000  # requests
GROWTH = 1.05


class Isolated(Selvedge):
    """The node, its filters with an isolation of their own."""

    def __init__(self, path, guest, isolation):
        super().__init__(path, guest)
        self.isolation = isolation

    def filter(self):
        return {**super().filter(), "isolation": self.isolation}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=1_000_000, help="how many at least (default a million)")
    parser.add_argument("--filters", type=int, default=5, help="how many filters (default 5)")
    parser.add_argument("--isolation", default="worker", choices=["worker", "request"], help="default worker")
    parser.add_argument("--selvedge", type=Path, default=PROJECT / "target/release/selvedge", help="the node's binary")
    parser.add_argument(
        "--guest", type=Path, default=PROJECT / "target/guests/wasm32-wasip1/wasm/examples/touch.wasm", help="the filter"
    )
    options = parser.parse_args()
    nginx, wrk = find_program("nginx"), find_program("wrk")
    if not nginx or not wrk:
        sys.exit("soak: nginx and wrk are needed: run `make setup-full` as root, or install them.")

    cores = Cores.choose()
    scenario = Scenario("soak", "/64", ("selvedge",), "selvedge", filters=options.filters)
    node = Isolated(options.selvedge.resolve(), options.guest.resolve(), options.isolation)
    seen, memory = 0, []
    with ExitStack() as run:
        scratch = Path(run.enter_context(tempfile.TemporaryDirectory(prefix="selvedge-soak-")))
        origin = run.enter_context(start_origin(nginx, cores.load, scratch))
        origin.wait_until_ready(scenario.path)
        server = run.enter_context(node.start(scenario, origin.port, cores.proxy, scratch))
        server.wait_until_ready(scenario.path)
        load = Load(wrk, None, 32, cores.load, scratch)
        while seen < options.requests + WARM_UP or not memory:
            seen += load.run(server, scenario, SLICE_SECONDS)["requests"]
            now = server.rss_mib()
            if seen >= WARM_UP:
                memory.append(now)
            print(f"{seen:>10,} requests {now:8.1f} MiB", flush=True)

    first, last = memory[0], memory[-1]
    print(f"isolation {options.isolation}: {first:.1f} MiB after warm-up, {last:.1f} MiB at the end, {max(memory):.1f} MiB at most")
    return 0 if last <= first * GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
