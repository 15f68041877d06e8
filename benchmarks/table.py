"""Results of `benchmarks.train_step` as a table in Markdown, and the machine and command they belong to."""

from collections.abc import Sequence
from typing import Any

PEERS = {"transformers": "transformers", "torch_compile": "torch.compile", "torch": "torch"}
COLUMNS = (
    "preset",
    "useful positions",
    "step, median (quartiles)",
    "samples / s",
    "MFU",
    "memory",
    "peers' step",
    "peers / JaxFusion (of lower quartiles)",
)


def table(results: Sequence[dict[str, Any]]) -> str:
    """results: as `benchmarks.train_step` writes them with --json, all of one machine, or {"command", "preset",
    "error"} where one did not run."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS), *(_row(result) for result in results)]
    measured = next((result for result in results if "environment" in result), None)
    above = _where(measured) if measured else ""
    commands = "".join(f"    {result['command']}\n" for result in results)
    return f"{above}\n" + "\n".join(lines) + f"\n\n{commands}"


def _where(result: dict[str, Any]) -> str:
    found = result["environment"]
    versions = dict(found["versions"])
    for name in PEERS.keys() & result.keys():
        versions |= {key: result[name][key] for key in ("torch", "transformers") if key in result[name]}
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    device = f"{found['devices']} x {found['device']}"
    return (
        f"{device}; host {found['host_cpu']}, {found['host_cores']} cores, load average {found['load_average']:.1f}. "
        f"{said}.\n"
    )


def _row(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"| {result['preset']} | did not run: {result['error']} | | | | | | |"
    ours, batch = result["ours"], result["ours"]["batch"]
    peers = [name for name in PEERS if name in result]
    return (
        f"| {result['preset']} | {batch['real_tokens'] / batch['tokens']:.0%} | {_time(ours)} "
        f"| {ours['samples_per_second']:.3g} | {'' if ours['mfu'] is None else format(ours['mfu'], '.1%')} "
        f"| {ours['memory']['bytes'] / 1e9:.3g} GB "
        f"| {', '.join(f'{PEERS[name]} {_time(result[name])}' for name in peers)} "
        f"| {', '.join(_ratio(result, name) for name in peers)} |"
    )


def _ratio(result: dict[str, Any], peer: str) -> str:
    return f"{result[f'{peer}_to_ours']:.2f} ({result[f'{peer}_to_ours_lower_quartile']:.2f})"


def _time(side: dict[str, Any]) -> str:
    median, low, high = (1000 * side["step_seconds"][key] for key in ("median", "lower_quartile", "upper_quartile"))
    return f"{median:.4g} ms ({low:.4g} to {high:.4g})"
