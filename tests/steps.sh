# Functions of .ci/run and tests/full. They are read with `source`, from the top of the repository.

export CI=${CI:-true}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH

# step SECONDS COMMAND…: runs one check, at most this long, and returns its exit status.
step() {
    local limit=$1 status=0 foreground=()
    shift
    printf '\n%s: %s\n' "$0" "$*"
    # On a terminal, the command stays in the process group of the script, or Ctrl-C would not reach it.
    [[ ! -t 1 ]] || foreground=(--foreground)
    timeout "${foreground[@]}" --kill-after=20 "$limit" "$@" || status=$?
    case $status in
        0) ;;
        124 | 137) printf '%s: stopped after %s s: %s\n' "$0" "$limit" "$*" >&2 ;;
        *) printf '%s: failed: %s\n' "$0" "$*" >&2 ;;
    esac
    return "$status"
}
