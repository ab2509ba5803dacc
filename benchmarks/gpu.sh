#!/bin/bash
# fuse on a machine with one CUDA GPU, torch and triton: the tests that need a GPU, then every suite, in less than nine minutes.
# Nothing need be installed: fuse is imported from this checkout, and peers from the wheels in the folder WHEELS, if there is one.
#
#   OUT=results WHEELS=wheels benchmarks/gpu.sh     runs.jsonl, all_benchmark_data.csv and the logs go to OUT
#   OUT=results benchmarks/gpu.sh --dry-run         tiny sizes under Triton's interpreter, without a GPU
#
# PYTHON chooses the interpreter, SECONDS_IN_ALL the time, SUITES what is measured. Exits with 1 if a test fails or a row is wrong.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-$root/build/benchmarks/gpu}
total=${SECONDS_IN_ALL:-520}
suites=${SUITES:-vocab flow attention scan}
failed=0
mkdir -p "$out"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

left() { echo $((total - SECONDS)); }

if [ -n "${WHEELS:-}" ]; then
    peers=$(mktemp -d)
    trap 'rm -rf "$peers"' EXIT
    for wheel in "$WHEELS"/*.whl; do    # one that cannot be unpacked must not cost the others
        "$python" -m zipfile -e "$wheel" "$peers" || echo "cannot unpack $wheel"
    done
    PYTHONPATH=$PYTHONPATH:$peers
fi

if [ "${1:-}" = --dry-run ]; then
    timeout 1700 "$python" "$root/benchmarks/run.py" --dry-run --suite "${suites// /,}" --arms eager,fuse --out "$out" --no-plots || failed=1
    exit $failed
fi

timeout 100 "$python" -m pytest -q -p no:cacheprovider --rootdir "$root" "$root/tests/test_gpu.py" 2>&1 | tee "$out/tests.log" || failed=1
count=$(wc -w <<< "$suites")
for suite in $suites; do
    share=$((($(left) - 20) / count))    # what earlier suites left over is shared by the later ones
    count=$((count - 1))
    timeout $((share + 15)) "$python" "$root/benchmarks/run.py" --suite "$suite" --device cuda --out "$out" --no-plots \
        --measure time,error,memory --budget $((share * 2 / 3)) 2>&1 | tee -a "$out/suites.log" || failed=1
done
if [ "$(left)" -gt 60 ]; then           # cold and warm compile times of one case, with what is left
    timeout $(($(left) - 5)) "$python" "$root/benchmarks/run.py" --suite vocab --only head --no-sweeps --device cuda --out "$out" \
        --no-plots --arms inductor,fuse --measure compile 2>&1 | tee -a "$out/suites.log" || failed=1
fi
exit $failed
