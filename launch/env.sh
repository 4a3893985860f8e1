# shellcheck shell=bash
# What every launcher shares; sourced, not run. Each line yields to a value that is already set.
#
#   LSP_HOME   the checkout (default: the folder above this file)
#   LSP_VENV   its environment (default: $LSP_HOME/.venv, where there is one)
#   NPROC      processes on this machine (default: one per GPU; without GPUs, 1)
#   MAX_RESTARTS, GRACE_SECONDS   see below

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

gpus() { if command -v nvidia-smi >/dev/null; then nvidia-smi -L 2>/dev/null | grep -c . || true; else echo 0; fi; }
NPROC="${NPROC:-$(gpus)}"
case "$NPROC" in *[!0-9]*) echo "lsp: NPROC=$NPROC is not a number of processes, e.g. NPROC=8" >&2; exit 2 ;; esac
[ "$NPROC" -gt 0 ] || NPROC=1
export NPROC
# The processes of a machine share the cores that this one may use.
cores=$(nproc)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}"

# How often torchrun starts the workers again after one of them was lost.
MAX_RESTARTS="${MAX_RESTARTS:-3}"
# How long workers may take to save after a signal, before torchrun kills them (torch 2.12 and
# newer; older ones wait 30 seconds).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${GRACE_SECONDS:-${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}}"
# Workers that are started again meet in a store of their own; in torchrun's, which outlives them,
# they would find the addresses of those that are gone.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE="${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}"

# Exit codes, as in lsp/core/exit_codes.py.
INTERRUPTED=75 # interrupted and saved: the same command goes on
STALLED=76     # a process hung or was lost: the same command goes on from the last checkpoint

# Before there are workers, and between two launches of them, a signal ends the script at once.
trap 'exit $INTERRUPTED' TERM USR1 HUP INT

# Runs torchrun and sets `code` to what its workers left with: torchrun itself exits with 1 whatever
# that was. TERM, USR1, HUP and INT are passed on; then the workers save and leave.
supervise() {
    local status=0
    LSP_EXIT_FILE="$(mktemp "${TMPDIR:-/tmp}/lsp-exit.XXXXXX")"
    export LSP_EXIT_FILE LSP_LAUNCHER=$$
    trap 'rm -f "$LSP_EXIT_FILE"' EXIT
    trap 'pass_on TERM' TERM USR1 HUP
    trap 'pass_on INT' INT
    set -m # in a process group of its own, so that Ctrl-C reaches it once, from here
    "$@" &
    child=$!
    set +m
    [ -z "$told" ] || pass_on TERM # it came while there was nobody to tell
    wait "$child" || status=$?
    while [ -n "$woken" ]; do # by a signal to this script, not by the end of torchrun
        woken="" status=0
        wait "$child" || status=$?
    done
    # Workers that outlive torchrun were told to save by its end; they hold a lock while they do.
    if command -v flock >/dev/null; then
        flock --timeout "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" "$LSP_EXIT_FILE" true || true
    fi
    trap 'exit $INTERRUPTED' TERM USR1 HUP INT
    # shellcheck disable=SC2034 # for the script that sources this one
    code=$(code_of "$status" "$told" <"$LSP_EXIT_FILE")
    rm -f "$LSP_EXIT_FILE"
}
child="" told="" woken=""

pass_on() {
    told=1 woken=1
    [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}

# The exit code of a launch, from torchrun's own ($1), whether this launcher was told to stop ($2),
# and the lines `<attempt> <code>` that workers left (stdin): the gravest of the last attempt.
code_of() {
    local attempt worker last=-1 seen=() grave
    while read -r attempt worker; do
        [ "$attempt" -ge "$last" ] || continue
        [ "$attempt" -eq "$last" ] || seen=() last=$attempt
        seen+=("$worker")
    done
    if [ "$1" -eq 0 ]; then echo 0; return; fi
    for grave in 2 3 4 1 130 $STALLED; do # nothing to repeat, bugs, a second Ctrl-C, hangs and losses
        case " ${seen[*]} " in *" $grave "*) echo "$grave"; return ;; esac
    done
    # A worker that left no line was killed; unless all were to leave, it was lost.
    if [ -z "$told" ] && [ "${#seen[@]}" -lt "$NPROC" ]; then echo $STALLED; return; fi
    case " ${seen[*]} " in
    *" $INTERRUPTED "* | "  ") echo $INTERRUPTED ;;
    *) echo 0 ;; # all were done, and only then something went wrong
    esac
}
