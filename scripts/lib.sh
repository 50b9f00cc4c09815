# SPDX-License-Identifier: MIT
#
# What scripts/test and scripts/demo share: installing what is missing, one directory of a run's
# own in /tmp, and leaving nothing behind. Sourced by bash; knows no test and no mail.

PYTHON=/usr/bin/python3 # Debian's own: it has the Debian python3-* packages

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

top_of_checkout() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P; }

BUILD_PACKAGES="gcc libc6-dev meson ninja-build pkg-config libfuse3-dev fuse3 libssl-dev libglib2.0-dev
  libsqlite3-dev libgsasl-dev zlib1g-dev libdeflate-dev"
SERVER_PACKAGES="dovecot-imapd dovecot-pop3d openssl python3"

# What the unpacked Cyrus of the tests (tests/support/cyrus.py) is linked with, as Debian 12 has it.
CYRUS_LIBRARIES="libcom-err2 libicu72 libjansson4 libkrb5-3 libldap-2.5-0 libnsl2 libpcre3 libpq5
  libsasl2-2 libsasl2-modules libwrap0 libxml2"

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "root is needed to run: $* (no sudo here; run it yourself, then start again)"
  fi
}

# Installs those of the named Debian packages that are not there. A mail server that comes along
# must not start by itself: policy-rc.d says so for the moment, and is taken away again.
need_packages() {
  local missing=() package policy=/usr/sbin/policy-rc.d rc=0
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' ok installed$' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "please install: ${missing[*]}"
  say "installing ${missing[*]}"
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
    POLICY_MADE=1
  fi
  apt_install "${missing[@]}" || { as_root apt-get update -q && apt_install "${missing[@]}"; } || rc=$?
  drop_policy
  [ $rc = 0 ] || die "could not install: ${missing[*]}"
}

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o Dpkg::Use-Pty=0 "$@" >"$RUN_DIR/apt.log" 2>&1 </dev/null ||
    { tail -n 15 "$RUN_DIR/apt.log" >&2; return 1; }
}

drop_policy() {
  [ -z "${POLICY_MADE:-}" ] || as_root rm -f /usr/sbin/policy-rc.d
  POLICY_MADE=
}

need_fuse() {
  [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
  [ -c /dev/fuse ] || die "/dev/fuse is missing: mailfs needs FUSE in the kernel (try: modprobe fuse)"
}

# A chroot may have /dev/pts and no /dev/ptmx: tests that need a terminal get one for the moment.
need_terminals() {
  if [ ! -e /dev/ptmx ] && [ -e /dev/pts/ptmx ]; then
    as_root ln -s pts/ptmx /dev/ptmx
    PTMX_MADE=1
  fi
}

drop_terminals() {
  [ -z "${PTMX_MADE:-}" ] || as_root rm -f /dev/ptmx
  PTMX_MADE=
}

# Memory where there is plenty of it and programs may run from it, else /tmp.
fast_dir() {
  local probe free
  free=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)
  if [ "${free:-0}" -gt 5000000 ] && probe=$(mktemp /dev/shm/mailfs-probe.XXXXXX 2>/dev/null); then
    printf '#!/bin/sh\n' >"$probe"
    chmod 700 "$probe"
    if "$probe" 2>/dev/null; then free=yes; else free=; fi
    rm -f "$probe"
    [ -z "$free" ] || { echo /dev/shm; return; }
  fi
  echo /tmp
}

# RUN_DIR: everything a run makes lies below it, and every process it starts carries its name in the
# environment. Short, because sockets live in it; 0755, because mail servers run as other users.
begin_run() {
  RUN_DIR=$(mktemp -d "$(fast_dir)/mailfs-$1.XXXXXX")
  chmod 755 "$RUN_DIR"
  export MAILFS_RUN=$RUN_DIR
  trap 'end_run $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

end_run() {
  trap '' INT TERM HUP
  trap - EXIT
  drop_policy
  drop_terminals
  unmount_below "$RUN_DIR"
  end_processes
  unmount_below "$RUN_DIR"
  if [ -n "${KEEP:-}" ]; then
    echo "kept: $RUN_DIR"
  else
    rm -rf --one-file-system "$RUN_DIR"
  fi
  exit "$1"
}

mounts_below() { awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r; }

unmount_below() {
  local mount
  while read -r mount; do
    fusermount3 -u "$mount" 2>/dev/null || fusermount3 -uz "$mount" 2>/dev/null ||
      umount -l "$mount" 2>/dev/null || true
  done < <(mounts_below "$1")
}

# Processes of this run that are still there: known by MAILFS_RUN in their environment.
run_processes() {
  local dir
  for dir in /proc/[0-9]*; do
    [ "${dir#/proc/}" != $$ ] && [ "${dir#/proc/}" != "$BASHPID" ] || continue
    if grep -qzxF "MAILFS_RUN=$RUN_DIR" "$dir/environ" 2>/dev/null; then echo "${dir#/proc/}"; fi
  done
}

end_processes() {
  local signal pid round
  for signal in TERM KILL; do
    for pid in $(run_processes); do
      # the subshell that lists them is gone by now; that is no error
      kill -s $signal "$pid" 2>/dev/null || true
    done
    for round in 1 2 3 4 5 6 7 8 9 10; do
      [ -n "$(run_processes)" ] || return 0
      sleep 0.2
    done
  done
}

# build DIR [meson options]: configures and builds with warnings as errors.
build() {
  local dir=$1
  shift
  if [ ! -f "$dir/build.ninja" ]; then
    meson setup "$dir" "$TOP" -Dwerror=true "$@" >"$RUN_DIR/setup.log" 2>&1 ||
      { tail -n 30 "$RUN_DIR/setup.log"; return 1; }
  fi
  ninja -C "$dir" >"$RUN_DIR/ninja.log" 2>&1 || { grep -v '^\[' "$RUN_DIR/ninja.log" | head -n 60; return 1; }
}
