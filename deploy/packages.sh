# shellcheck shell=bash
# Sourced: makes sure that the Debian or Ubuntu packages the build needs are there.
# Installs only what is missing, with apt-get (sudo when not root), and says what it does.
#
#   . deploy/packages.sh

packages_required=(build-essential cmake ninja-build pkg-config libnng-dev libprotobuf-c-dev
    protobuf-c-compiler libcjson-dev libcriterion-dev libmicrohttpd-dev libcurl4-openssl-dev libyaml-dev curl git)
packages_optional=(clang-format-14) # only tests/format.sh wants it

# Prints those of its arguments that are not installed.
packages_missing() {
    local installed name
    # One query for all: dpkg-query takes longer to start than to answer.
    installed=" $(dpkg-query -W -f='${db:Status-Status}:${Package} ' "$@" 2>/dev/null || true)"
    for name in "$@"; do
        [[ $installed == *" installed:$name "* ]] || printf '%s\n' "$name"
    done
}

packages_apt() {
    local as_root=()
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            echo "packages: not root and no sudo; please install: ${*:2}" >&2
            return 1
        fi
        as_root=(sudo)
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 \
        -o DPkg::Lock::Timeout=120 "$@" </dev/null >&2
}

packages_install() {
    echo "packages: installing $*" >&2
    # The lists may be old or absent: refresh them, and let the install itself say what is wrong.
    packages_apt update || echo "packages: apt-get update failed; trying with the lists at hand" >&2
    packages_apt install -y --no-install-recommends "$@"
}

packages_ensure() {
    local missing optional
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        echo "packages: no apt-get here; needed (Debian names): ${packages_required[*]}" >&2
        return 0
    fi
    mapfile -t missing < <(packages_missing "${packages_required[@]}")
    mapfile -t optional < <(packages_missing "${packages_optional[@]}")
    if ((${#missing[@]})); then
        packages_install "${missing[@]}" || {
            echo "packages: could not install ${missing[*]}" >&2
            return 1
        }
    fi
    if ((${#optional[@]})); then
        packages_install "${optional[@]}" ||
            echo "packages: going on without ${optional[*]}" >&2
    fi
}

packages_ensure
