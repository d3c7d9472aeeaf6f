#!/usr/bin/env bash
# All checks of a machine with an NVIDIA card in one run: golden values, answers that equal the processor's, a small Table 1,
# and as much of a larger table as the time allows. It needs no network, no Rust and no Python.
#
#     cargo build --release --workspace --features cuda && make cuda
#     tools/gpu_check.sh [SECONDS] > gpu_check.txt 2>&1
#
# ABKD is the program (target/release/abkd), OUT a folder for what is written (gpu_check), BACKENDS the backends (cuda;
# "cuda tch-cuda" with a libtorch that has CUDA), PROFILE and DATA of the larger table. Rehearsed without a card: see docs/gpu.md.
set -uo pipefail
cd "$(dirname "$0")/.."
limit=${1:-600}
abkd=${ABKD:-target/release/abkd}
out=${OUT:-gpu_check}
mkdir -p "$out"
began=$SECONDS
failures=0
if [ -d .cuda/lib ]; then
    export CUDA_PATH=${CUDA_PATH:-$PWD/.cuda} LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}:$PWD/.cuda/lib"
fi

left() { echo $((limit - (SECONDS - began))); }
# step NAME COMMAND...: runs it within the time that is left and says how it ended.
step() {
    local name=$1 from=$SECONDS status
    shift
    if [ "$(left)" -le 5 ]; then
        echo "== $name: NOT RUN, no time is left"
        return 1
    fi
    timeout "$(left)" "$@" > "$out/last.txt" 2>&1
    status=$?
    tail -n "${LINES_SHOWN:-3}" "$out/last.txt"
    case $status in
    0) echo "== $name: ok, $((SECONDS - from)) s" ;;
    124) echo "== $name: stopped by the limit after $((SECONDS - from)) s" ;;
    *)
        echo "== $name: FAILED (status $status), $((SECONDS - from)) s"
        tail -n 30 "$out/last.txt"
        failures=$((failures + 1))
        ;;
    esac
    return $status
}

nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv || echo "nvidia-smi: not there"

cat > "$out/small.toml" <<'T'
name = "small"
title = "Three losses"
kind = "table"
datasets = ["dolly", "vicuna"]
seeds = [10]
references = true
rows = [
    { label = "FKLD", divergence = "fkld" },
    { label = "AKL", divergence = "akl" },
    { label = "ABKD", divergence = "ab", params = { alpha = 0.2, beta = 0.7 } },
]
T
# A few updates: processor and card drop the same numbers, so they differ by rounding alone.
cat > "$out/micro.toml" <<'T'
name = "micro"
description = "seconds"
[data]
source = "embedded"
train = 96
test = 20
max_prompt_length = 96
max_length = 192
[teacher.gpt2]
vocab_size = 1024
n_positions = 192
n_embd = 64
n_layer = 2
n_head = 2
[student.gpt2]
vocab_size = 1024
n_positions = 192
n_embd = 32
n_layer = 1
n_head = 2
[teacher_sft]
epochs = 2
batch_size = 8
learning_rate = 2e-3
[student_sft]
epochs = 1
batch_size = 8
learning_rate = 2e-3
[distill]
epochs = 2
batch_size = 8
learning_rate = 1e-3
[validation]
examples = 20
max_new_tokens = 40
[evaluation]
max_new_tokens = 40
T
# table NAME BACKEND: the small table, with its files in a folder of that name.
table() {
    step "a table, $1" "$abkd" run "$out/small.toml" --profile "$out/micro.toml" --backend "$2" --runs "$out/runs-$1" \
        --results "$out/results-$1" --figures "$out/figures-$1"
}
table processor flex
for backend in ${BACKENDS:-cuda}; do
    # Products of f32 round their factors to TF32 on a card: the models have a tolerance of their own.
    step "$backend, losses" "$abkd" verify losses crates/losses/tests/goldens/losses.json --backend "$backend"
    step "$backend, peaked losses" "$abkd" verify losses crates/losses/tests/goldens/losses_peaked.json --backend "$backend"
    for golden in gpt2-tiny llama-tiny llama-tied-tiny; do
        step "$backend, $golden" "$abkd" verify model "crates/models/tests/goldens/$golden" --backend "$backend" --tolerance 1e-2
    done
    step "$backend, trajectory" "$abkd" verify trajectory crates/training/tests/goldens/trajectory-ab --backend "$backend" --tolerance 1e-2
    table "$backend" "$backend"
    ABKD_GRAPHS=off table "$backend-without-graphs" "$backend"
    echo "scores: processor, $backend, $backend without graphs"
    for name in processor "$backend" "$backend-without-graphs"; do
        cut -d, -f2-7 "$out/results-$name/micro/small_scores.csv" 2> /dev/null > "$out/scores-$name.txt"
    done
    paste "$out/scores-processor.txt" "$out/scores-$backend.txt" "$out/scores-$backend-without-graphs.txt"
done
if [ -n "${PROFILE:-}" ]; then
    for backend in ${BACKENDS:-cuda}; do
        ABKD_DATA=${DATA:-${ABKD_DATA:-data}} LINES_SHOWN=60 step "$backend, table1 of $PROFILE" "$abkd" run table1 --profile "$PROFILE" \
            --backend "$backend" --runs "$out/runs-$backend" --results "$out/results-$backend" --figures "$out/figures-$backend"
    done
fi
echo "== $failures failed, $((SECONDS - began)) s in all"
[ "$failures" -eq 0 ]
