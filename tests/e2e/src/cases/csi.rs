//! The test storage that backups are proven on: what it promises is what the snapshot controller and kubelet make of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::Context;
use crate::kubernetes::{Kubernetes, eventually};

/// Bound on one step; each takes a second or a few.
const STEP: Duration = Duration::from_secs(30);
/// How long the torn copy takes at least: its file in MiB, at the class's one MiB a second.
const SLOW_FILE_MIB: usize = 6;
/// Written before the cut and after it.
const BEFORE: &str = "before the cut";
const AFTER: &str = "after the cut";
/// Copied after the slow file, by its name.
const NOTE: &str = "z-note";

/// Classes of this case: a copy that lasts, and a driver that does not answer.
const CLASSES: &str = "\
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: e2e-torn}
driver: csi.holdfast.dev
deletionPolicy: Delete
parameters: {mode: torn, rateMiBPerSecond: '1'}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: e2e-hung}
driver: csi.holdfast.dev
deletionPolicy: Delete
parameters: {fault: hang}
";

pub(super) async fn run(context: &Context) -> Result<()> {
    let kubernetes = &context.kubernetes;
    remove(kubernetes).await?;
    let result = storage_keeps_its_promises(kubernetes).await;
    let removed = remove(kubernetes).await;
    result.and(removed)
}

async fn storage_keeps_its_promises(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.apply(CLASSES).await?;
    let start = Instant::now();
    for zone in 1..=3 {
        kubernetes.apply(&(claim(&format!("csi-{zone}"), None) + &pod(&format!("csi-{zone}"), zone))).await?;
    }
    for zone in 1..=3 {
        write(kubernetes, &format!("csi-{zone}"), NOTE, BEFORE.as_bytes()).await?;
    }
    println!("e2e: a volume in each zone, provisioned and mounted after {:.1} s", start.elapsed().as_secs_f64());
    write(kubernetes, "csi-1", "a-slow", &vec![7; SLOW_FILE_MIB << 20]).await?;

    for (name, class) in [("csi-hung", "e2e-hung"), ("csi-no-class", "e2e-absent")] {
        kubernetes.apply(&snapshot(name, class, "csi-1")).await?;
    }
    let start = Instant::now();
    for zone in 1..=3 {
        kubernetes.apply(&snapshot(&format!("csi-{zone}"), "holdfast-atomic", &format!("csi-{zone}"))).await?;
    }
    for zone in 1..=3 {
        ready_to_use(kubernetes, &format!("csi-{zone}")).await?;
    }
    println!("e2e: three atomic snapshots are ready after {:.1} s", start.elapsed().as_secs_f64());

    kubernetes.apply(&snapshot("csi-torn", "e2e-torn", "csi-1")).await?;
    let torn = status(kubernetes, "csi-torn", |status| status["creationTime"].is_string()).await?;
    ensure!(torn["readyToUse"] != true, "a copy of {SLOW_FILE_MIB} MiB at 1 MiB/s was ready at once: {torn}");
    for zone in 1..=3 {
        write(kubernetes, &format!("csi-{zone}"), NOTE, AFTER.as_bytes()).await?;
    }
    restore(kubernetes).await?;
    grow(kubernetes).await?;
    faults(kubernetes).await
}

