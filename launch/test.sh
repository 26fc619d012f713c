#!/usr/bin/env bash
# Every test, after setting up .venv. Arguments go to pytest: launch/test.sh -k ratings
set -euo pipefail
. "$(dirname "$0")/setup.sh"
if [ $# -eq 0 ]; then
    echo "test: ruff and pyright"
    ruff check .
    ruff format --check .
    pyright
fi
echo "test: pytest"
exec python -m pytest "$@"
