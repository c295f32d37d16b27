#!/usr/bin/env bash
# Writes what the image installs: requirements/libraries.txt with the hashes of every file of each version, for every
# system and processor, and requirements/torch.txt, whose files differ by index, without them.
# Versions are those of constraints.txt; what is needed is what pyproject.toml says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=${UV:-.venv/bin/uv}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# The embedded model's package names these for another use of its files.
echo sentence-transformers >"$work/excluded.txt"

lock() {
  "$uv" pip compile --quiet --no-config --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
    --extra server --extra rest --extra otel --extra embedded --excludes "$work/excluded.txt" \
    --constraints constraints.txt "$@" pyproject.toml
}

lock >"$work/all.txt"
# What torch alone decides: itself, and what its CUDA builds bring.
mapfile -t of_torch < <(grep -oE '^(torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==' "$work/all.txt" | tr -d '=')
{
  echo "# torch and what its CUDA builds bring, whose files differ by index. Made by \`make lock\`."
  for name in "${of_torch[@]}"; do grep -oE "^$name==[^ ;]+" "$work/all.txt"; done
} >"$work/torch.txt"
{
  echo "# Every other package of the image, with the hashes of its files. Made by \`make lock\`."
  lock --generate-hashes "${of_torch[@]/#/--no-emit-package=}"
} >"$work/libraries.txt"
mkdir -p requirements
mv "$work/libraries.txt" "$work/torch.txt" requirements/