/// A snapshot belongs to no zone: each is restored into the next one.
async fn restore(kubernetes: &Kubernetes) -> Result<()> {
    ready_to_use(kubernetes, "csi-torn").await?;
    let copies = [("csi-1", 2, BEFORE), ("csi-2", 3, BEFORE), ("csi-3", 1, BEFORE), ("csi-torn", 2, AFTER)];
    let start = Instant::now();
    for (source, zone, _) in copies {
        let name = format!("{source}-restored");
        kubernetes.apply(&(claim(&name, Some(source)) + &pod(&name, zone))).await?;
    }
    for (source, _, expected) in copies {
        let found = std::fs::read_to_string(data(kubernetes, &format!("{source}-restored")).await?.join(NOTE));
        let found = found.with_context(|| format!("the file in the volume restored from {source}"))?;
        ensure!(found == expected, "the volume restored from {source} holds '{found}' and not '{expected}'");
    }
    println!(
        "e2e: four volumes restored into other zones after {:.1} s; the torn one shows a write from after its cut",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn grow(kubernetes: &Kubernetes) -> Result<()> {
    let patch = r#"--patch={"spec": {"resources": {"requests": {"storage": "2Gi"}}}}"#;
    kubernetes.kubectl(&["patch", "pvc", "csi-1", "--type=merge", patch]).await?;
    eventually("the volume grows", STEP, || async {
        let claim = kubernetes.get(&["pvc", "csi-1"]).await?;
        let capacity = &claim["status"]["capacity"]["storage"];
        ensure!(capacity == "2Gi", "its claim says {capacity}");
        Ok(())
    })
    .await
}

async fn faults(kubernetes: &Kubernetes) -> Result<()> {
    let missing = status(kubernetes, "csi-no-class", |status| status["error"]["message"].is_string()).await?;
    let message = missing["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("e2e-absent"), "a missing class is not named: {message}");
    let hung = status(kubernetes, "csi-hung", |status| status["error"]["message"].is_string()).await?;
    let message = hung["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("DeadlineExceeded"), "a driver that hangs is not told: {message}");
    ensure!(hung["readyToUse"] != true && hung["creationTime"].is_null(), "a hung snapshot was cut: {hung}");
    println!("e2e: a missing class and a hung driver are in the status");

    heal(kubernetes).await?;
    let start = Instant::now();
    ready_to_use(kubernetes, "csi-hung").await?;
    println!("e2e: the driver answers again, its snapshot is ready {:.1} s later", start.elapsed().as_secs_f64());
    Ok(())
}

/// The sidecar looks the class up for every attempt, and parameters cannot be changed: another class takes its name.
async fn heal(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.kubectl(&["delete", "volumesnapshotclass", "e2e-hung", "--ignore-not-found"]).await?;
    kubernetes.apply(&CLASSES.replace("{fault: hang}", "{fault: none}")).await.map(|_| ())
}

async fn ready_to_use(kubernetes: &Kubernetes, name: &str) -> Result<()> {
    status(kubernetes, name, |status| status["readyToUse"] == true).await.map(|_| ())
}

/// The status of a VolumeSnapshot once it is as wanted.
async fn status(kubernetes: &Kubernetes, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(&format!("the wanted status of VolumeSnapshot {name}"), STEP, || async {
        let mut snapshot = kubernetes.get(&["volumesnapshot", name]).await?;
        let status = snapshot["status"].take();
        if wanted(&status) { Ok(status) } else { bail!("it is {status}") }
    })
    .await
}

async fn write(kubernetes: &Kubernetes, pod: &str, file: &str, content: &[u8]) -> Result<()> {
    let file = data(kubernetes, pod).await?.join(file);
    let open = std::fs::File::create(&file).and_then(|mut open| {
        std::io::Write::write_all(&mut open, content)?;
        open.sync_all()
    });
    open.with_context(|| format!("write {file:?} in pod {pod}"))
}

/// The mounted volume as the pod's process sees it, once it runs. There are no tools in the pods' images.
async fn data(kubernetes: &Kubernetes, name: &str) -> Result<PathBuf> {
    eventually(&format!("pod {name} runs with its volume"), STEP, || async {
        let pod = kubernetes.pod(name).await?;
        ensure!(pod.ready, "it is not ready");
        let folders = pod.process_ids("pause").into_iter().map(|id| PathBuf::from(format!("/proc/{id}/root/data")));
        folders.into_iter().find(|folder| folder.is_dir()).context("none of its processes has /data")
    })
    .await
}

fn claim(name: &str, snapshot: Option<&str>) -> String {
    let source = snapshot.map_or_else(String::new, |name| {
        format!("  dataSource: {{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {name}}}\n")
    });
    format!(
        "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, labels: {{case: csi}}}}\nspec:\n  \
         storageClassName: holdfast-csi\n  accessModes: [ReadWriteOnce]\n  \
         resources: {{requests: {{storage: 1Gi}}}}\n{source}"
    )
}

fn pod(name: &str, zone: u32) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{case: csi}}}}\nspec:\n  \
         nodeSelector: {{topology.kubernetes.io/zone: zone-{zone}}}\n  terminationGracePeriodSeconds: 0\n  \
         securityContext: {{runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532}}\n  containers:\n  \
         - name: holder\n    image: docker.io/holdfast/pause:1\n    imagePullPolicy: Never\n    \
         volumeMounts: [{{name: data, mountPath: /data}}]\n  volumes:\n  \
         - {{name: data, persistentVolumeClaim: {{claimName: {name}}}}}\n"
    )
}

fn snapshot(name: &str, class: &str, claim: &str) -> String {
    format!(
        "---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: {name}, labels: {{case: csi}}}}\n\
         spec:\n  volumeSnapshotClassName: {class}\n  source: {{persistentVolumeClaimName: {claim}}}\n"
    )
}

/// Removes all that this case made, and waits until the driver has removed what was behind it.
async fn remove(kubernetes: &Kubernetes) -> Result<()> {
    // A content that is being created keeps its finalizer until the driver answers.
    heal(kubernetes).await?;
    for kinds in ["pod", "volumesnapshot", "pvc"] {
        kubernetes.kubectl(&["delete", kinds, "--selector=case=csi", "--wait=true", "--timeout=30s"]).await?;
    }
    eventually("nothing of the case is left", STEP, || async {
        let volumes = kubernetes.get(&["persistentvolumes"]).await?;
        let volumes = volumes["items"].as_array().map_or(0, |items| {
            items.iter().filter(|volume| volume["spec"]["storageClassName"] == "holdfast-csi").count()
        });
        let contents = kubernetes.get(&["volumesnapshotcontents"]).await?;
        let contents = contents["items"].as_array().map_or(0, Vec::len);
        ensure!(volumes + contents == 0, "{volumes} volumes and {contents} snapshot contents are left");
        Ok(())
    })
    .await?;
    kubernetes
        .kubectl(&["delete", "volumesnapshotclass", "e2e-hung", "e2e-torn", "--ignore-not-found"])
        .await
        .map(|_| ())
}
