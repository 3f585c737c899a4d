//! Members that come, go and come again; replicas that are copied while links and leaders fail.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_e2e::kubernetes::eventually;
use http::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::network::Place;
use crate::run::Run;
use crate::workload::{KEPT, LIVE};

/// How long a member may take to be taken out of every group.
const LEAVING: Duration = Duration::from_secs(120);
/// How long one that is killed stays away.
const AWAY: Duration = Duration::from_secs(4);

/// Says which members are to be in the cluster.
async fn expect_members(run: &Run, asked: usize, wanted: &[usize]) -> Result<()> {
    let member = |number: &usize| {
        let member = &run.cluster.members[*number];
        json!({ "name": member.name, "address": format!("{}:5680", member.admin().ip()), "zone": format!("zone-{number}") })
    };
    let body = json!({ "members": wanted.iter().map(member).collect::<Vec<Value>>() });
    let put = || run.cluster.call(asked, Method::PUT, "/v1/members", Some(&body));
    eventually("the list of members is taken", Duration::from_secs(30), put).await.map(|_| ())
}

/// Asks for a member's removal.
async fn remove(run: &Run, leaving: usize, asked: usize) -> Result<()> {
    let path = format!("/v1/members/{}", run.cluster.members[leaving].name);
    run.cluster.call(asked, Method::DELETE, &path, None).await.map(|_| ())
}

async fn gone(run: &Run, leaving: usize, asked: usize) -> Result<()> {
    let name = run.cluster.members[leaving].name.as_str();
    eventually(&format!("{name} is in no group"), LEAVING, || async {
        let answer = run.cluster.call(asked, Method::GET, "/v1/members", None).await?;
        let there = answer["members"].as_array().is_some_and(|all| all.iter().any(|member| member["name"] == name));
        ensure!(!there, "it is still a member: {answer}");
        Ok(())
    })
    .await
}

async fn away_for_a_while(run: &mut Run, number: usize) -> Result<()> {
    run.cluster.members[number].kill().await?;
    tokio::time::sleep(AWAY).await;
    run.cluster.members[number].start()
}

/// A fourth member joins while the leader dies; one of the first three leaves while another dies.
pub async fn replace_while_another_dies(run: &mut Run) -> Result<()> {
    let new = run.cluster.members.len();
    run.cluster.add_member(1024).await?;
    expect_members(run, 0, &[0, 1, 2, new]).await?;
    run.cluster.members[new].start()?;
    let leader = run.cluster.leader_of(LIVE).await?;
    away_for_a_while(run, leader).await?;
    run.whole_again().await?;
    run.all_in_sync().await?;
    let leaving = run.cluster.leader_of(KEPT).await?;
    let staying: Vec<usize> = (0..=new).filter(|number| *number != leaving).collect();
    expect_members(run, staying[0], &staying).await?;
    eventually("the removal is taken", Duration::from_secs(30), || remove(run, leaving, staying[0])).await?;
    away_for_a_while(run, staying[1]).await?;
    gone(run, leaving, staying[0]).await?;
    run.cluster.members[leaving].kill().await?;
    run.cluster.members[leaving].retired = true;
    run.whole_again().await?;
    run.all_in_sync().await
}

/// A queue is deleted and made again while a member is away; then that member is removed and comes back with nothing.
pub async fn again_under_the_same_name(run: &mut Run) -> Result<()> {
    const QUEUE: &str = "again";
    const COUNT: u64 = 50;
    let endpoints = run.cluster.endpoints();
    let client = Client::connect(&endpoints, 0).await?;
    client.declare(QUEUE).await?;
    client.publish(QUEUE, 2 * COUNT).await?;
    drop(client);
    let away = (run.cluster.leader_of(LIVE).await? + 1) % run.cluster.members.len();
    let others: Vec<usize> = (0..run.cluster.members.len()).filter(|number| *number != away).collect();
    run.cluster.members[away].kill().await?;
    let client = Client::connect(&endpoints, others[0]).await?;
    client.delete(QUEUE).await?;
    client.declare(QUEUE).await?;
    client.publish(QUEUE, COUNT).await?;
    drop(client);
    run.cluster.members[away].start()?;
    // Two of three now, and one of them has the old queue on its disk.
    run.cluster.members[others[0]].kill().await?;
    let mut client = Client::connect(&endpoints, others[1]).await?;
    let found = client.take(3 * COUNT, QUEUE).await?;
    if found != COUNT {
        run.broken(format!("{found} messages in a queue that was made anew with {COUNT}"));
    }
    run.whole_again().await?;
    run.all_in_sync().await?;
    // A fourth takes its place, so that every queue keeps three replicas; then it comes back, with nothing.
    let fourth = run.cluster.members.len();
    run.cluster.add_member(1024).await?;
    expect_members(run, others[0], &[others[0], others[1], fourth]).await?;
    run.cluster.members[fourth].start()?;
    run.whole_again().await?;
    eventually("the removal is taken", Duration::from_secs(30), || remove(run, away, others[0])).await?;
    gone(run, away, others[0]).await?;
    run.cluster.members[away].kill().await?;
    run.cluster.members[away].volume.replace_with_blank().await?;
    expect_members(run, others[0], &[others[0], others[1], fourth, away]).await?;
    run.cluster.members[away].start()?;
    run.whole_again().await?;
    run.all_in_sync().await?;
    away_for_a_while(run, others[1]).await?;
    run.whole_again().await
}

/// A blank member is given everything over a thin link that is cut three times, and from a leader that dies.
pub async fn cut_snapshot(run: &mut Run) -> Result<()> {
    run.workload.pile_up(150_000, Duration::from_secs(120)).await?;
    let leader = run.cluster.leader_of(KEPT).await?;
    let blank = (leader + 1) % run.cluster.members.len();
    let others: Vec<usize> = (0..run.cluster.members.len()).filter(|number| *number != blank).collect();
    run.cluster.members[blank].kill().await?;
    run.cluster.members[blank].volume.replace_with_blank().await?;
    run.network.limit_rate(blank, 10_000).await?;
    run.cluster.members[blank].start()?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        for other in &others {
            run.network.cut(Place::Member(blank), Place::Member(*other)).await?;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        run.network.heal().await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let leader = run.cluster.leader_of(KEPT).await?;
    if leader != blank {
        away_for_a_while(run, leader).await?;
    }
    run.network.lift_rates().await?;
    run.whole_again().await?;
    run.all_in_sync().await?;
    // What it was given must be as good as what the others have.
    let other = others[0];
    away_for_a_while(run, other).await?;
    run.whole_again().await
}
