#!/usr/bin/env bash
# Build the image of the Dockerfile without Docker, and run it. debootstrap makes the base, and buildah runs the
# instructions of the Dockerfile in a chroot. Both are Debian packages. This needs root, and 8 GB in the work folder.
# The work folder is $1, which remains with the base in it, or a temporary folder. The build mounts pip's configuration
# and local wheels of this machine. They are not part of the image.
set -euo pipefail
cd "$(dirname "$0")/.."
keep=${1:-}
work=${keep:-$(mktemp -d)}
mkdir -p "$work"
base=localhost/debian:bookworm-slim
image=localhost/extproc:check
export BUILDAH_ISOLATION=chroot
store() { buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }
finish() {
  store rm --all > /dev/null 2>&1 || true
  [ -n "$keep" ] || rm -rf "$work"
}
trap finish EXIT

if [ -z "$(store images -q "$base" 2> /dev/null)" ]; then
  debootstrap --variant=minbase bookworm "$work/debian" > "$work/debootstrap.log"
  container=$(store from scratch)
  store add -q "$container" "$work/debian" / > /dev/null
  store commit -q --rm "$container" "$base" > /dev/null
  rm -rf "$work/debian"
fi

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
store bud --pull-never --network host --layers=false "${lent[@]}" --build-arg "BASE=$base" -t "$image" . \
  > "$work/build.log" 2>&1 || { tail -40 "$work/build.log"; exit 1; }

# Run the image as in the sidecar's pod: not as root, without capabilities, on a read-only root, with the intents
# mounted and a socket to listen on. There is no network, so the router cannot download anything.
container=$(store from "$image")
rootfs=$(store mount "$container")
environment=$(store inspect --format '{{range .OCIv1.Config.Env}}{{.}} {{end}}' "$container")
mkdir -p "$rootfs/etc/extproc/intents" "$rootfs/run/extproc"
export rootfs environment intents="$PWD/intents"
unshare --mount --net bash -euo pipefail -c '
  mount --bind "$rootfs" "$rootfs"
  mount --bind "$intents" "$rootfs/etc/extproc/intents"
  mount --rbind /dev "$rootfs/dev"
  mount -t proc proc "$rootfs/proc"
  mount -t sysfs -o ro sysfs "$rootfs/sys"
  mount -t tmpfs -o mode=777 tmpfs "$rootfs/run/extproc"
  mount -t tmpfs -o mode=777 tmpfs "$rootfs/tmp"
  mount -o remount,bind,ro "$rootfs"
  locked=(setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set=-all)
  inside=(env -i $environment chroot "$rootfs" "${locked[@]}")
  ! "${inside[@]}" touch /written 2> /dev/null
  socket=unix:///run/extproc/router.sock
  "${inside[@]}" extproc serve --intents /etc/extproc/intents --listen "$socket" &
  server=$!
  until "${inside[@]}" extproc health "$socket" > /dev/null; do
    kill -0 "$server"
    sleep 1
  done
  "${inside[@]}" extproc health "$socket"
  kill -TERM "$server"
  wait "$server"
'
echo "the image serves and stops; $(du -sh "$rootfs" | cut -f1) unpacked"
