"""The benchmark's measurements as a table to read."""

from typing import Any

from utils.benchmark.metrics import THRESHOLDS
from utils.benchmark.speed import TASKS

MOST = 6  # names that a line of what time is spent on has room for
COLUMNS = "{:<29}{:<13}{:>9}{:>11}{:>9}{:>10}{:>9}{:>13}"


def format_report(report: dict[str, Any]) -> str:
    """The table of measure_speed's report with "config", its file, and "metrics", measure_metrics's; time's shares below it."""
    machine, metrics = report["machine"], report["metrics"]
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in machine["gflops"].items())
    differences = ", ".join(f"{name} {value:.0e}" for name, value in report["map_difference"].items())
    lines = [
        f"{report['config']} with random weights on {machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        f"a large matrix product: {rates}",
        f"anomaly maps differ from the reference's by, as a part of their range: {differences}",
        "",
        COLUMNS.format("images a second", "", "ours", "reference", "ratio", "of limit", "peak MB", "reference's"),
    ]
    spent = {}
    for task, batch in TASKS.items():
        for precision, row in report.get(task, {}).items():
            name = f"{task.removesuffix('_batch_1').replace('_', ' ')}, batch {batch}"
            lines.append(format_row(name, precision, row["images_per_s"], row["reference_images_per_s"], row))
            spent[f"{name}, {precision}"] = row["spent_on"]
    name = f"{metrics['pixels'] / 1e6:.1f} M pixels"
    lines += [
        "",
        "seconds",
        format_row("all seven metrics", name, metrics["seconds"], metrics["reference_seconds"], metrics),
        f"  {metrics['maps']} maps, {metrics['classes']} classes, differences up to {metrics['difference']:.0e}; reference: "
        f"scikit-learn, {metrics['sklearn_seconds']:.1f} s, and PRO at {THRESHOLDS} thresholds, {metrics['loop_seconds']:.1f} s",
        "",
        "time is spent on",
    ]
    spent["all seven metrics"] = metrics["spent_on"]
    for name, shares in spent.items():
        lines.append(f"  {name}: " + ", ".join(f"{what} {share:.0%}" for what, share in list(shares.items())[:MOST]))
    return "\n".join(lines)


def format_row(name: str, kind: str, ours: float, reference: float, row: dict[str, Any]) -> str:
    """`row`: ratio, peak_mb, reference_peak_mb, and of_limit where there is a limit."""
    limit = f"{row['of_limit']:.0%}" if "of_limit" in row else ""
    peaks = [f"{row[key]:.0f}" for key in ("peak_mb", "reference_peak_mb")]
    return COLUMNS.format(name, kind, f"{ours:.2f}", f"{reference:.2f}", f"{row['ratio']:.2f}x", limit, *peaks)
