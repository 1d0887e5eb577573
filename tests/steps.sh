# Functions of scripts that check things. They are read with `source`, from the top of the repository.

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

# tool CRATE VERSION [ARGUMENT…]: has cargo install this version of a tool into target/tools/bin, unless it is
# there.
tool() {
    local crate=$1 version=$2
    shift 2
    # What cargo has noted: not every tool says its version.
    [[ ! -x target/tools/bin/$crate ]] || ! grep -qF "\"$crate $version " target/tools/.crates.toml || return 0
    printf '%s: installing %s %s into target/tools\n' "$0" "$crate" "$version"
    CARGO_TARGET_DIR=target/tools/build cargo install --quiet --locked --force --root target/tools --version "$version" "$@" "$crate"
}
