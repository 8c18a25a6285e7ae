# Shared by the scripts of tests: to be sourced. Installs missing packages.
# shellcheck shell=bash

fail() {
    local line
    for line; do printf '%s: %s\n' "$0" "$line"; done >&2
    exit 1
}

# The library's features, one per line.
features() {
    sed -n '/^\[features\]/,/^\[dep/s/^\([a-z][a-z0-9-]*\) *=.*/\1/p' Cargo.toml
}

# Whether the feature `tls-native` can be compiled.
has_openssl_headers() {
    [[ $(uname -s) != Linux ]] || pkg-config --exists openssl 2>/dev/null
}

install_packages() {
    local advice="something is missing; install it, for instance with: apt-get install $*"
    local as_root=(env)
    if [[ $EUID -ne 0 ]]; then
        sudo -n true 2>/dev/null || fail "$advice"
        as_root=(sudo -n)
    fi
    type -P apt-get >/dev/null || fail "$advice"

    # Prevents the distribution from starting a server of its own.
    local policy=/usr/sbin/policy-rc.d remove=true
    if [[ ! -e $policy ]]; then
        remove="${as_root[*]} rm -f $policy"
        # shellcheck disable=SC2064 # expanded now
        trap "$remove" EXIT
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
    fi
    {
        "${as_root[@]}" apt-get update -q
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -q -y --no-install-recommends "$@"
    } >&2 </dev/null || fail "$advice"
    $remove
    trap - EXIT
}
