# Sourced by the other scripts: finds or makes the environment that sglang-rpc is installed in.
#
#   use_venv EXTRAS     afterwards $PYTHON is an interpreter that has sglang-rpc[EXTRAS], installed from this checkout; "" for none
#
# SGLANG_RPC_VENV=DIR names an existing virtual environment to use (and install into) instead of .venv in the project.
# shellcheck shell=bash

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
INSTALL_SECONDS=3600

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# SGLang comes as wheels for CPython 3.11 to 3.13, Linux on x86_64, glibc 2.34 or newer. On 3.13 one of its dependencies
# (outlines-core) is compiled, by Rust: an older Python comes first.
find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c '
import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# What decides whether an installation is still the one asked for.
install_key() {
    { printf '%s\n%s\n' "$ROOT" "$1"; cat "$ROOT/pyproject.toml"; } | sha256sum | cut -d ' ' -f 1
}

use_venv() {
    local extras="$1" base key stamp
    local directory="${SGLANG_RPC_VENV:-$ROOT/.venv}"
    if [[ ! -x "$directory/bin/python" ]]; then
        [[ -z "${SGLANG_RPC_VENV:-}" ]] || die "SGLANG_RPC_VENV=$SGLANG_RPC_VENV is not a virtual environment."
        [[ "$(uname -sm)" == "Linux x86_64" ]] || die "SGLang has wheels for Linux on x86_64 only."
        base="$(find_python)" || die "No Python 3.11, 3.12 or 3.13 with venv was found: install one and run this again."
        echo "making $directory with $base"
        "$base" -m venv "$directory"
    fi
    PYTHON="$directory/bin/python"
    key="$(install_key "$extras")"
    stamp="$directory/.sglang-rpc-${extras:-plain}"
    if [[ "$(cat "$stamp" 2>/dev/null)" != "$key" ]]; then
        echo "installing sglang-rpc${extras:+[$extras]} into $directory: with SGLang and PyTorch not there yet, about 3 minutes and 11 GB"
        timeout "$INSTALL_SECONDS" "$PYTHON" -m pip install --quiet --disable-pip-version-check -e "$ROOT${extras:+[$extras]}" ||
            die "The installation into $directory failed: see pip's message above."
        printf '%s\n' "$key" >"$stamp"
    fi
}
