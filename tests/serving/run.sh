#!/usr/bin/env bash
# The server as its clients see it: the official openai package, and a long conversation. Called by ./test.
#
#   tests/serving/run.sh UNICORN FOLDER MODEL...
#
# FOLDER keeps a virtual environment with the openai package, and where there is npm its namesake for JavaScript. The
# openai checks run with the first model, the conversation with every one.
set -Eeuo pipefail
unicorn=$1 folder=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")

if ! "$folder/bin/python3" -c 'import openai' 2>/dev/null; then
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check openai
fi
"$folder/bin/pip" list --disable-pip-version-check 2>/dev/null | grep -i '^openai '
if command -v node >/dev/null && command -v npm >/dev/null; then
  [ -d "$folder/js/node_modules/openai" ] || npm install --silent --no-fund --no-audit --prefix "$folder/js" openai@6
  javascript=1
else
  echo 'skipped: the openai package for JavaScript, as there is no node or npm'
  javascript=0
fi

log=$(mktemp)
server=
trap '[ -z "$server" ] || kill -9 "$server" 2>/dev/null || true; rm -f "$log"' EXIT

start() {
  "$unicorn" serve --model "$1" --port 0 --log warn >"$log" 2>&1 &
  server=$!
  for _ in $(seq 300); do
    url=$(sed -n 's/^listening on \(http[^,]*\),.*/\1/p' "$log")
    grep -q '^ready' "$log" && return
    kill -0 "$server" 2>/dev/null || break
    sleep 0.2
  done
  cat "$log" >&2
  exit 1
}

stop() {
  local code=0
  kill -TERM "$server"
  wait "$server" || code=$?
  server=
  [ "$code" = 0 ] || { cat "$log"; echo "error: the server ended with code $code after SIGTERM" >&2; exit 1; }
}

first=1
for model in "$@"; do
  start "$model"
  echo "$model at $url"
  if [ "$first" = 1 ]; then
    "$folder/bin/python3" "$here/openai_client.py" "$url"
    [ "$javascript" = 0 ] || node "$here/openai_client.mjs" "$url" "$(realpath "$folder/js")"
  fi
  python3 "$here/conversation.py" "$url"
  stop
  first=0
done
