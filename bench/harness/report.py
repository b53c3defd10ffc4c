"""Values into a table and a JSON file."""

import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from . import machine


class Results:
    """Values of each line and peer, in the order in which they were first measured.

    `reference` is the peer that all are compared with; None where there is none.
    """

    def __init__(self, reference="reference"):
        self.reference = reference
        self.values = {}
        self.notes = {}
        self.lines = {}

    def line(self, line, unit, better):
        self.lines[line] = {"unit": unit, "better": better}

    def add(self, line, peer, value, note=None):
        self.values.setdefault(line, {}).setdefault(peer, []).append(value)
        if note:
            self.notes.setdefault(line, {})[peer] = note

    def fail(self, line, peer, why):
        self.notes.setdefault(line, {})[peer] = f"failed: {why}"

    def ratio(self, line, peer):
        """How many times the value of the peer that all are compared with; None where one is not measured."""
        values = self.values.get(line, {})
        reference = values.get(self.reference)
        if not reference or peer not in values or not statistics.median(reference):
            return None
        return statistics.median(values[peer]) / statistics.median(reference)

    def rows(self):
        for line, about in self.lines.items():
            peers = dict(self.values.get(line, {}))
            for peer in self.notes.get(line, {}):
                peers.setdefault(peer, [])
            for peer, values in peers.items():
                yield {
                    "line": line,
                    "peer": peer,
                    **about,
                    "values": values,
                    "median": statistics.median(values) if values else None,
                    "min": min(values, default=None),
                    "max": max(values, default=None),
                    "ratio": self.ratio(line, peer),
                    "note": self.notes.get(line, {}).get(peer),
                }

    def not_measured(self, peers):
        """Lines that lack one of these peers, for --check."""
        for line in self.lines:
            for peer in peers:
                values = self.values.get(line, {}).get(peer, [])
                if not values or not all(isinstance(value, (int, float)) for value in values):
                    yield f"{line}: {peer}: {self.notes.get(line, {}).get(peer, 'no value')}"


def number(value):
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def table(results):
    named = "the reference" if results.reference == "reference" else results.reference
    columns = ["line", "peer", "median", "min", "max"]
    columns += [f"ratio to {named}"] if named else []
    text = line_of(columns) + line_of(["---"] * len(columns))
    last = None
    for row in results.rows():
        name = f"{row['line']}, {row['unit']}" if row["line"] != last else ""
        last = row["line"]
        peer = f"**{row['peer']}**" if row["peer"] == "bowline" else row["peer"]
        figures = ("median", "min", "max", "ratio") if named else ("median", "min", "max")
        cells = [name, peer, *(number(row[key]) for key in figures)]
        if row["note"]:
            cells[-1] += f" ({row['note']})"
        text += line_of(cells)
    return text


def line_of(cells):
    return "| " + " | ".join(cells) + " |\n"


def about(rounds, busy, versions, before_others=False):
    """What stands beside the values of a run: where, when, with what and how."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "machine": machine.describe(),
        "before_others": before_others,
        "rounds": rounds,
        "busy": busy,
        "load": " ".join(open("/proc/loadavg").read().split()[:3]),
        "versions": versions,
        "commands": [" ".join([f"bench/{os.path.basename(sys.argv[0])}", *sys.argv[1:]])],
    }


def markdown(about, results):
    machine = about["machine"]
    text = f"# {about['date']}, bowline {about['commit']}\n\n"
    text += f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mib']} MiB, "
    text += f"Linux {machine['kernel']}, {machine['system']}; client and server on this one machine.\n"
    text += f"{about['rounds']} rounds, interleaved"
    text += ", in a cgroup that gets the CPU first. " if about["before_others"] else ". "
    text += "Before the lines others used "
    text += ", ".join(f"{part:.0%}" for part in about["busy"].values()) + " of the CPU time; "
    text += f"load at the end {about['load']}.\n\n"
    text += table(results)
    text += "\n## Versions\n\n"
    text += "".join(f"- {name}: {version}\n" for name, version in about["versions"].items())
    text += "\n## Commands\n\n```\n" + "\n".join(about["commands"]) + "\n```\n"
    return text


def write(folder, stamp, about, results):
    folder.mkdir(exist_ok=True)
    data = {**about, "rows": list(results.rows())}
    (folder / f"{stamp}.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / f"{stamp}.md").write_text(markdown(about, results))
