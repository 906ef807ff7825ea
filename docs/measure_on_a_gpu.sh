#!/usr/bin/env bash
# Checks and times the triton kernels on a GPU, and stops after 6 minutes; it was not run on a GPU yet.
#   docs/measure_on_a_gpu.sh OUTPUT_FOLDER
# Needs an environment with sparsescope and the torch build of the GPU, which brings triton. It prints every table and
# leaves kernels.html and the stored run. Products are compared with the reference before they are
# timed (column error), and a wrong one ends the run; repeats are recorded graphs. Weights go through 4 GB, so
# that none is in the L2 cache; 14336x4096 in bfloat16 is 117 MB.
# What is asked: bfloat16 at 50 %: of_read (share of the measured rate of reading) .8 and over_same (speed over the
# best dense bfloat16 product, cuBLAS among them) 1.6, at 14336x4096 and larger; 4096x4096 is reported.
set -euo pipefail
output=${1:?an output folder}
mkdir -p "$output"
output=$(cd "$output" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -c 'import torch, triton; print(torch.__version__, triton.__version__, torch.cuda.get_device_name())'
timeout 360 "$python" -m sparsescope bench kernels --subject smollm2-135m --device cuda --home "$output" \
  --set backend=triton --set shapes=14336x4096,4096x4096 --set cold_bytes=4e9 --set tokens=2,8 \
  --set levels=0.25,0.5,0.65,0.9 --output "$output/kernels.html" | tee "$output/kernels.txt"
