#!/usr/bin/env bash
# Trains on all devices of this machine, one process each.
#
#   launch/local.sh run_name=long parallelism=zero2 sequence_length=65536 tokens_per_step=524288
#   NPROC=2 launch/local.sh experiment=debug parallelism=ddp        # two processes without a GPU
#
# Exit code 75 means: interrupted and saved, the same command goes on.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "$0")/env.sh"
exec torchrun --standalone --nproc-per-node "$NPROC" -m lsp train "$@"
