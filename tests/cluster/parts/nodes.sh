# shellcheck shell=bash
# A node is a containerd and a kubelet with folders, sockets, a bridge, a pod range and cgroups of their own.

containerd_socket() { echo "$ROOT/$1/containerd.sock"; }
node_ctr() {
  local node=$1
  shift
  ctr --address "$(containerd_socket "$node")" --namespace k8s.io "$@"
}

# Everything that containerd keeps while it runs (shims, mounts, pod networks) is under this folder, so that it can be
# told from another cluster's, and is gone after a power cut.
runtime_folder() { echo "$ROOT/$1/run"; }

write_containerd_config() {
  local node=$1 folder="$ROOT/$1"
  mkdir -p "$folder/cni"
  cat >"$folder/containerd.toml" <<K
version = 2
root = "$folder/containerd"
state = "$(runtime_folder "$node")"
[grpc]
  address = "$(containerd_socket "$node")"
[plugins."io.containerd.internal.v1.opt"]
  path = "$folder/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  # Where nobody may lower oom_score_adj, runc would die at the first container.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$folder/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "$(runtime_folder "$node")/runc"
K
  cat >"$folder/cni/10-pods.conflist" <<K
{
  "cniVersion": "0.4.0",
  "name": "$NAME-$node",
  "plugins": [
    {
      "type": "bridge", "bridge": "$(node_bridge "$node")", "isGateway": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "$folder/addresses",
        "ranges": [[{"subnet": "$(node_pods "$node")"}]], "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
K
}

write_kubelet_config() {
  local node=$1 folder="$ROOT/$1" number
  number=$(node_number "$node")
  cat >"$folder/kubelet.yaml" <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_address "$node")
healthzPort: 1024$number
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $KEYS/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $KEYS/kubelet-$node.crt
tlsPrivateKeyFile: $KEYS/kubelet-$node.key
containerRuntimeEndpoint: unix://$(containerd_socket "$node")
clusterDNS: [$DNS_ADDRESS]
clusterDomain: cluster.local
resolvConf: $ROOT/resolv.conf
podLogsDir: $folder/pod-logs
volumePluginDir: $folder/volume-plugins
maxPods: 50
cgroupDriver: cgroupfs
cgroupRoot: /$NAME-$node
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: [pods]
# With the control plane's grace period of 20 s: a dead node is noticed, a busy machine is not taken for one.
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 20
# The nodes share one disk and one memory with the builds beside them: pressure on one would come on all, and keep
# every pod from starting. 0% turns a signal off.
evictionHard: {memory.available: 50Mi, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%, imagefs.inodesFree: 0%}
imageGCHighThresholdPercent: 100
K
}

prepare_node() {
  local node=$1
  write_containerd_config "$node"
  write_kubelet_config "$node"
}

start_containerd() {
  local node=$1
  start_server "containerd-$node" containerd --config "$ROOT/$node/containerd.toml"
}

containerd_answers() { node_ctr "$1" version; }

start_kubelet() {
  local node=$1 group
  make_cgroups "$node"
  group=$(kubelet_cgroup "$node")
  # shellcheck disable=SC2016  # The inner shell expands them: it enters the cgroup, then becomes kubelet.
  start_server "kubelet-$node" bash -c 'if [[ -n $0 ]]; then echo $$ >"/sys/fs/cgroup/$0/cgroup.procs"; fi; exec "$@"' \
    "$group" "$BIN/kubelet" --config="$ROOT/$node/kubelet.yaml" --kubeconfig="$ROOT/kubelet-$node.kubeconfig" \
    --root-dir="$ROOT/$node/kubelet" --cert-dir="$ROOT/$node/kubelet-keys" \
    --hostname-override="$node" --node-ip="$(node_address "$node")" \
    --node-labels="topology.kubernetes.io/region=local,topology.kubernetes.io/zone=zone-$(node_number "$node")"
}

# import_image TAR NODE...: into all of them at once.
import_image() {
  local tar=$1 node jobs=() job
  shift
  for node in "$@"; do
    node_ctr "$node" images import "$tar" >"$LOGS/import-$node.log" 2>&1 &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do
    wait "$job" || { cat "$LOGS"/import-*.log >&2; return 1; }
  done
}

node_is_ready() {
  [[ "$(kube get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" == True ]]
}

all_nodes_are_ready() {
  [[ "$(kube get nodes -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}')" == "True True True" ]]
}

# The shims name their containerd's socket, which is under our state root, as an argument.
shim_pids() {
  local directory socket
  socket=$(containerd_socket "$1")
  for directory in /proc/[0-9]*; do
    if [[ "$(readlink "$directory/exe" 2>/dev/null)" == */containerd-shim* ]] &&
      tr '\0' '\n' <"$directory/cmdline" 2>/dev/null | grep -qxF "$socket"; then
      basename "$directory"
    fi
  done
}

kill_shims() {
  local pid
  for pid in $(shim_pids "$1"); do kill -KILL "$pid" 2>/dev/null || true; done
}

# The shims' sockets are at a fixed place, under names that only their bundles know.
remove_shim_sockets() {
  local file address
  for file in "$(runtime_folder "$1")"/io.containerd.runtime.v2.task/*/*/address; do
    if [[ -f $file ]]; then
      address=$(<"$file")
      rm -f "${address#unix://}"
    fi
  done
}

# The CNI library keeps a record of every pod's loopback device at a fixed place, named after the pod's sandbox.
remove_sandbox_records() {
  local sandbox
  for sandbox in "$ROOT/$1/containerd/io.containerd.grpc.v1.cri/sandboxes"/*; do
    rm -f "/var/lib/cni/results"/*-"$(basename "$sandbox")"-*
  done
}

# As if its power was cut: every process of the node ends at once, and what was only in its memory is gone.
kill_node() {
  local node=$1
  kill_servers "kubelet-$node" "containerd-$node" "csi-$node"
  kill_shims "$node"
  kill_pods "$node"
  remove_shim_sockets "$node"
  unmount_under "$ROOT/$node" || fail "mounts of $node are left: $(mounts_under "$ROOT/$node" | xargs)"
  rm -rf --one-file-system "$(runtime_folder "$node")" "$ROOT/$node/addresses"
  remove_cgroups "$node"
}

start_node() {
  local node=$1
  if ! server_runs "containerd-$node"; then start_containerd "$node"; fi
  wait_for 20 "containerd of $node" containerd_answers "$node" || { show_log "containerd-$node"; return 1; }
  if ! server_runs "csi-$node"; then start_node_driver "$node"; fi
  if ! server_runs "kubelet-$node"; then start_kubelet "$node"; fi
}
