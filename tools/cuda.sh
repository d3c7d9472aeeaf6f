#!/usr/bin/env bash
# Makes .cuda from PyPI's wheels: NVRTC 13.0, which compiles the kernels at run time, and CUDA's headers. The driver comes
# with the card. It also builds tools/cuda-stub/driver.c into .cuda/stub: a driver without a card, which counts calls.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
target=.cuda
if [ ! -e "$target/lib/libnvrtc.so" ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    "$python" -m pip download --quiet --no-deps --dest "$scratch" nvidia-cuda-nvrtc==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-crt==13.0.88
    "$python" - "$scratch" <<'PY'
import pathlib, sys, zipfile
scratch = pathlib.Path(sys.argv[1])
for wheel in scratch.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            # libnvrtc.alt.so is a second copy for other hosts.
            if entry.startswith("nvidia/cu13/") and ".alt." not in entry:
                archive.extract(entry, scratch)
if not (scratch / "nvidia/cu13/lib/libnvrtc.so.13").exists():
    sys.exit("the wheels lack libnvrtc.so.13")
PY
    ln -s libnvrtc.so.13 "$scratch/nvidia/cu13/lib/libnvrtc.so"
    rm -rf "$target.partial"
    mv "$scratch/nvidia/cu13" "$target.partial"
    rm -rf "$target"
    mv "$target.partial" "$target"
fi
if [ tools/cuda-stub/driver.c -nt "$target/stub/libcuda.so.1" ]; then
    mkdir -p "$target/stub"
    cc -shared -fPIC -O1 -Wall -Wextra -Werror -o "$target/stub/libcuda.so.1" tools/cuda-stub/driver.c
fi
echo "$target: NVRTC 13.0 and headers; the Makefile finds it, else CUDA_PATH=\$PWD/$target LD_LIBRARY_PATH=\$PWD/$target/lib"
