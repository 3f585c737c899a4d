//! Journals that a crash has torn, or that a bad disk has changed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use http::Method;
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::damage::{self, JournalFiles, batches, flip, flip_somewhere};
use crate::member::Injection;
use crate::run::Run;
use crate::workload::{KEPT, LIVE, Whose};

/// What a process ends with when it finds data that it must not touch (`sysexits.h`: EX_DATAERR).
const DATA_EXIT: i32 = 65;
/// How long a start may take until it has judged what it finds.
const JUDGED: Duration = Duration::from_secs(10);

type Tear = fn(&std::path::Path, &mut StdRng) -> Result<String>;
type Damage = fn(&JournalFiles, &mut StdRng) -> Result<()>;

/// A member dies while a sync is under way: of what that sync was for, `tear` says what reached the disk.
async fn torn_tail(run: &mut Run, tear: Tear) -> Result<()> {
    for strike in 0..run.strikes(6) {
        let any = run.rng.random_range(0..run.cluster.members.len());
        let struck = if strike % 2 == 0 { run.cluster.leader_of(LIVE).await? } else { any };
        // Nothing of the batch that waits for this sync has been reported as written.
        let stall = Injection::into(&run.cluster.members[struck], "fdatasync:delay_enter=20000000").await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        run.cluster.members[struck].kill().await?;
        drop(stall);
        let files = JournalFiles::of(run.cluster.members[struck].volume.path());
        let torn = tear(&files.open_segment()?, &mut run.rng)?;
        run.note(format!("drill-{struck}: {torn}"));
        run.cluster.members[struck].start()?;
        run.whole_again().await?;
        let health = run.cluster.call(struck, Method::GET, "/v1/health", None).await?;
        if health["groups"]["quarantined"] != 0 {
            run.broken(format!("a torn tail was taken for damage: {}", health["groups"]));
        }
        run.all_in_sync().await?;
    }
    Ok(())
}

pub async fn torn_at_a_byte(run: &mut Run) -> Result<()> {
    torn_tail(run, damage::tear).await
}

pub async fn torn_out_of_order(run: &mut Run) -> Result<()> {
    torn_tail(run, damage::tear_out_of_order).await
}

/// A bit in the middle of what is durable; and the leader dies when the damaged member comes back.
pub async fn flip_and_campaign(run: &mut Run) -> Result<()> {
    for _ in 0..run.strikes(3) {
        run.all_in_sync().await?;
        let leader = run.cluster.leader_of(KEPT).await?;
        let struck = (leader + 1) % run.cluster.members.len();
        run.cluster.members[struck].kill().await?;
        let segment = JournalFiles::of(run.cluster.members[struck].volume.path()).open_segment()?;
        let found = batches(&segment)?;
        let batch = found[run.rng.random_range(found.len() / 4..(found.len() * 3).div_ceil(4))].clone();
        flip(&segment, run.rng.random_range(batch), run.rng.random_range(0..8))?;
        run.cluster.members[leader].kill().await?;
        run.cluster.members[struck].start()?;
        tokio::time::sleep(Duration::from_secs(6)).await;
        run.cluster.members[leader].start()?;
        run.record_return(Instant::now(), Whose::Anyone).await?;
        mend(run, struck, "a bit flip in the middle").await?;
    }
    Ok(())
}

/// Damage that needs a checkpoint.
const CHECKPOINTS: &str = "a bit of each checkpoint file";

