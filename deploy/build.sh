#!/usr/bin/env bash
# Builds the image by buildah, where there is no Docker daemon, and asks it for a prediction. Needs root and
# Debian's packages buildah and mmdebstrap.
#
#   deploy/build.sh                 # build, try and clean, on a Debian base made here
#   deploy/build.sh build           # one step alone
#   BASE=python:3.11-slim-bookworm deploy/build.sh
#   BUILDAH_ARGS="-v /my/pip.conf:/etc/pip.conf:ro" TORCH_INDEX= deploy/build.sh
set -euo pipefail
cd "$(dirname "$0")/.."

export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
STORAGE=${STORAGE:-/var/tmp/fewshard-buildah}
PORT=${PORT:-18000}
version=$(grep -m1 '^version = ' pyproject.toml | cut -d'"' -f2)
image=localhost/fewshard:$version

bud() { buildah --root "$STORAGE/root" --runroot "$STORAGE/run" "$@"; }

make_base() {
    local container
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$STORAGE/base.tar"
    container=$(bud from scratch)
    bud add --quiet "$container" "$STORAGE/base.tar" / >/dev/null
    bud commit --quiet --rm "$container" fewshard-base >/dev/null
    rm "$STORAGE/base.tar"
}

build() {
    local arguments more
    mkdir -p "$STORAGE"
    [ -n "${BASE:-}" ] || make_base
    arguments=(--build-arg "BASE=${BASE:-localhost/fewshard-base}" --build-arg "VARIANT=${VARIANT:-cpu}")
    arguments+=(--build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse HEAD)")
    [ -z "${TORCH_INDEX+set}" ] || arguments+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    read -ra more <<<"${BUILDAH_ARGS:-}"
    bud build --format docker --layers=false "${more[@]}" "${arguments[@]}" \
        --tag "$image" --file deploy/Dockerfile .
}

try() {
    local container
    # HAProxy wants some 10,000 open files; buildah's containers have 1,024 by themselves.
    container=$(bud from --ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" "$image")
    echo "size: $(du -sh "$(bud mount "$container")" | cut -f1)"
    bud umount "$container" >/dev/null
    echo "user: $(bud inspect --type image --format '{{.Docker.Config.User}}' "$image")"
    # As docker runs it: the image's user, its entry point, and then a call from beside it.
    bud run --user 1000:1000 "$container" -- bash -c "
        echo \"inside: uid \$(id -u), \$(command -v bash wget grep | tr '\n' ' ')\"
        fewshard serve --host 127.0.0.1 --port $PORT --grpc-port 0 --models sst2-dense & server=\$!
        for _ in \$(seq 240); do
            wget -q -O /dev/null http://127.0.0.1:$PORT/v2/health/ready && break
            kill -0 \$server || exit 1
            sleep 1
        done
        fewshard predict sst2-dense 'a gripping and often funny film' --url http://127.0.0.1:$PORT
        kill \$server
        wait \$server && echo 'drained and ended'
    "
    bud rm "$container" >/dev/null
}

clean() {
    bud rm --all >/dev/null
    bud rmi --all --force >/dev/null
    rm -rf "$STORAGE"
}

for step in "${@:-build}"; do "$step"; done
[ $# -gt 0 ] || { try; clean; }
