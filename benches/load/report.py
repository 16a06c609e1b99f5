"""What a run found, as a table for people and as JSON for programs."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Missing:
    """Why a contestant has no figures. `at_fault`: it was there, and did not do what it should."""

    reason: str
    at_fault: bool


def summarise(scenario, rounds):
    """One scenario's results: medians over the rounds, and CPU time per request against that of the reference.

    `rounds` maps a contestant's name to the list of its rounds, or to `Missing`. The ratio is taken within each round,
    whose runs stand next to each other in time, and then the median of these: what slows the whole machine for a while
    falls out of it.
    """
    results = []
    reference = rounds.get(scenario.reference)
    for name, seen in rounds.items():
        if isinstance(seen, Missing):
            results.append({"contestant": name, "missing": seen.reason})
            continue
        cpu = [run["cpu_us_per_request"] for run in seen]
        row = {
            "contestant": name,
            "requests_per_second": median(run["requests_per_second"] for run in seen),
            "cpu_us_per_request": {"median": median(cpu), "min": min(cpu), "max": max(cpu)},
            "rss_mib": seen[-1]["rss_mib"],
            "p50_us": median(run["p50_us"] for run in seen),
            "p99_us": median(run["p99_us"] for run in seen),
            "cpu_ratio": None,
            "rounds": seen,
        }
        if isinstance(reference, list):
            row["cpu_ratio"] = median(ours / theirs["cpu_us_per_request"] for ours, theirs in zip(cpu, reference))
        results.append(row)
    return {"scenario": scenario.name, "reference": scenario.reference, "results": results}


REASON = 100  # characters of a reason in the table; the whole of it went to stderr and stands in the JSON
HEADINGS = ("scenario", "contestant", "requests/s", "CPU us/request", "(min-max)", "p99 us", "RSS MiB", "CPU ratio")


def table(scenarios):
    """The results as aligned text, one line for each scenario and contestant."""
    lines = [HEADINGS]
    for scenario in scenarios:
        for row in scenario["results"]:
            if "missing" in row:
                lines.append((scenario["scenario"], row["contestant"], row["missing"][:REASON]))
                continue
            cpu = row["cpu_us_per_request"]
            ratio = "" if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.2f} x {scenario['reference']}"
            lines.append(
                (
                    scenario["scenario"],
                    row["contestant"],
                    f"{row['requests_per_second']:,.0f}",
                    f"{cpu['median']:.1f}",
                    f"({cpu['min']:.1f}-{cpu['max']:.1f})",
                    f"{row['p99_us']:,.0f}",
                    f"{row['rss_mib']:.0f}",
                    ratio,
                )
            )
    full = [line for line in lines if len(line) == len(HEADINGS)]
    widths = [max(len(line[column]) for line in full) for column in range(len(HEADINGS))]
    for column in (0, 1):
        widths[column] = max(len(line[column]) for line in lines)

    text, previous = [], None
    for line in lines:
        if line[0] != previous and previous is not None:
            text.append("")
        previous = line[0]
        left = "  ".join(cell.ljust(width) for cell, width in zip(line[:2], widths))
        if len(line) == len(HEADINGS):
            right = "  ".join(cell.rjust(width) for cell, width in zip(line[2:-1], widths[2:-1]))
            text.append(f"{left}  {right}  {line[-1]}".rstrip())
        else:
            text.append(f"{left}  {line[2]}")
    return "\n".join(text)
