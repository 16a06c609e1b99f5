#!/usr/bin/env python3
"""Purges at full speed while a node serves hits: how many are acknowledged each second, and what they cost the hits.

Prints requests each second and latencies of one cached page, first alone, then beside connections that purge by tag through
the admin API as fast as they are answered. Fails when a purge is refused, or when the page is not answered as it should be.
What is purged is not what is asked for, so that every request stays a hit. Needs nginx (the origin), wrk and a built node.
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from contestants import PROJECT, Scenario, Selvedge, start_origin
from measure import Cores, Load, find_program, free_port

FIELDS = {"content-type": "application/json", "host": "localhost"}
TAGS = 1000  # different ones, in turn


class WithAdmin(Selvedge):
    """The node, with an admin API."""

    def __init__(self, path, admin):
        super().__init__(path, None)
        self.admin = admin

    def command(self, scenario, port, origin_port, directory):
        words = super().command(scenario, port, origin_port, directory)
        file = directory / "selvedge.yaml"
        config = json.loads(file.read_text())
        config["admin"] = {"bind": f"127.0.0.1:{self.admin}"}
        file.write_text(json.dumps(config, indent=2))
        return words


def storm(admin, stop, counts, number):
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=10)
    while not stop.is_set():
        body = json.dumps({"tags": [f"storm-{number}-{counts[number] % TAGS}"]})
        connection.request("POST", "/v1/cache/purge", body, FIELDS)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            sys.exit(f"purge: a purge was answered {answer.status}")
        counts[number] += 1


def told(name, result):
    rate, cpu = result["requests_per_second"], result["cpu_us_per_request"]
    print(
        f"{name:<13} {rate:9,.0f} hits/s, {cpu:5.1f} us of CPU each, p50 {result['p50_us']} us, p99 {result['p99_us']} us",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=int, default=5, help="how long each part takes (default 5)")
    parser.add_argument("--purgers", type=int, default=4, help="connections that purge (default 4)")
    parser.add_argument("--selvedge", type=Path, default=PROJECT / "target/release/selvedge", help="the node's binary")
    options = parser.parse_args()
    nginx, wrk = find_program("nginx"), find_program("wrk")
    if not nginx or not wrk:
        sys.exit("purge: nginx and wrk are needed: run `make setup-full` as root, or install them.")

    cores, admin = Cores.choose(), free_port()
    scenario = Scenario("purge", "/1k", ("selvedge",), "selvedge", cached=True)
    node = WithAdmin(options.selvedge.resolve(), admin)
    with ExitStack() as run:
        scratch = Path(run.enter_context(tempfile.TemporaryDirectory(prefix="selvedge-purge-")))
        origin = run.enter_context(start_origin(nginx, cores.load, scratch))
        origin.wait_until_ready(scenario.path)
        server = run.enter_context(node.start(scenario, origin.port, cores.proxy, scratch))
        server.wait_until_ready(scenario.path)
        load = Load(wrk, None, 32, cores.load, scratch)
        told("hits alone", load.run(server, scenario, options.seconds))

        stop, counts = threading.Event(), [0] * options.purgers
        purgers = [threading.Thread(target=storm, args=(admin, stop, counts, i)) for i in range(options.purgers)]
        began = time.monotonic()
        for purger in purgers:
            purger.start()
        told("beside purges", load.run(server, scenario, options.seconds))
        stop.set()
        for purger in purgers:
            purger.join()
        elapsed = time.monotonic() - began
        print(f"{sum(counts) / elapsed:,.0f} purges acknowledged each second")


if __name__ == "__main__":
    main()
