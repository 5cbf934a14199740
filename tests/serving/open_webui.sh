#!/usr/bin/env bash
# Open WebUI against `unicorn serve`: installs both sides in a folder of their own, holds a conversation in headless
# Chromium and leaves a screenshot. Not part of ./test: Open WebUI brings some 2 GB of packages.
#
#   tests/serving/open_webui.sh MODEL [FOLDER]
#
# It needs the release build of unicorn, python3 (3.11 or 3.12) with venv, node with npm, and Chromium (CHROMIUM names it,
# default: chromium on the path). Run again, it installs nothing anew.
set -Eeuo pipefail
model=${1:?usage: open_webui.sh MODEL [FOLDER]}
folder=$(realpath -m "${2:-target/open_webui}")
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
browser=$(command -v "${CHROMIUM:-chromium}") || { echo "error: no Chromium: set CHROMIUM to one" >&2; exit 1; }
mkdir -p "$folder"

if ! [ -x "$folder/venv/bin/open-webui" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet open-webui
fi
if ! [ -d "$folder/node_modules/playwright-core" ]; then
  npm install --silent --prefix "$folder" playwright-core
fi
# Node looks for packages beside the script.
cp "$root/tests/serving/open_webui.mjs" "$folder/"

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait || true' EXIT
"$root/target/release/unicorn" serve --model "$model" --port 18000 >"$folder/unicorn.log" 2>&1 &
pids+=($!)
# No login, no other provider, nothing fetched: what is under test is the conversation.
DATA_DIR="$folder/data" WEBUI_AUTH=False ENABLE_OLLAMA_API=False OFFLINE_MODE=true HF_HUB_OFFLINE=1 \
  OPENAI_API_BASE_URL=http://127.0.0.1:18000/v1 OPENAI_API_KEY=none WEBUI_SECRET_KEY=local ENABLE_VERSION_UPDATE_CHECK=False \
  RAG_EMBEDDING_ENGINE=openai AUDIO_STT_ENGINE=openai ANONYMIZED_TELEMETRY=false \
  "$folder/venv/bin/open-webui" serve --host 127.0.0.1 --port 18080 >"$folder/open_webui.log" 2>&1 &
pids+=($!)

wait_for() {
  for _ in $(seq 180); do
    python3 -c "import urllib.request as u; u.urlopen('$1', timeout=2)" 2>/dev/null && return
    kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 1
  done
  echo "error: nothing answers at $1; see the logs in $folder" >&2
  exit 1
}
wait_for http://127.0.0.1:18000/ready
wait_for http://127.0.0.1:18080/health
(cd "$folder" && node open_webui.mjs http://127.0.0.1:18080 "$browser" "$folder/conversation.png")
echo "screenshot: $folder/conversation.png"
