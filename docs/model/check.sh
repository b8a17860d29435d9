#!/bin/sh
# Check the model of the hand-over, or with a fault's name (see handover.pml) that the fault is found.
#   check.sh [FAULTS [FAULT]]
set -eu
model=$(cd "$(dirname "$0")" && pwd)/handover.pml
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
spin -a -DFAULTS="${1:-2}" ${2:+-D"$2"} "$model" >/dev/null
cc -O2 -w -DNFAIR=3 -o pan pan.c
found=""
for claim in one some ends; do
    fair=""
    if [ "$claim" = ends ]; then fair=-f; fi
    ./pan -a $fair -m1000000 -N "$claim" >"$claim.txt" 2>&1 || true
    if grep -q "errors: 0" "$claim.txt" && ! grep -q "max search depth too small" "$claim.txt"; then
        echo "$claim: holds ($(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$claim.txt") states)"
    else
        echo "$claim: broken"
        found=1
    fi
done
[ -z "$found" ]
