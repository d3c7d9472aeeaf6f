#!/usr/bin/env bash
# Breaks the program on purpose and checks that a test fails: first by the faults in the source (fault! of abkd-host), then by
# the mutations that cargo-mutants makes in the crates abkd-losses, abkd-metrics and abkd-data.
#   tools/mutants.sh           all; hours
#   tools/mutants.sh faults    the first part alone; a build and some minutes
set -euo pipefail
cd "$(dirname "$0")/.."
# A test that does not end because of a fault has caught it.
tests() { timeout 1200 cargo test --release --workspace --features "${FEATURES:-abkd-host/faults}" --lib --test golden --test properties \
    --test methods --test trajectory --test configs --test packed --test goldens --quiet; }

echo "without a fault"
tests > /dev/null 2>&1 || { echo "the tests fail without a fault: run them first"; exit 1; }
names=$(cat $(find crates -name '*.rs' -path '*/src/*' ! -name fault.rs) | tr '\n' ' ' | grep -oP 'fault!\(\s*"\K[^"]+' | sort -u)
# proptest must not save the cases that fail because of a fault.
export PROPTEST_DISABLE_FAILURE_PERSISTENCE=1
missed=0
while read -r name; do
    if ABKD_FAULT="$name" tests > /dev/null 2>&1; then
        echo "MISSED  $name"
        missed=1
    else
        echo "caught  $name"
    fi
done <<< "$names"
[ "${1:-}" = faults ] || cargo mutants --package abkd-losses --package abkd-metrics --package abkd-data --profile release \
    --no-shuffle --output target/mutants
exit $missed
