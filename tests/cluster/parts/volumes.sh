# shellcheck shell=bash
# Local volumes: plain folders of a node, offered as PersistentVolumes that only pods on that node can use.

volume_folder() { echo "$ROOT/$1/volumes/$2"; }

volume_manifest() {
  local node=$1 volume=$2
  cat <<K
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: $node-$volume
  labels: {app.kubernetes.io/managed-by: holdfast-local-cluster}
spec:
  capacity: {storage: $VOLUME_SIZE}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: $(volume_folder "$node" "$volume")}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions:
        - {key: kubernetes.io/hostname, operator: In, values: [$node]}
K
}

all_volumes() {
  local node number
  for node in "${NODES[@]}"; do
    for ((number = 1; number <= VOLUMES_PER_NODE; number++)); do echo "$node v$number"; done
  done
}

# A volume stays Bound for a moment after its claim was deleted.
phases_are_settled() {
  local claims bound
  claims=$(kube get persistentvolumeclaims --all-namespaces -o 'jsonpath={range .items[*]}{.metadata.uid}{"\n"}{end}') || return 1
  bound=$(kube get persistentvolumes -o 'jsonpath={range .items[?(@.status.phase=="Bound")]}{.spec.claimRef.uid}{"\n"}{end}') || return 1
  [[ -z "$(comm -13 <(sort <<<"$claims") <(sort <<<"$bound"))" ]]
}

# Offers every volume that no claim holds: makes the missing ones, and empties those whose claim was deleted.
offer_volumes() {
  local node volume phases phase released=()
  wait_for 20 "release of the volumes whose claims are gone" phases_are_settled
  phases=$(kube get persistentvolumes -o 'jsonpath={range .items[*]}{.metadata.name}{" "}{.status.phase}{"\n"}{end}')
  while read -r node volume; do
    phase=$(awk -v name="$node-$volume" '$1 == name {print $2}' <<<"$phases")
    if [[ $phase == Released || $phase == Failed ]]; then released+=("$node-$volume"); fi
  done < <(all_volumes)
  if ((${#released[@]} > 0)); then
    kube delete persistentvolume "${released[@]}" --wait=true --timeout=30s >/dev/null
    say "emptied: ${released[*]}"
  fi
  while read -r node volume; do
    phase=$(awk -v name="$node-$volume" '$1 == name {print $2}' <<<"$phases")
    if [[ -z $phase || " ${released[*]} " == *" $node-$volume "* ]]; then
      mkdir -p "$(volume_folder "$node" "$volume")"
      find "$(volume_folder "$node" "$volume")" -mindepth 1 -delete
      volume_manifest "$node" "$volume"
    fi
  done < <(all_volumes) >"$ROOT/volumes.yaml"
  if [[ -s $ROOT/volumes.yaml ]]; then kube apply -f "$ROOT/volumes.yaml" >/dev/null; fi
}
