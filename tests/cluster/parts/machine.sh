# shellcheck shell=bash
# What the machine must offer, and what Kubernetes changes on it outside of the state root and the network namespace.

NEEDED_PROGRAMS=(containerd ctr runc nft conntrack ip nsenter setsid openssl python3 flock sysctl mountpoint
  mkfs.btrfs btrfs losetup)
# kubelet sets these for the whole machine, whatever it is told; `down` puts them back.
KUBELET_SYSCTLS=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops
  kernel.keys.root_maxkeys kernel.keys.root_maxbytes)
# Folders that containerd, the CNI plugins and kubelet make at fixed places. Where `up` found none, `down` removes what
# is empty in them; where there was one, it may be another program's and stays.
FIXED_FOLDERS=(/run/containerd /var/lib/cni /var/lib/kubelet /var/log/containers)

check_machine() {
  ((EUID == 0)) || unable "it needs root; run it as root, e.g. with sudo."
  local program missing=()
  for program in "${NEEDED_PROGRAMS[@]}"; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [[ -x /usr/lib/cni/bridge ]] || missing+=("CNI plugins in /usr/lib/cni")
  ((${#missing[@]} == 0)) || unable "missing: ${missing[*]}. Run .ci/install first."
  grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null ||
    unable "the kernel has no overlayfs. Use a kernel with CONFIG_OVERLAY_FS."
  grep -qw btrfs /proc/filesystems || modprobe btrfs 2>/dev/null ||
    unable "the kernel has no btrfs, which the volumes with snapshots are on. Use a kernel with CONFIG_BTRFS_FS."
  losetup --find >/dev/null 2>&1 || unable "no loop device is free. It needs CONFIG_BLK_DEV_LOOP."
  [[ -n "$(cgroup_hierarchies)" ]] || unable "no cgroup hierarchy is mounted below /sys/fs/cgroup."
  ((${#ROOT} <= 60)) || fail "the state root $ROOT is too long: socket paths below it would pass the kernel's limit."
  [[ $ROOT == /* ]] || fail "HOLDFAST_CLUSTER_ROOT must be an absolute path, not $ROOT."
  [[ $NAME =~ ^[a-z][a-z0-9-]{0,20}$ ]] || fail "HOLDFAST_CLUSTER_NAME must be a short lower-case name, not $NAME."
  check_disk
  check_network
}

# etcd and the members' journals stop, or block their publishers, on a disk that is full.
check_disk() {
  local free
  free=$(df --output=avail --block-size=1M "$(dirname "$ROOT")" | tail -1)
  ((free >= 2048)) || unable "only ${free} MiB are free below $(dirname "$ROOT"); the cluster needs 2,048. Free some, or choose another HOLDFAST_CLUSTER_ROOT."
}

# Tries in a namespace of its own, for a moment, what the cluster's network is made of.
check_network() {
  local trial="$NAME-trial-$$" problem=""
  ip netns add "$trial" 2>/dev/null || unable "network namespaces cannot be made. It needs CAP_SYS_ADMIN and CONFIG_NET_NS."
  if ! nsenter --net="/run/netns/$trial" ip link add trial type bridge 2>/dev/null; then
    problem="bridges cannot be made. It needs CONFIG_BRIDGE."
  elif ! nsenter --net="/run/netns/$trial" ip link add trial1 type veth peer name trial2 2>/dev/null; then
    problem="veth pairs cannot be made. It needs CONFIG_VETH."
  elif ! nsenter --net="/run/netns/$trial" nft 'add table ip trial; add chain ip trial c { type nat hook output priority 0; }' 2>/dev/null; then
    problem="nftables NAT is missing. It needs CONFIG_NF_TABLES and CONFIG_NFT_NAT."
  fi
  ip netns del "$trial"
  [[ -z $problem ]] || unable "$problem"
}

# --- cgroups: one group per node, which its pods are under, in every hierarchy

has_one_hierarchy() { [[ -f /sys/fs/cgroup/cgroup.controllers ]]; }

cgroup_hierarchies() {
  if has_one_hierarchy; then
    echo /sys/fs/cgroup
  else
    # With the version 2 one that has no controllers, if it is mounted: runc makes groups there too.
    awk '($3 == "cgroup" || $3 == "cgroup2") && index($2, "/sys/fs/cgroup/") == 1 {print $2}' /proc/mounts
  fi
}

# A group in the version 2 hierarchy that only kubelet is in: by it, nftables tells kubelet's packets from others.
kubelet_cgroup() {
  if has_one_hierarchy; then
    echo "$NAME-kubelet-$1"
  elif mountpoint -q /sys/fs/cgroup/unified; then
    echo "unified/$NAME-kubelet-$1"
  fi
}

make_cgroups() {
  local node=$1 hierarchy file
  while read -r hierarchy; do
    if has_one_hierarchy; then
      sed 's/\</+/g' "$hierarchy/cgroup.controllers" >"$hierarchy/cgroup.subtree_control" 2>/dev/null || true
    fi
    mkdir -p "$hierarchy/$NAME-$node"
    for file in cpuset.cpus cpuset.mems; do # Version 1 has them empty in a new group, and then takes no process in.
      if ! has_one_hierarchy && [[ -f $hierarchy/$file ]]; then
        cat "$hierarchy/$file" >"$hierarchy/$NAME-$node/$file"
      fi
    done
  done < <(cgroup_hierarchies)
  if [[ -n "$(kubelet_cgroup "$node")" ]]; then mkdir -p "/sys/fs/cgroup/$(kubelet_cgroup "$node")"; fi
}

# Every process in the node's pods, which outlive containerd and their shims.
pod_pids() {
  local hierarchy
  hierarchy=$(cgroup_hierarchies | grep -x '.*/pids' || cgroup_hierarchies | head -n 1)
  if [[ -d $hierarchy/$NAME-$1 ]]; then
    find "$hierarchy/$NAME-$1" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  fi
}

kill_pods() {
  local node=$1 tries
  for tries in {1..100}; do
    pod_pids "$node" | xargs -r kill -KILL 2>/dev/null || true
    [[ -n "$(pod_pids "$node")" ]] || return 0
    sleep 0.05
  done
  printf 'cluster: %s still has processes after %s tries: %s\n' "$node" "$tries" "$(pod_pids "$node" | xargs)" >&2
  return 1
}

# A group stays busy for a moment after its last process has ended.
remove_group() { find "$1" -depth -type d -exec rmdir {} + && [[ ! -d $1 ]]; }

remove_cgroups() {
  local node=$1 hierarchy
  while read -r hierarchy; do
    if [[ -d $hierarchy/$NAME-$node ]]; then
      wait_for 5 "removal of $hierarchy/$NAME-$node" remove_group "$hierarchy/$NAME-$node" || true
    fi
  done < <(cgroup_hierarchies)
  if [[ -n "$(kubelet_cgroup "$node")" ]]; then rmdir "/sys/fs/cgroup/$(kubelet_cgroup "$node")" 2>/dev/null || true; fi
}

# --- mounts

mounts_under() { awk -v under="$1/" 'index($2 "/", under) == 1 {print $2}' /proc/mounts | sort -r; }

unmount_under() {
  local mount
  while read -r mount; do
    umount "$mount" 2>/dev/null || umount -l "$mount" || true
  done < <(mounts_under "$1")
  [[ -z "$(mounts_under "$1")" ]]
}

# --- machine-wide settings and places

remember_machine() {
  local folder
  sysctl "${KUBELET_SYSCTLS[@]}" 2>/dev/null >"$ROOT/sysctls" || true
  for folder in "${FIXED_FOLDERS[@]}"; do
    if [[ ! -e $folder ]]; then echo "$folder"; fi
  done >"$ROOT/folders-not-there"
}

restore_sysctls() {
  if [[ -f $ROOT/sysctls ]]; then sysctl -q -p "$ROOT/sysctls" >/dev/null 2>&1 || true; fi
}

# Records by which a program outside the state root remembers pods of this cluster.
remove_traces() {
  local link folder
  rm -rf "/var/lib/cni/results/$NAME"-n[0-9]*-* 2>/dev/null || true
  for link in /var/log/containers/*; do
    if [[ -L $link && "$(readlink "$link")" == "$ROOT"/* ]]; then rm -f "$link"; fi
  done
  # kubelet's device-plugin socket has a fixed path. Without a kubelet behind it, it is only a leftover.
  if [[ -S /var/lib/kubelet/device-plugins/kubelet.sock ]] && ! socket_answers /var/lib/kubelet/device-plugins/kubelet.sock; then
    rm -f /var/lib/kubelet/device-plugins/{kubelet.sock,DEPRECATION}
  fi
  [[ -f $ROOT/folders-not-there ]] || return 0
  while read -r folder; do
    if [[ -d $folder ]]; then find "$folder" -depth -type d -empty -delete; fi
  done <"$ROOT/folders-not-there"
}

socket_answers() {
  python3 -c 'import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(2); s.connect(sys.argv[1])' "$1" 2>/dev/null
}
