#!/bin/sh
# Installs the Debian packages that this machine lacks of those that `make` needs: prerequisites.sh PYTHON
set -eu
python=$1
PATH=$PATH:/usr/sbin:/sbin
missing=

need() { # PACKAGE COMMAND...: the command fails without the package
    package=$1
    shift
    "$@" >/dev/null 2>&1 </dev/null || missing="$missing $package"
}

need python3-venv "$python" -c 'import ensurepip, venv'
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
need gcc gcc --version
need libc6-dev gcc -E -include stdio.h -x c /dev/null
need pkg-config pkg-config --version
need openssl openssl version
need iproute2 ip -Version
need e2fsprogs mke2fs -V
need mount mount --version
need git git --version
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: this machine lacks what these packages of Debian bring:$missing" >&2
    echo "As root: apt-get install$missing" >&2
    exit 1
fi
echo "installing from Debian:$missing" >&2
install() {
    apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
}
messages=$(install 2>&1) || {
    echo "$messages" >&2
    exit 1
}
