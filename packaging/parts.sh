# What packages and tarballs have in common. It is read with `source`, from the top of the repository.

# version: prints the version of the workspace. It stands in Cargo.toml, and nowhere else.
version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

# command_pages BIN_DIR FOLDER: writes the manual pages of `xmsg` there, compressed.
command_pages() {
    local page
    install -d "$2"
    "$1/xmsg" --quiet man "$2" >/dev/null
    for page in "$2"/*; do gzip -9n "$page"; done
}

# daemon_pages BIN_DIR FOLDER: writes the manual pages of the daemons there, compressed.
daemon_pages() {
    local daemon
    install -d "$2"
    for daemon in "xmsg-proxy proxy for publish/subscribe messages" "xmsg-registrar where actors of xMsg find each other" \
        "xmsg-connect outgoing connections and channels of xMsg"; do
        help2man --no-info --section=8 --name="${daemon#* }" "$1/${daemon%% *}" | gzip -9n >"$2/${daemon%% *}.8.gz"
    done
}

# completions BIN_DIR BASH_FOLDER ZSH_FOLDER FISH_FOLDER: writes the completions of `xmsg` where these shells look for them.
completions() {
    install -d "$2" "$3" "$4"
    "$1/xmsg" completions bash >"$2/xmsg"
    "$1/xmsg" completions zsh >"$3/_xmsg"
    "$1/xmsg" completions fish >"$4/xmsg.fish"
}

# words LANGUAGE START [NUMBER]: prints a block of code in this language from the page on standard input: the first, or that with the number, below
# the line that begins with START.
words() {
    awk -v language="\`\`\`$1" -v start="$2" -v number="${3:-1}" '
        index($0, start) == 1 { below = 1 }
        inside && $0 == "```" { exit }
        inside { print }
        below && $0 == language && ++count == number { inside = 1 }'
}
