# What ./test and ./quickstart need of the system. They source this; `say` is theirs.
# shellcheck shell=bash

have() { command -v "$1" >/dev/null 2>&1; }

# Installs packages of the system, where there is apt and the right to use it. Fails otherwise.
apt_updated=no
apt_install() {
  have apt-get || return 1
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    have sudo || return 1
    # Asks for a password only where there is someone to type it.
    if [ -t 0 ]; then as_root=(sudo); else as_root=(sudo -n); fi
  fi
  say "installing $* with apt"
  if [ "$apt_updated" = no ]; then
    "${as_root[@]}" apt-get update -qq || return 1
    apt_updated=yes
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
