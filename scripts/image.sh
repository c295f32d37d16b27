#!/usr/bin/env bash
# Builds the image by docker, podman or buildah: by $ENGINE, or the first that works here.
# Its arguments are those of the engine's build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A client whose engine does not answer is as good as none.
works() {
  command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1
}

choose() {
  local engine
  for engine in docker podman buildah; do
    if works "$engine"; then
      echo "$engine"
      return
    fi
  done
  echo "make: an image needs docker, podman or buildah, and none of them works here" >&2
  return 1
}

engine=${ENGINE:-$(choose)}
echo "Building by $engine." >&2
case $engine in
  docker) exec docker build "$@" . ;;
  # OCI's own format has no HEALTHCHECK.
  podman) exec podman build --format docker "$@" . ;;
  # Without a runtime and a network of its own: so it works inside a container too.
  buildah) exec buildah build --isolation chroot --network host --format docker "$@" . ;;
  *)
    echo "make: ENGINE is none of docker, podman, buildah: $engine" >&2
    exit 1
    ;;
esac
