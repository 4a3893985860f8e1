# shellcheck shell=bash
# What every launcher shares; sourced, not run. Each line yields to a value that is already set.
#
#   LSP_HOME   the checkout (default: the folder above this file)
#   LSP_VENV   its environment (default: $LSP_HOME/.venv, where there is one)

LSP_HOME="${LSP_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"
LSP_VENV="${LSP_VENV:-$LSP_HOME/.venv}"
if [ -x "$LSP_VENV/bin/python" ]; then
    PATH="$LSP_VENV/bin:$PATH"
    # Environments that share torch's default folder rebuild each other's extensions.
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$LSP_VENV/torch_extensions}"
fi
export PATH
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore::FutureWarning}"

# One process per GPU; without GPUs, one per NPROC (default 1), sharing the cores.
gpus() { if command -v nvidia-smi >/dev/null; then nvidia-smi -L 2>/dev/null | grep -c . || true; else echo 0; fi; }
NPROC="${NPROC:-$(gpus)}"
[ "$NPROC" -gt 0 ] || NPROC=1
export NPROC
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}"