/// The member is whole again by itself; or it says why it cannot start, and is given an empty volume, as it asks for.
async fn mend(run: &mut Run, struck: usize, what: &str) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < JUDGED && run.cluster.members[struck].ended_by_itself().is_none() {
        let health = run.cluster.call(struck, Method::GET, "/v1/health", None).await;
        if health.is_ok_and(|health| health["ready"] == true) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let member = &mut run.cluster.members[struck];
    if member.pid().is_none() {
        let words = member.last_words();
        let code = member.last_code();
        if code != Some(DATA_EXIT) {
            run.broken(format!("{what}: drill-{struck} ended with {code:?}, not {DATA_EXIT}: {words}"));
        }
        run.note(format!("{what}: it did not start ({words}) and was given an empty volume"));
        run.cluster.members[struck].volume.replace_with_blank().await?;
        run.cluster.members[struck].start()?;
    }
    run.whole_again().await.with_context(|| what.to_owned())?;
    run.all_in_sync().await.with_context(|| what.to_owned())?;
    run.note(format!("{what}: all in sync after {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

/// One member after another finds its files changed in these ways.
async fn change_files(run: &mut Run, kinds: &[(&str, Damage)]) -> Result<()> {
    for (number, (what, damage)) in kinds.iter().enumerate() {
        let struck = number % run.cluster.members.len();
        wait_for_sealed_segment(run, struck).await?;
        if *what == CHECKPOINTS {
            wait_for_checkpoint(run, struck).await?;
        }
        run.cluster.members[struck].kill().await?;
        let files = JournalFiles::of(run.cluster.members[struck].volume.path());
        damage(&files, &mut run.rng).with_context(|| (*what).to_owned())?;
        run.cluster.members[struck].start()?;
        mend(run, struck, what).await?;
    }
    Ok(())
}

/// Small checkpoints are records of the log, that of the metadata here too; a queue's becomes a file once it has grown.
async fn wait_for_checkpoint(run: &mut Run, member: usize) -> Result<()> {
    let files = JournalFiles::of(run.cluster.members[member].volume.path());
    let end = Instant::now() + Duration::from_secs(120);
    while files.checkpoints()?.is_empty() {
        anyhow::ensure!(Instant::now() < end, "drill-{member} stored no checkpoint within 120 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn wait_for_sealed_segment(run: &Run, member: usize) -> Result<()> {
    let files = JournalFiles::of(run.cluster.members[member].volume.path());
    let end = Instant::now() + Duration::from_secs(60);
    while files.sealed_segment().is_err() {
        anyhow::ensure!(Instant::now() < end, "no segment of drill-{member} was sealed within 60 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

pub async fn flips(run: &mut Run) -> Result<()> {
    let kinds: [(&str, Damage); 4] = [
        ("a bit of a sealed segment", |files, rng| flip_somewhere(&files.sealed_segment()?, rng)),
        (CHECKPOINTS, |files, rng| {
            let all = files.checkpoints()?;
            anyhow::ensure!(!all.is_empty(), "there is no checkpoint to damage");
            all.iter().try_for_each(|file| flip_somewhere(file, rng))
        }),
        ("a bit of one copy of the identity", |files, rng| {
            flip_somewhere(files.identities()?.first().context("an identity")?, rng)
        }),
        ("a bit of both copies of the identity", |files, rng| {
            files.identities()?.iter().try_for_each(|file| flip_somewhere(file, rng))
        }),
    ];
    change_files(run, &kinds).await
}

pub async fn missing_files(run: &mut Run) -> Result<()> {
    let kinds: [(&str, Damage); 4] = [
        ("a sealed segment cut to half", |files, _| {
            let file = std::fs::OpenOptions::new().write(true).open(files.sealed_segment()?)?;
            file.set_len(file.metadata()?.len() / 2)?;
            Ok(file.sync_all()?)
        }),
        ("a sealed segment missing", |files, _| Ok(std::fs::remove_file(files.sealed_segment()?)?)),
        ("the open segment missing", |files, _| Ok(std::fs::remove_file(files.open_segment()?)?)),
        ("all segments missing under a known identity", |files, _| {
            files.segments()?.iter().try_for_each(|file| Ok(std::fs::remove_file(file)?))
        }),
    ];
    change_files(run, &kinds).await
}

pub async fn misdirected_blocks(run: &mut Run) -> Result<()> {
    let kinds: [(&str, Damage); 3] = [
        ("a block written over another of the open segment", |files, rng| {
            damage::misdirect(&files.open_segment()?, rng).map(|_| ())
        }),
        ("a block written over another of a sealed segment", |files, rng| {
            damage::misdirect(&files.sealed_segment()?, rng).map(|_| ())
        }),
        ("a block of an older segment in the open one", |files, rng| {
            let (old, open) = (files.sealed_segment()?, files.open_segment()?);
            let (from, to) = (batches(&old)?, batches(&open)?);
            let from = from[rng.random_range(0..from.len())].start;
            let to = to[rng.random_range(0..to.len().div_ceil(2))].start;
            damage::copy_block(&old, from, &open, to)
        }),
    ];
    change_files(run, &kinds).await
}
