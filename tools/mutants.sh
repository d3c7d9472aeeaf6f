#!/usr/bin/env bash
# Breaks the program on purpose and sees that a test fails: the faults that stand in the source (fault! of abkd-host), and
# with cargo-mutants what it makes by itself of the crates of formulas.
#   tools/mutants.sh           all; hours
#   tools/mutants.sh faults    the first part alone; a build and some minutes
set -euo pipefail
cd "$(dirname "$0")/.."
# A test that a fault keeps from ending has noticed it.
tests() { timeout 1200 cargo test --release --workspace --features "${FEATURES:-abkd-host/faults}" --lib --test golden --test properties \
    --test methods --test trajectory --test configs --test packed --test goldens --quiet; }

echo "without a fault"
tests > /dev/null 2>&1 || { echo "the tests fail without a fault: run them first"; exit 1; }
names=$(cat $(find crates -name '*.rs' -path '*/src/*' ! -name fault.rs) | tr '\n' ' ' | grep -oP 'fault!\(\s*"\K[^"]+' | sort -u)
# A property that a fault breaks is no case to remember.
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
