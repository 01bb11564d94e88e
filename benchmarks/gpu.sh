#!/usr/bin/env bash
# Every figure of docs/performance.md that wants a GPU, in one call; a part that fails or takes too long leaves the others.
#
#     benchmarks/gpu.sh [FOLDER]        FOLDER: where the results go; default: benchmarks/results/cost-<today>
#     SECONDS_EACH=300 PYTHON=python3 benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
failed=0

part() {
    echo "== $*"
    timeout "${SECONDS_EACH:-240}" "${PYTHON:-python}" "$@" "${where[@]}" || { echo "== failed ($?): $*"; failed=1; }
}

where=(--device cuda)
if [ $# -gt 0 ]; then where+=(--out "$1"); fi
big=(--rows 8 --tokens 512)
few=(--peers gorp lora galore)

part benchmarks/speed.py --shape llama-7b --layers 4 "${big[@]}" "${few[@]}"
part benchmarks/speed.py --shape t5-large "${big[@]}" "${few[@]}"
part benchmarks/memory.py --shape llama-7b --layers 4 "${big[@]}" "${few[@]}"
part benchmarks/memory.py --shape t5-large "${big[@]}" "${few[@]}"
part benchmarks/speed.py --shape llama-7b "${big[@]}" --peers gorp lora
part benchmarks/memory.py --shape llama-7b "${big[@]}" --peers gorp lora
part benchmarks/frame_energy.py
part benchmarks/scaling.py
exit "$failed"
