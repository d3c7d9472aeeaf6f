#!/usr/bin/env bash
# Makes a CPU libtorch 2.9.0 in .libtorch from PyPI's wheels, for machines that reach no other place.
# With network access to download.pytorch.org burn-tch fetches one itself and this is not needed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
target=.libtorch
if [ -e "$target/lib/libtorch_cpu.so" ]; then
    echo "$target is there already"
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip download --quiet --no-deps --dest "$scratch" \
    torch==2.9.0 nvidia-cuda-runtime-cu12==12.8.90 nvidia-cuda-cupti-cu12==12.8.90
mkdir -p "$scratch/lib"
# libtorch_cpu.so of this wheel wants two CUDA libraries at load time; no GPU is needed.
"$python" - "$scratch" <<'PY'
import pathlib, sys, zipfile
scratch = pathlib.Path(sys.argv[1])
libraries = {"libc10.so", "libtorch_cpu.so", "libtorch.so", "libgomp.so.1", "libcudart.so.12", "libcupti.so.12"}
for wheel in scratch.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            name = entry.rsplit("/", 1)[-1]
            if name in libraries:
                (scratch / "lib" / name).write_bytes(archive.read(entry))
            elif entry.startswith("torch/include/"):
                archive.extract(entry, scratch)
missing = libraries - {p.name for p in (scratch / "lib").iterdir()}
if missing:
    sys.exit(f"the wheels lack {', '.join(sorted(missing))}")
PY
mkdir -p "$target.partial"
mv "$scratch/lib" "$scratch/torch/include" "$target.partial/"
mv "$target.partial" "$target"
echo "$target: libtorch 2.9.0 for the CPU; the Makefile finds it, cargo wants LIBTORCH=\$PWD/$target LD_LIBRARY_PATH=\$PWD/$target/lib"
