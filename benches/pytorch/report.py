"""Where the comparisons with PyTorch go: results/bench/<name>.csv, with the machine's name."""
import csv
import pathlib
import platform
import subprocess


def machine():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{len(names)} x {names[0]}"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def write(name, columns, rows):
    path = pathlib.Path("results/bench") / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*columns, "machine"])
        out.writerows([*row, machine()] for row in rows)


def backends_of(binary, precision):
    """Flex in f32; libtorch in both, where the benchmark was built with it (`make bench BACKEND=tch`)."""
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
    libtorch = ["tch"] if "libtorch" in linked else []
    return libtorch if precision == "bf16" else [*libtorch, "flex"]
