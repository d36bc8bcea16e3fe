"""The benchmark's measurements as a text table."""

from typing import Any

from utils.benchmark.metrics import THRESHOLDS
from utils.benchmark.speed import TASKS

COLUMNS = "{:<29}{:<13}{:>9}{:>11}{:>9}{:>10}{:>9}{:>13}"


def format_report(report: dict[str, Any]) -> str:
    """`report`: measure_speed's result, with `config`, the file's name, and `metrics`, the result of measure_metrics."""
    machine, metrics = report["machine"], report["metrics"]
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in machine["gflops"].items())
    differences = ", ".join(f"{name} {value:.0e}" for name, value in report["map_difference"].items())
    lines = [
        f"{report['config']} with random weights on {machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        f"large matrix product: {rates}",
        f"difference from the reference's anomaly maps, as a fraction of their range: {differences}",
        "",
        COLUMNS.format("images a second", "", "ours", "reference", "ratio", "of limit", "peak MB", "reference's"),
    ]
    for task, batch in TASKS.items():
        name = f"{task.removesuffix('_batch_1').replace('_', ' ')}, batch {batch}"
        for precision, row in report.get(task, {}).items():
            lines.append(format_row(name, precision, row["images_per_s"], row["reference_images_per_s"], row))
    pixels = f"{metrics['pixels'] / 1e6:.1f} M pixels"
    lines += [
        "",
        "seconds",
        format_row("all seven metrics", pixels, metrics["seconds"], metrics["reference_seconds"], metrics),
        f"  {metrics['maps']} maps, {metrics['classes']} classes, differences up to {metrics['difference']:.0e}",
        f"  reference: scikit-learn, {metrics['sklearn_seconds']:.1f} s, "
        f"and PRO at {THRESHOLDS} thresholds, {metrics['loop_seconds']:.1f} s",
    ]
    return "\n".join(lines)


def format_row(name: str, kind: str, ours: float, reference: float, row: dict[str, Any]) -> str:
    """`row`: ratio, peak_mb, reference_peak_mb, and of_limit where there is a limit."""
    limit = f"{row['of_limit']:.0%}" if "of_limit" in row else ""
    peaks = [f"{row[key]:.0f}" for key in ("peak_mb", "reference_peak_mb")]
    return COLUMNS.format(name, kind, f"{ours:.2f}", f"{reference:.2f}", f"{row['ratio']:.2f}x", limit, *peaks)
