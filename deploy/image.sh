#!/usr/bin/env bash
# Build the image of the Dockerfile without Docker, and run it. debootstrap makes the bases, and buildah runs the
# instructions of the Dockerfile in a chroot. Both are Debian packages. This needs root, and 8 GB in the work folder.
#
#   deploy/image.sh PYTHON [FOLDER]
#
# PYTHON is the interpreter of the environment with the demo, whose Envoy sends the requests. FOLDER remains with the
# bases, the image and sbom.json in it. Without it, a temporary folder is used. The build mounts pip's configuration and
# local wheels of this machine. They are not part of the image.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
keep=${2:-}
work=${keep:-$(mktemp -d)}
mkdir -p "$work"
image=localhost/extproc:check
# The limit in docs/deploy/image.md.
most_mb=900
export BUILDAH_ISOLATION=chroot
store() { buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }
finish() {
  store rm --all > /dev/null 2>&1 || true
  [ -n "$keep" ] || rm -rf "$work"
}
trap finish EXIT

# make_base SUITE: make the base of this Debian release, unless FOLDER has it. $base:SUITE-slim is its name.
base=localhost/debian
make_base() {
  [ -z "$(store images -q "$base:$1-slim" 2> /dev/null)" ] || return 0
  rm -rf "$work/debian"
  debootstrap --variant=minbase "$1" "$work/debian" > "$work/debootstrap.log"
  # The published slim image lacks these, too.
  rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/* "$work"/debian/usr/share/doc/* \
    "$work"/debian/usr/share/man/* "$work"/debian/usr/share/locale/*
  container=$(store from scratch)
  store add -q "$container" "$work/debian" / > /dev/null
  store commit -q --rm "$container" "$base:$1-slim" > /dev/null
  rm -rf "$work/debian"
}
serving=$(sed -n 's/^ARG BASE=debian:\(.*\)-slim$/\1/p' Dockerfile)
preparing=$(sed -n 's/^ARG PREPARE_BASE=debian:\(.*\)-slim$/\1/p' Dockerfile)
make_base "$serving"
make_base "$preparing"

mkdir -p "$work/lent"
cp /etc/ssl/certs/ca-certificates.crt "$work/lent/"
lent=(--volume "$work/lent:/run/lent:ro")
for file in /etc/pip.conf /root/.config/pip/pip.conf; do
  [ -f "$file" ] || continue
  sed 's#/etc/ssl/certs/#/run/lent/#' "$file" > "$work/lent/$(echo "$file" | tr / -)"
  lent+=(--volume "$work/lent/$(echo "$file" | tr / -):$file:ro")
done
for place in $(python3 -m pip config get global.find-links 2> /dev/null || true); do
  [ ! -d "$place" ] || lent+=(--volume "$place:$place:ro")
done
store bud --pull-never --network host --layers=false "${lent[@]}" --build-arg "BASE=$base:$serving-slim" \
  --build-arg "PREPARE_BASE=$base:$preparing-slim" -t "$image" . \
  > "$work/build.log" 2>&1 || { tail -40 "$work/build.log"; exit 1; }

container=$(store from "$image")
rootfs=$(store mount "$container")
cp "$rootfs/opt/extproc/share/sbom.json" "$work/sbom.json"
mb() { du -sm --apparent-size "$@" | cut -f1; }
site=$(echo "$rootfs"/opt/extproc/lib/python3*/site-packages)
packages=$(mb "$site") encoder=$(mb "$rootfs/opt/extproc/share/extproc") all=$(mb "$rootfs")
echo "$all MB unpacked: packages $packages, prepared encoder $encoder, Debian and Python $((all - packages - encoder))"
du -sm --apparent-size "$site"/* | sort -rn > "$work/packages.txt"
echo "the largest packages: $(sed -n '1,10s#\t.*/# #p' "$work/packages.txt" | awk '{print $2, $1}' | paste -sd, | sed 's/,/, /g')"
[ "$all" -lt "$most_mb" ] || { echo "more than $most_mb MB" >&2; exit 1; }

# Run the image as in a pod: not as root, without capabilities, on a read-only root, with the intents mounted. There is
# no network but loopback, so the router cannot download anything. Envoy runs outside of the image.
environment=$(store inspect --format '{{range .OCIv1.Config.Env}}{{.}} {{end}}' "$container")
shared=$work/shared
rm -rf "$shared"
mkdir -p "$shared" "$rootfs$shared" # the second one for a work folder outside of /tmp, which is mounted below
export rootfs environment shared python PYTHONPATH="$PWD"
unshare --mount --net bash -euo pipefail -c '
  ip link set lo up
  mount --bind "$rootfs" "$rootfs"
  mount --rbind /dev "$rootfs/dev"
  mount -t proc proc "$rootfs/proc"
  mount -t sysfs -o ro sysfs "$rootfs/sys"
  mount -t tmpfs -o mode=777 tmpfs "$rootfs/tmp"
  mkdir -p "$rootfs$shared"
  mount --bind "$shared" "$rootfs$shared"
  mount -o remount,bind,ro "$rootfs"
  locked=(setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set=-all)
  inside=(env -i $environment XDG_STATE_HOME=/tmp chroot "$rootfs" "${locked[@]}")
  ! "${inside[@]}" touch /written 2> /dev/null
  ! "${inside[@]}" python3 -c "import torch" 2> /dev/null
  "$python" deploy/image_traffic.py "$shared" "${inside[@]}" extproc
'
grep -h "encoder" "$shared/router.log" || true
echo "the image serves, routes and stops"
