# shellcheck shell=bash
# The storage class whose volumes can be snapshot: the project's own CSI driver (tests/csi), once as the controller and
# once on each node, over one btrfs file system in a file; and the snapshot controller and its sidecar.

STORAGE="$ROOT/csi"
# As `make build` leaves it.
DRIVER_PROGRAM="${HOLDFAST_CSI_DRIVER:-$HERE/../../target/x86_64-unknown-linux-gnu/release/holdfast-csi}"

build_driver() {
  if [[ -x $DRIVER_PROGRAM ]]; then return; fi
  say "building the CSI driver, with the release programs"
  make --directory="$HERE/../.." --silent build
}

make_pool() {
  mkdir -p "$STORAGE/pool"
  truncate --size "$POOL_SIZE" "$STORAGE/pool.img"
  # One copy of the metadata: the disk below is one anyway.
  mkfs.btrfs --quiet --metadata single "$STORAGE/pool.img" >/dev/null
  local device
  # Past the page cache where the file system below can, or everything would be in memory twice.
  device=$(losetup --find --show --direct-io=on "$STORAGE/pool.img" 2>/dev/null || losetup --find --show "$STORAGE/pool.img")
  mount -o discard=async "$device" "$STORAGE/pool"
  # Takes effect with the last unmount: nothing has to remember the device.
  losetup --detach "$device"
  # A build may replace the program while it runs.
  install -m 755 "$DRIVER_PROGRAM" "$STORAGE/holdfast-csi"
}

start_storage_controllers() {
  start_server csi-controller env KUBECONFIG="$ROOT/storage.kubeconfig" "$STORAGE/holdfast-csi" --controller --provision \
    --pool "$STORAGE/pool" --socket "$STORAGE/csi.sock" --control-file "$STORAGE/faults.json"
  start_server snapshot-controller "$BIN/snapshot-controller" --kubeconfig="$ROOT/storage.kubeconfig" \
    --feature-gates=CSIVolumeGroupSnapshot=false --retry-interval-start=200ms --retry-interval-max=2s
  # A call that hangs is given up and tried again, so that a healed driver is noticed within seconds.
  start_server csi-snapshotter "$BIN/csi-snapshotter" --kubeconfig="$ROOT/storage.kubeconfig" \
    --feature-gates=CSIVolumeGroupSnapshot=false --csi-address="$STORAGE/csi.sock" --timeout=5s --retry-interval-start=200ms --retry-interval-max=2s
}

# kubelet sends the registration socket's path, with its slashes as %2F, as the authority of its call. The driver's HTTP/2
# refuses such a host, but takes the same before an "@", where a user's name would be.
registration_socket() { echo "$ROOT/$1/kubelet/plugins_registry/csi@$1.sock"; }

start_node_driver() {
  local node=$1
  start_server "csi-$node" "$STORAGE/holdfast-csi" --node "$node" --zone "zone-$(node_number "$node")" \
    --pool "$STORAGE/pool" --socket "$ROOT/$node/csi.sock" --registration "$(registration_socket "$node")"
}

drivers_are_registered() {
  [[ "$(kube get csinodes -o 'jsonpath={.items[*].spec.drivers[*].name}')" == "csi.holdfast.dev csi.holdfast.dev csi.holdfast.dev" ]]
}
