#!/usr/bin/env bash
# Pushes an image by podman, for one processor, or the index that leads to those of all:
#
#   publish_image.sh image IMAGE REPOSITORY           as REPOSITORY:VERSION-PROCESSOR
#   publish_image.sh index REPOSITORY PROCESSOR...    as REPOSITORY:VERSION, and :latest unless it is a candidate
#
# On GitHub the name and the digest become the step's outputs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  echo "make: $*" >&2
  exit 1
}

command -v podman >/dev/null || die "an image is published by podman, and podman is missing"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' rerank_grpc/__init__.py)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

told() { # NAME: says what was pushed, and its digest
  echo "$1@$(<"$folder/digest")"
  [[ -z ${GITHUB_OUTPUT:-} ]] || printf 'name=%s\ndigest=%s\n' "${1%:*}" "$(<"$folder/digest")" >>"$GITHUB_OUTPUT"
}

push_image() { # IMAGE REPOSITORY
  local repository=${2,,} processor name # a registry's names have no capitals
  [[ -n $repository ]] || die "say where to publish: REPOSITORY=ghcr.io/you/rerank-grpc"
  podman image exists "$1" || die "podman has no image $1: run make image ENGINE=podman"
  processor=$(podman image inspect --format '{{.Architecture}}' "$1")
  name=$repository:$version-$processor
  podman push --quiet --digestfile "$folder/digest" "$1" "docker://$name"
  told "$name"
}

push_index() { # REPOSITORY PROCESSOR...
  local repository=${1,,} list=rerank-grpc-index processor
  [[ -n $repository ]] || die "say where to publish: REPOSITORY=ghcr.io/you/rerank-grpc"
  ! podman manifest exists "$list" || podman manifest rm "$list" >/dev/null
  podman manifest create "$list" >/dev/null
  for processor in "${@:2}"; do
    podman manifest add "$list" "docker://$repository:$version-$processor" >/dev/null
  done
  podman manifest push --all --digestfile "$folder/digest" "$list" "docker://$repository:$version" >/dev/null
  [[ $version == *rc* ]] || podman manifest push --all "$list" "docker://$repository:latest" >/dev/null
  podman manifest rm "$list" >/dev/null
  told "$repository:$version"
}

case ${1:-} in
  image) push_image "$2" "$3" ;;
  index) push_index "${@:2}" ;;
  *) die "publish_image.sh takes image or index, not ${1:-nothing}" ;;
esac
