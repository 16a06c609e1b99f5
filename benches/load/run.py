#!/usr/bin/env python3
"""Load runs side by side: Selvedge and its peers, each with one worker on one core, in front of the same origin.

`make bench` builds what this needs and starts it. The contestants of a scenario run at the same time and are loaded in
turn, round after round, so that whatever disturbs the machine disturbs all of them; wrk and the origin have a core of
their own. Each contestant must give the right answer before anything is measured, and must ask the origin as often as
the scenario says, then and under load. Needs Linux, Python 3.9, nginx (it is the origin) and wrk; any other peer that
is missing is skipped, and said to be.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

sys.dont_write_bytecode = True  # a run leaves nothing in the checkout

from contestants import BODIES, PROJECT, SCENARIOS, Envoy, Haproxy, Nginx, Selvedge, Varnish, start_origin  # noqa: E402
from measure import Cores, Failure, Load, Origin, find_program, machine_busy  # noqa: E402
from report import Missing, summarise, table  # noqa: E402

WARM_UP = 1  # seconds of load before the first round of a scenario, for each contestant
START = 3  # seconds that starting and checking a scenario's contestants is reckoned to take
BUDGET = 330  # seconds for the whole run: with more rounds than fit, fewer are run, and that is said
PROBES = 20  # requests sent to see whether the origin is asked as often as it should be
LEGEND = (
    "Medians of the rounds. CPU is user and system time of the proxy and its children;\n"
    "the ratio is of CPU time per request: below 1 is cheaper than the reference."
)
BUSY = 0.1  # share of the machine in other programs' hands from which on figures are called noisy


@dataclass(frozen=True)
class Bench:
    """What every scenario of a run is measured with."""

    everyone: dict
    origin: Origin
    load: Load
    cores: Cores
    rounds: int
    seconds: int
    who: list


def main():
    options = arguments()
    scenarios = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    strangers = set(options.who) - {name for scenario in SCENARIOS for name in scenario.contestants}
    if strangers:
        sys.exit(f"bench: there is no contestant {', '.join(sorted(strangers))}")
    if not scenarios:
        names = ", ".join(scenario.name for scenario in SCENARIOS)
        sys.exit(f"bench: no scenario's name holds {options.only!r}; there are: {names}")
    nginx, wrk = find_program("nginx"), find_program("wrk")
    for name, path in (("nginx", nginx), ("wrk", wrk)):
        if not path:
            sys.exit(f"bench: {name} is missing: run `make setup-full` as root, or install it.")

    candidates = (Selvedge(options.selvedge, options.guest), Nginx(), Haproxy(), Varnish(), Envoy(options.guest))
    everyone = {contestant.name: contestant for contestant in candidates}
    cores = Cores.choose()
    rounds = affordable_rounds(scenarios, options)
    conditions = describe(everyone, options, rounds, cores)
    for line in conditions["notes"]:
        say(line)

    found, failed = [], False
    with ExitStack() as run:
        scratch = Path(run.enter_context(tempfile.TemporaryDirectory(prefix="selvedge-bench-")))
        origin = run.enter_context(start_origin(nginx, cores.load, scratch))
        origin.wait_until_ready(next(iter(BODIES)))
        load = Load(wrk, find_program("h2load"), options.connections, cores.load, scratch)
        bench = Bench(everyone, origin, load, cores, rounds, options.seconds, options.who)
        for number, scenario in enumerate(scenarios):
            directory = scratch / str(number)
            directory.mkdir()
            results = run_scenario(bench, scenario, directory)
            failed |= any(isinstance(seen, Missing) and seen.at_fault for seen in results.values())
            found.append(summarise(scenario, results))

    if options.json:
        print(json.dumps({**conditions, "scenarios": found}, indent=2))
    else:
        print(f"\n{table(found)}\n\n{LEGEND}")
    return 1 if failed else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    rounds = int(os.environ.get("ROUNDS", "5"))
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds per scenario (default: $ROUNDS, else 5)")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run (default 3)")
    parser.add_argument("--connections", type=int, default=32, help="connections wrk keeps busy (default 32)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only scenarios whose name holds TEXT")
    parser.add_argument("--who", default="", metavar="NAMES", help="only these contestants, separated by commas")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table, every round included")
    parser.add_argument("--selvedge", type=Path, default=PROJECT / "target/release/selvedge", help="the node's binary")
    parser.add_argument(
        "--guest",
        type=Path,
        default=PROJECT / "target/guests/wasm32-wasip1/wasm/examples/noop.wasm",
        help="the trivial filter that both wasm hosts run",
    )
    options = parser.parse_args()
    if min(options.rounds, options.seconds, options.connections) < 1:
        parser.error("--rounds, --seconds and --connections are at least 1")
    options.who = [name for name in options.who.split(",") if name]
    options.selvedge, options.guest = options.selvedge.resolve(), options.guest.resolve()
    return options


def affordable_rounds(scenarios, options):
    runs = sum(len(scenario.contestants) for scenario in scenarios)
    left = BUDGET - len(scenarios) * START - runs * (WARM_UP + 1)
    return max(1, min(options.rounds, int(left // (runs * (options.seconds + 0.3)))))


def describe(everyone, options, rounds, cores):
    """The conditions of the run: what a reader must know to judge its figures."""
    present = {
        name: contestant for name, contestant in everyone.items() if contestant.path and Path(contestant.path).exists()
    }
    versions = {name: contestant.version() for name, contestant in present.items()}
    busy = machine_busy()
    notes = [
        f"{cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"{rounds} rounds of {options.seconds} s, {options.connections} connections",
        "one core only: nothing is pinned, and the load takes its time from the proxies"
        if cores.proxy is None
        else f"proxies on core {cores.proxy}, wrk and the origin on core {cores.load}",
    ]
    if rounds < options.rounds:
        notes.append(f"{rounds} rounds instead of {options.rounds}, to be done within {BUDGET} s")
    if busy > BUSY:
        notes.append(f"noisy: other programs use {busy:.0%} of the machine")
    return {
        "rounds": rounds,
        "seconds": options.seconds,
        "connections": options.connections,
        "versions": versions,
        "busy_before": round(busy, 3),
        "notes": notes,
    }


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def run_scenario(bench, scenario, directory):
    """The rounds of each contestant, or why there are none."""
    results, running = {}, {}
    with ExitStack() as started:
        for name in scenario.contestants:
            if bench.who and name not in bench.who:
                continue
            contestant = bench.everyone[name]
            absent = contestant.absent(scenario) or bench.load.absent(scenario)
            if absent:
                results[name] = Missing(f"skipped: {absent}", at_fault=False)
                continue
            results[name] = []
            server = contestant.start(scenario, bench.origin.port, bench.cores.proxy, directory)
            running[name] = started.enter_context(server)

        def prepare(server):
            server.wait_until_ready(scenario.path)
            check_answers(scenario, server, bench.origin)
            bench.load.run(server, scenario, WARM_UP)

        def measure(server):
            before = bench.origin.requests()
            seen = bench.load.run(server, scenario, bench.seconds)
            check_origin(scenario, bench.origin.requests() - before, seen["requests"])
            results[server.name].append({**seen, "rss_mib": server.rss_mib()})

        def attempt(name, step):
            """A contestant that fails leaves the scenario; the others go on."""
            try:
                step(running[name])
            except (Failure, OSError, HTTPException) as error:
                results[name] = Missing(f"failed: {error}", at_fault=True)
                say(f"{scenario.name}: {name} {results[name].reason}")
                del running[name]

        for name in list(running):
            attempt(name, prepare)
        for turn in range(bench.rounds):
            names = list(running)
            first = turn % max(1, len(names))
            for name in names[first:] + names[:first]:
                attempt(name, measure)
            say(f"{scenario.name}: round {turn + 1} of {bench.rounds}")
    return results


def check_answers(scenario, server, origin):
    """Right status, right body, and the right number of questions to the origin."""
    for _ in range(3):  # fills the cache, where there is one; some store only after they have answered
        server.get(scenario.path)
    before = origin.requests()
    for _ in range(PROBES):
        status, body = server.get(scenario.path)
        if status != 200 or body != BODIES[scenario.path]:
            raise Failure(f"wrong answer: status {status}, {len(body)} bytes {body[:40]!r}")
    check_origin(scenario, origin.requests() - before, PROBES)


def check_origin(scenario, asked, answered):
    """A hit asks the origin nothing; anything else asks it for every answer."""
    if scenario.cached and asked:
        raise Failure(f"{asked} of {answered} cache hits reached the origin")
    if not scenario.cached and asked < answered:
        raise Failure(f"only {asked} of {answered} requests reached the origin")


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    started_at = time.monotonic()
    # Ending by a signal takes the same way out as everything else: every contestant is stopped, the directory removed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    say(f"done in {time.monotonic() - started_at:.0f} s")
    sys.exit(status)
