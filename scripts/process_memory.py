"""What a process has in memory, as Linux tells it, for the fuzzer, the soaks and the benchmarks."""

from pathlib import Path


def resident(process: int | str = "self", most: bool = False) -> int:
    """Bytes that a process has in memory, or the most that it had. Raises OSError where it has ended."""
    wanted = "VmHWM:" if most else "VmRSS:"
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {process} has ended and was not waited for")  # a zombie has no memory


def forget_peak() -> None:
    """Let the most that this process had begin anew. Raises OSError where it may not."""
    Path("/proc/self/clear_refs").write_text("5")
