#!/usr/bin/env bash
# All checks that need a GPU, in one call: the gpu tests. Benchmarks follow as they come.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
"$python" -m pytest -m gpu tests/gpu
