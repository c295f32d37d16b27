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

# Labels of OCI. They are no build arguments: buildah 1.28 takes a layer of other arguments from its cache. A clone tells
# its commit and that one's time; what was not committed makes it dirty. SOURCE is where others find the source.
labels=()
label() { labels+=(--label "org.opencontainers.image.$1=$2"); }
[[ $(<rerank_grpc/__init__.py) =~ __version__\ =\ \"([^\"]+)\" ]] && label version "${BASH_REMATCH[1]}"
if revision=$(git describe --always --abbrev=40 --match= --dirty 2>/dev/null); then
  label revision "$revision"
  label created "$(git log -1 --format=%cI)"
fi
[[ -z ${SOURCE:-} ]] || label source "$SOURCE"

# Files of layers all have this time (1980), so that the same files are the same layer whenever they are built.
time=(--timestamp 315532800)

engine=${ENGINE:-$(choose)}
echo "Building by $engine." >&2
case $engine in
  docker) exec docker build "${labels[@]}" "$@" . ;;
  # OCI's own format has no HEALTHCHECK.
  podman) exec podman build --format docker --layers "${time[@]}" "${labels[@]}" "$@" . ;;
  # Without a runtime and a network of its own: so it works inside a container too.
  buildah)
    exec buildah build --isolation chroot --network host --format docker --layers "${time[@]}" "${labels[@]}" "$@" .
    ;;
  *)
    echo "make: ENGINE is none of docker, podman, buildah: $engine" >&2
    exit 1
    ;;
esac
