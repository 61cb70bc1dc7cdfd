#!/usr/bin/env bash
# All checks that need a GPU, in one call: the gpu tests, then the benchmarks. Ends with a table for docs/results/.
#
# On a machine with torch and torchvision and no way to install more, bring the rest as wheels: on another machine
#     tools/gpu_day.sh wheels 3.12        # fills .wheels/ for that Python; carry it along
# and then
#     tools/gpu_day.sh                    # writes $OUT/gpu.md, or ./gpu.md
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [ "${1:-}" = wheels ]; then
    "$python" -m pip download --quiet --only-binary=:all: --python-version "$2" --no-deps --dest .wheels \
        pluggy packaging tyro typeguard docstring-parser tomli-w safetensors rich markdown-it-py mdurl pygments jaxtyping \
        wadler-lindig matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six jinja2 markupsafe \
        pytest iniconfig beartype timm huggingface-hub
    exit
fi

PYTHONPATH="$PWD/core$(printf ":%s" "$PWD"/plugins/*)"
export PYTHONPATH
if [ -d .wheels ]; then  # what is there already stays as it is
    for wheel in .wheels/*.whl; do
        name=$(basename "$wheel" | cut -d- -f1)
        "$python" -m pip show --quiet "$name" 2>/dev/null || "$python" -m pip install --quiet --no-deps --no-index "$wheel"
    done
fi
# plugins are found by their entry points, which need an installation
"$python" -m pip install --quiet --no-deps --no-build-isolation -e . $(printf -- "-e %s " plugins/*) 2>/dev/null || "$python" tools/entry_points.py

out=${OUT:-.}/gpu.md
"$python" -m mim_core doctor
"$python" -m pytest -m gpu tests/gpu tests/contracts plugins/*/tests/test_*contract*.py \
    plugins/pointcloud/tests/test_geometry*.py; tests=$?
{
    "$python" - <<'PY'
import datetime, platform, torch, torchvision, timm
print(f"# GPU day, {datetime.date.today()}\n")
print(f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, torch {torch.__version__}, torchvision "
      f"{torchvision.__version__}, timm {timm.__version__}.\n")
PY
    echo "gpu tests: exit code $tests"
    echo
    "$python" benchmarks/speed.py
    echo
    "$python" benchmarks/pointcloud_ops.py
    echo
    echo '```'
    "$python" benchmarks/loop_overhead.py --recipe image:mae-vit-base --batch-size 128 --device cuda --turns 20
    echo '```'
} | tee "$out"
exit "$tests"
