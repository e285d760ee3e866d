#!/usr/bin/env bash
# The first hour with trimtab: install it, ask, rate, stream, serve, look, measure. Run from the repository; each step
# prints what it took and the most memory that one of its processes had resident.
#
#   examples/first_hour.sh           in a new virtual environment, in a temporary folder
#   examples/first_hour.sh --short   with the environment that `make` made, and the least of each step
set -euo pipefail
cd "$(dirname "$0")/.."

short=""
case "${1:-}" in
  "") ;;
  --short) short=1 ;;
  *) echo "usage: $0 [--short]" >&2; exit 2 ;;
esac

work=$(mktemp -d)
server=""
leave() { [ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"; }
trap leave EXIT

# step NAME COMMAND...: run it, and say how long it took and what its largest process held.
step() {
  python3 - "$@" <<'PYTHON'
import os, subprocess, sys, time

name, command = sys.argv[1], sys.argv[2:]
print(f"\n== {name}", flush=True)
begun = time.monotonic()
child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | {"BEGUN": str(time.time())})
_, status, used = os.wait4(child.pid, 0)
held = used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
print(f"-- {name}: {time.monotonic() - begun:.1f} s, at most {held:,.0f} MB", flush=True)
sys.exit(os.waitstatus_to_exitcode(status))
PYTHON
}

if [ -n "$short" ]; then
  bin=.venv/bin
else
  bin=$work/venv/bin
  step "make an environment" python3 -m venv "$work/venv"
  step "install" "$bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[server,models,bench]"
  # What is imported from here on is what was installed, not the sources in this folder.
fi
export PYTHONSAFEPATH=1

step "fetch the bundled models" "$bin/trimtab" models pull

step "first answer" "$bin/python" -c '
import os, time
from trimtab.decode import Chunk, Engine, chat

begun = float(os.environ["BEGUN"])
with Engine({"chat": "smollm2-135m-instruct"}) as engine:
    for event in engine.stream(chat("Name three colours."), max_new_tokens=32, seed=1):
        if isinstance(event, Chunk):
            print(f"first token {time.time() - begun:.1f} s after python was started")
            break
'
step "a reward of your own" "$bin/python" examples/best_of_n.py
step "streams" "$bin/python" examples/asyncio_app.py

echo
echo "== serve"
"$bin/trimtab" serve --port 0 >"$work/serve.log" 2>&1 &
server=$!
for _ in $(seq 3000); do
  address=$(sed -n 's/^.*serving on //p' "$work/serve.log")
  [ -z "$address" ] && kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
[ -n "$address" ] || { cat "$work/serve.log" >&2; exit 1; }
echo "serving on $address"
step "ask the server" "$bin/trimtab" generate "Why is the sky blue?" --server "$address" --nudger chat --temperature 0 \
  --max-new-tokens 48 --show
kill -TERM "$server"
wait "$server"
server=""
echo "-- the server has drained and left"

step "a page of who wrote what" "$bin/trimtab" generate "Give me three tips for staying healthy." --policy nudged:chat \
  --temperature 0 --max-new-tokens 48 --html "$work/page.html"
[ -s "$work/page.html" ]

if [ -n "$short" ]; then
  step "one table" "$bin/trimtab" bench decode --quick --results "$work/results"
else
  step "one table" "$bin/trimtab" bench decode --repeats 3 --results "$work/results"
fi
echo
echo "done"
