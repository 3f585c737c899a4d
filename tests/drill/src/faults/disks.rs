//! Disks that lose power, fail, fill up, or are blank.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use rand::seq::SliceRandom as _;

use crate::client::Client;
use crate::member::Injection;
use crate::run::Run;
use crate::volume::Volume;
use crate::workload::{KEPT, LIVE, Whose};

/// How long a machine without power stays away.
const DARK: Duration = Duration::from_secs(3);
/// What the process ends with when its disk refuses (`sysexits.h`: EX_IOERR).
const IO_EXIT: i32 = 74;
/// How long a process may take to end after its disk has refused.
const END: Duration = Duration::from_secs(15);
/// Payloads leave a member's memory after ten seconds without writes.
const MEMORY_IS_COLD: Duration = Duration::from_secs(14);

pub async fn power_loss_of_one(run: &mut Run) -> Result<()> {
    for strike in 0..run.strikes(5) {
        let any = run.rng.random_range(0..run.cluster.members.len());
        let struck = if strike % 2 == 0 { run.cluster.leader_of(LIVE).await? } else { any };
        let watch = run.workload.watch(&run.cluster, &[struck]);
        run.power_off(struck).await?;
        run.record_gap(&watch, DARK).await;
        run.power_on(struck).await?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

pub async fn power_loss_of_all(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(4) {
        for member in &run.cluster.members {
            member.pause()?;
        }
        let mut order: Vec<usize> = (0..run.cluster.members.len()).collect();
        order.shuffle(&mut run.rng);
        for number in &order {
            run.power_off(*number).await?;
        }
        for number in &order {
            run.power_on(*number).await?;
        }
        run.record_return(Instant::now(), Whose::Anyone).await?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(run.rng.random_range(1..4))).await;
    }
    Ok(())
}

/// While one is paused the other two are the majority; then one of those loses what it had not synced.
pub async fn power_loss_while_others_pause(run: &mut Run) -> Result<()> {
    let members = run.cluster.members.len();
    for strike in 0..run.strikes(4) as usize {
        let victim = strike % members;
        let paused = (victim + 1 + run.rng.random_range(0..members - 1)) % members;
        run.cluster.members[paused].pause()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        run.power_off(victim).await?;
        run.power_on(victim).await?;
        let together = Instant::now();
        run.record_return(together, Whose::Anyone).await?;
        run.cluster.members[paused].resume()?;
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}

pub async fn blank_volume(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(2) {
        let struck = run.cluster.leader_of(KEPT).await?;
        let watch = run.workload.watch(&run.cluster, &[struck]);
        run.cluster.members[struck].kill().await?;
        run.cluster.members[struck].volume.replace_with_blank().await?;
        run.cluster.members[struck].start()?;
        run.record_gap(&watch, Duration::from_secs(3)).await;
        let began = Instant::now();
        run.whole_again().await?;
        run.all_in_sync().await?;
        run.note(format!("a blank volume holds every group again after {:.1} s", began.elapsed().as_secs_f64()));
        // What it was given must be as good as what the others have: one of them goes.
        let other = (struck + 1) % run.cluster.members.len();
        run.cluster.members[other].kill().await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        run.whole_again().await?;
        run.all_in_sync().await?;
    }
    Ok(())
}

pub async fn failing_disk(run: &mut Run) -> Result<()> {
    for of_leader in [true, false] {
        let leader = run.cluster.leader_of(LIVE).await?;
        let struck = if of_leader { leader } else { (leader + 1) % run.cluster.members.len() };
        let watch = run.workload.watch(&run.cluster, &[struck]);
        let injection = Injection::into(&run.cluster.members[struck], "fdatasync:error=EIO").await?;
        let code = run.cluster.members[struck].ended(END).await?;
        drop(injection);
        let words = run.cluster.members[struck].last_words();
        if code != Some(IO_EXIT) {
            run.broken(format!("a failed fdatasync ended the process with {code:?}, not {IO_EXIT}: {words}"));
        }
        run.record_gap(&watch, Duration::from_secs(4)).await;
        run.note(format!("its last words: {words}"));
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    tokio::time::sleep(MEMORY_IS_COLD).await;
    let leader = run.cluster.leader_of(KEPT).await?;
    let injection = Injection::into(&run.cluster.members[leader], "pread64:error=EIO").await?;
    run.workload.read_kept();
    tokio::time::sleep(Duration::from_secs(8)).await;
    drop(injection);
    let after = run.cluster.leader_of(KEPT).await?;
    run.note(format!("reads of drill-{leader} failed for 8 s while it led: drill-{after} leads after"));
    Ok(())
}

/// Takes the room of a disk, but for so much, until the value is dropped.
struct Filler(std::path::PathBuf);

impl Filler {
    fn leaving(volume: &Volume, left_mib: u64) -> Result<Self> {
        let filler = Self(volume.path().join("filler"));
        let stat = rustix::fs::statvfs(volume.path())?;
        let taken = (stat.f_bavail * stat.f_frsize).saturating_sub(left_mib << 20);
        let file = std::fs::File::create(&filler.0)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).context("fill a disk")?;
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub async fn full_disk(run: &mut Run) -> Result<()> {
    const HELD: u64 = 60;
    let endpoints = run.cluster.endpoints();
    let client = Client::connect(&endpoints, 0).await?;
    for queue in ["to-ack", "to-purge", "to-delete"] {
        client.declare(queue).await?;
        client.publish(queue, HELD).await?;
    }
    for left_mib in [40, 1, 0] {
        let fillers: Vec<Filler> =
            run.cluster.members.iter().map(|m| Filler::leaving(&m.volume, left_mib)).collect::<Result<_>>()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        // Everything but publishing: on a new connection, so that logging in is tried too.
        let began = Instant::now();
        let mut client = Client::connect(&endpoints, 1).await.context("log in while disks are full")?;
        let acked = client
            .take(if left_mib == 0 { HELD } else { HELD / 4 }, "to-ack")
            .await
            .context("ack while disks are full")?;
        let purged = client.purge("to-purge").await.context("purge while disks are full")?;
        if left_mib == 0 {
            client.delete("to-delete").await.context("delete while disks are full")?;
        }
        ensure!(left_mib != 40 || purged == HELD, "{purged} of {HELD} messages were purged");
        run.note(format!(
            "with {left_mib} MiB left: logged in, {acked} acked, {purged} purged in {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        tokio::time::sleep(Duration::from_secs(12)).await;
        drop(fillers);
        run.record_return(Instant::now(), Whose::Anyone).await?;
        for number in 0..run.cluster.members.len() {
            let member = &mut run.cluster.members[number];
            if let Some(code) = member.ended_by_itself() {
                let words = format!("a full disk ended {} with {code:?}: {}", member.name, member.last_words());
                run.note(words);
            }
        }
        run.whole_again().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}
