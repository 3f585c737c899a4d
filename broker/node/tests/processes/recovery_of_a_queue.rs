//! A queue of two replicas loses one for good, while the metadata keep their majority and all other queues serve.

use serde_json::{Value, json};

use crate::cluster::eventually;
use crate::recovery::{Members, QUEUE, group_of, numbers};

const NONCE: &str = "00000000000000b3";

/// The members that hold a replica of the queue, by number, once each has all of it.
async fn holders(members: &Members) -> Vec<usize> {
    let voters = || async {
        let mut found = Vec::new();
        for asked in 0..members.members.len() {
            let answer = members.get(asked, "/v1/groups").await?;
            let groups = answer["groups"].as_array()?;
            let led = |group: &&Value| group["leader"] == members.members[asked].name.as_str() && group["id"] != 0;
            for replica in groups.iter().filter(led).flat_map(|group| group["replicas"].as_array().unwrap()) {
                if replica["lag"] != 0 || replica["voter"] != true {
                    return None;
                }
                let name = replica["name"].as_str().expect("a name");
                found.push(members.members.iter().position(|member| member.name == name).expect("a member"));
            }
        }
        (found.len() == 2).then_some(found)
    };
    eventually("both copies of the queue", voters).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_lost_one_of_two_replicas_for_good_is_recovered_while_the_metadata_have_a_majority() {
    let mut members = Members::found(3).await;
    members.declare(0, QUEUE, 2).await;
    members.publish(0, QUEUE, 0..30).await;
    let holders = holders(&members).await;
    let (lost, kept) = (holders[0], holders[1]);
    let other = (0..3).find(|member| !holders.contains(member)).expect("a third member");
    members.lose(lost);
    let without_leader = || async {
        let health = members.get(kept, "/v1/health").await?;
        (health["quorum"] == true && health["groups"]["withoutLeader"] == 1).then_some(())
    };
    eventually("the queue to lack a majority that the metadata have", without_leader).await;
    for (body, ok) in [(json!({ "seconds": 300 }), false), (json!({ "seconds": 300, "evenWithMajority": true }), true)]
    {
        for member in [kept, other] {
            let answer = members.post(member, "/v1/recovery/freeze", &body).await;
            assert_eq!(answer.is_ok(), ok, "{answer:?}");
        }
    }
    let mut found = Vec::new();
    for member in [kept, other] {
        found.push(members.get(member, "/v1/recovery/survey").await.expect("a survey"));
    }
    let plan = members.post(other, "/v1/recovery/plan", &json!({ "found": found })).await.unwrap();
    let group = group_of(&plan, QUEUE);
    assert_eq!(
        (&plan["needed"], &group["outcome"], &group["queues"][0]["messages"]),
        (&true.into(), &"whole".into(), &30.into()),
        "of two voters one knows all that was confirmed: {plan:#}"
    );
    let part = json!({ "planHash": plan["planHash"], "nonce": NONCE, "found": found });
    for member in [kept, other] {
        let applied = members.post(member, "/v1/recovery/apply", &part).await.unwrap();
        assert_eq!((&applied["epoch"], &applied["doneBefore"]), (&2.into(), &false.into()));
        members.gone(member).await;
    }
    members.start(kept);
    members.start(other);
    members.publish(other, QUEUE, 30..40).await;
    assert_eq!(members.drain(other, QUEUE).await, numbers(0..40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_refused_where_no_group_lacks_its_majority_though_the_members_were_frozen() {
    let members = Members::found(3).await;
    members.declare(0, QUEUE, 3).await;
    members.publish(0, QUEUE, 0..10).await;
    let mut found = Vec::new();
    for member in 0..3 {
        let body = json!({ "seconds": 300, "evenWithMajority": true });
        members.post(member, "/v1/recovery/freeze", &body).await.unwrap();
        found.push(members.get(member, "/v1/recovery/survey").await.expect("a survey"));
    }
    let plan = members.post(0, "/v1/recovery/plan", &json!({ "found": found })).await.unwrap();
    assert_eq!(plan["needed"], false);
    let part = json!({ "planHash": plan["planHash"], "nonce": NONCE, "found": found });
    let refused = members.post(0, "/v1/recovery/apply", &part).await.expect_err("nothing is to be recovered");
    assert!(refused.contains("a majority of every group is there"), "{refused}");
    for member in 0..3 {
        members.post(member, "/v1/recovery/freeze", &json!({ "seconds": 0 })).await.unwrap();
    }
    members.publish(1, QUEUE, 10..20).await;
    assert_eq!(members.drain(2, QUEUE).await, numbers(0..20));
}
