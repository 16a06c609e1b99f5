"""Running a program on one core, loading it with wrk or h2load, and reading what it cost from /proc."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_LIMIT = 20.0  # seconds a contestant may take to answer its first request; Envoy compiles five filters meanwhile
STOP_LIMIT = 5.0  # seconds between the polite signal and the other one
STREAMS = 8  # requests at once on an HTTP/2 connection
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Failure(Exception):
    """A contestant that does not start, or does not do what it is measured for."""


def find_program(name):
    """The program's path, looked up where Debian puts servers too; None when it is not installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Cores:
    """Which core the measured proxy runs on, and which one the load and the origin share. None: not pinned."""

    proxy: "int | None"
    load: "int | None"

    @classmethod
    def choose(cls):
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


def spawn(command, core, **options):
    """Starts a program, and thereby all its children, on one core and in a process group of its own."""
    pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
    return subprocess.Popen([str(word) for word in command], start_new_session=True, preexec_fn=pin, **options)


class Server:
    """A running program that listens on a loopback port. Leaving the `with` block ends it and its children."""

    def __init__(self, name, command, port, core, directory, tls=False):
        self.name, self.port, self.tls = name, port, tls
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = spawn(command, core, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_LIMIT)
        # What is left of the group is what did not stop when asked: its number is ours, and no other program is in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_until_ready(self, path):
        deadline = time.monotonic() + START_LIMIT
        seen = "no connection"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failure(f"ended with status {self.process.returncode}: {self.last_words()}")
            try:
                status, _ = self.get(path)
                if status == 200:
                    return
                seen = f"status {status}"
            except (OSError, http.client.HTTPException) as error:
                seen = str(error) or type(error).__name__
            time.sleep(0.05)
        raise Failure(f"not ready after {START_LIMIT:.0f} s ({seen}): {self.last_words()}")

    def get(self, path):
        """Status and body of one request on a connection of its own."""
        if self.tls:
            anybody = ssl._create_unverified_context()  # whose certificate it is matters to nobody here
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=anybody)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def url(self, path):
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}{path}"

    def last_words(self):
        text = self.log.read_text(errors="replace").strip()
        return " / ".join(text.splitlines()[-4:]) or "it logged nothing"

    def cpu_seconds(self):
        """User and system time of the process, its threads and its children, ended ones included."""
        ticks = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                fields = _stat(pid)
                ticks += sum(int(fields[i]) for i in (11, 12, 13, 14))  # utime stime cutime cstime
        return ticks / TICKS_PER_SECOND

    def cpu_seconds_exactly(self):
        """The same to the nanosecond, of the threads that are running now; processes that ended are not counted."""
        spent = 0
        for pid in self._processes():
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    spent += int((thread / "schedstat").read_text().split()[0])
        return spent / 1e9

    def rss_mib(self):
        """Resident memory of the process and its children."""
        kib = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                kib += int(found.group(1)) if found else 0
        return kib / 1024

    def _processes(self):
        """Every process of the group that `spawn` made."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if int(_stat(entry)[2]) == self.process.pid:
                        found.append(entry)
        return found


def _stat(pid):
    """The fields of /proc/PID/stat from the third (state) on: the second, the name, may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Origin(Server):
    """nginx with one worker that answers from memory, and counts."""

    COUNT = "/requests-so-far"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._asked = 0

    def requests(self):
        """How many requests have come in, these questions not counted."""
        _, text = self.get(self.COUNT)
        self._asked += 1
        return int(text.split()[9]) - self._asked


@dataclass(frozen=True)
class Load:
    """How hard, how long, and from which core."""

    wrk: str
    h2load: "str | None"
    connections: int
    core: "int | None"
    scratch: Path

    def run(self, server, scenario, seconds):
        """Loads one server; a dict with the rate, the CPU time per request and the latency."""
        before = server.cpu_seconds()
        seen = (self._h2load if scenario.http2 else self._wrk)(server, scenario.path, seconds)
        spent = server.cpu_seconds() - before
        if seen["bad_status"] or seen["socket_errors"] or not seen["requests"]:
            raise Failure(
                "under load: {requests} answers, {bad_status} bad, {socket_errors} socket errors".format(**seen)
            )
        return {
            "requests": seen["requests"],
            "requests_per_second": seen["requests"] / (seen["duration_us"] / 1e6),
            "cpu_us_per_request": spent * 1e6 / seen["requests"],
            "p50_us": seen["p50_us"],
            "p99_us": seen["p99_us"],
        }

    def absent(self, scenario):
        """Why the scenario cannot be run; None when it can."""
        if scenario.tls and not find_program("openssl"):
            return "openssl not installed"
        return "h2load not installed" if scenario.http2 and not self.h2load else None

    def _wrk(self, server, path, seconds):
        output = self._output(
            [self.wrk, "-t1", f"-c{self.connections}", f"-d{seconds}s", "-s", HERE / "wrk.lua", server.url(path)], seconds
        )
        try:
            return json.loads(output.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise Failure(f"wrk said: {output.strip()}") from None

    def _h2load(self, server, path, seconds):
        """As many requests at once as with wrk, eight to a connection."""
        log = self.scratch / "h2load.log"
        connections = max(1, self.connections // STREAMS)
        output = self._output(
            [self.h2load, "-t1", f"-c{connections}", f"-m{STREAMS}", f"-D{seconds}", f"--log-file={log}", server.url(path)],
            seconds,
        )
        counts = re.search(r"requests: .* (\d+) done, \d+ succeeded, \d+ failed, (\d+) errored, (\d+) timeout", output)
        codes = re.search(r"status codes: (\d+) 2xx", output)
        if not counts or not codes:
            raise Failure(f"h2load said: {output.strip()}")
        done, errored, late = (int(count) for count in counts.groups())
        took = sorted(int(line.split()[2]) for line in log.read_text().splitlines()) or [0]
        log.unlink()
        return {
            "requests": done,
            "duration_us": seconds * 1_000_000,
            "bad_status": done - int(codes.group(1)),
            "socket_errors": errored + late,
            "p50_us": took[len(took) // 2],
            "p99_us": took[len(took) * 99 // 100],
        }

    def _output(self, command, seconds):
        with spawn(command, self.core, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            try:
                output, _ = running.communicate(timeout=seconds + 15)
            except subprocess.TimeoutExpired:
                raise Failure(f"{Path(command[0]).name} did not come back: the contestant hangs") from None
            finally:
                running.kill()
        return output


def machine_busy(seconds=1.0):
    """Which share of the machine other programs are using just now, 0 to 1."""

    def read():
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # all, idle + iowait

    all_before, idle_before = read()
    time.sleep(seconds)
    all_after, idle_after = read()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)
