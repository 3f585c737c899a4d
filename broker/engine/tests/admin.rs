//! The admin API's requests against a real cluster.

mod common;

use common::{Cluster, short};
use holdfast_engine::admin::{AdminAction, AdminErrorKind, AdminReply, ExpectedMember, UserCredentials, UserReport};
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::Duration;
use holdfast_wire::Method;

fn user(name: &str, password: &str) -> AdminAction {
    AdminAction::PutUser(UserCredentials { name: name.into(), password_hash: format!("hash of {password}") })
}

fn users(cluster: &mut Cluster, at: usize) -> Vec<UserReport> {
    match cluster.admin(at, AdminAction::Users) {
        Ok(AdminReply::Users(users)) => users,
        other => panic!("{other:?} instead of users"),
    }
}

#[test]
fn a_new_user_may_log_in_everywhere_and_a_new_password_leaves_its_permissions_alone() {
    let mut cluster = Cluster::ready(3);
    assert_eq!(cluster.admin(1, user("app", "first")), Ok(AdminReply::Done));
    for at in 0..3 {
        let mut client = cluster.connect(at);
        client.log_in(&mut cluster, "app", "first", "/");
    }
    assert_eq!(cluster.admin(2, user("app", "second")), Ok(AdminReply::Done));
    let mut old = cluster.connect(0);
    let refused = old.try_log_in(&mut cluster, "app", "first", "/");
    assert!(matches!(refused, Method::ConnectionClose { reply_code: 403, .. }), "{refused:?}");
    let mut new = cluster.connect(0);
    new.log_in(&mut cluster, "app", "second", "/");
    let app = UserReport { name: "app".into(), tags: vec!["administrator".into()], vhosts: vec!["/".into()] };
    let guest = UserReport { name: "guest".into(), ..app.clone() };
    assert_eq!(users(&mut cluster, 1), [app, guest]);
}

#[test]
fn a_deleted_user_is_gone_from_every_member_with_its_connections() {
    let mut cluster = Cluster::ready(3);
    assert_eq!(cluster.admin(0, user("app", "pw")), Ok(AdminReply::Done));
    let mut client = cluster.connect(2);
    client.log_in(&mut cluster, "app", "pw", "/");
    let delete = || AdminAction::DeleteUser { name: "app".into() };
    assert_eq!(cluster.admin(0, delete()), Ok(AdminReply::Done));
    let closed = client.method(&mut cluster).1;
    let Method::ConnectionClose { reply_code: 320, reply_text, .. } = closed else { panic!("{closed:?}") };
    assert_eq!(reply_text, short("CONNECTION_FORCED - the user was deleted"));
    let mut again = cluster.connect(1);
    let refused = again.try_log_in(&mut cluster, "app", "pw", "/");
    assert!(matches!(refused, Method::ConnectionClose { reply_code: 403, .. }), "{refused:?}");
    assert_eq!(users(&mut cluster, 1).len(), 1);
    let missing = cluster.admin(0, delete()).expect_err("it is gone");
    assert_eq!(missing.kind, AdminErrorKind::NotFound);
}

#[test]
fn members_are_listed_with_those_that_are_expected_and_not_there() {
    let mut cluster = Cluster::ready(2);
    let expected = |at: usize| ExpectedMember {
        name: format!("m{at}"),
        address: format!("m{at}:5680"),
        zone: format!("zone-{at}"),
    };
    let put = AdminAction::PutMembers { members: (0..3).map(expected).collect() };
    assert_eq!(cluster.admin(1, put), Ok(AdminReply::Done));
    let Ok(AdminReply::Members(members)) = cluster.admin(0, AdminAction::Members) else { panic!("no members") };
    let seen: Vec<_> = members.iter().map(|it| (it.name.as_str(), it.id.is_some(), it.live)).collect();
    assert_eq!(seen, [("m0", true, true), ("m1", true, true), ("m2", false, false)]);
}

#[test]
fn drained_leaders_go_to_others_and_the_groups_say_so() {
    let mut cluster = Cluster::ready(3);
    let mut client = cluster.client(0);
    client.declare(&mut cluster, "q");
    let leader = cluster.leader_of(GroupId(1)).expect("a leader");
    let drained = cluster.admin(leader, AdminAction::DrainLeaders { deadline_ms: 5_000 });
    assert_eq!(drained, Ok(AdminReply::Drained { remaining: 0 }));
    cluster.wait("another member leads", |cluster| cluster.leader_of(GroupId(1)).is_some_and(|at| at != leader));
    let now = cluster.leader_of(GroupId(1)).expect("a leader");
    let Ok(AdminReply::Groups(groups)) = cluster.admin(now, AdminAction::Groups { limit: 10 }) else {
        panic!("no groups");
    };
    let group = groups.iter().find(|group| group.group == GroupId(1)).expect("the queue's group");
    assert_eq!((group.queues.clone(), group.leading), (vec!["//q".to_owned()], true));
    assert_eq!((group.leader.clone(), group.replicas.len()), (Some(format!("m{now}")), 3));
    let Ok(AdminReply::Groups(one)) = cluster.admin(now, AdminAction::Groups { limit: 1 }) else { panic!("no groups") };
    assert_eq!(one.len(), 1);
}

#[test]
fn a_token_that_was_overtaken_is_refused_even_after_a_restart() {
    let mut cluster = Cluster::ready(1);
    let ask = |cluster: &mut Cluster, token| cluster.admin_with(0, token, AdminAction::Users);
    assert!(ask(&mut cluster, Some(5)).is_ok());
    let stale = ask(&mut cluster, Some(4)).expect_err("overtaken");
    assert_eq!(stale.kind, AdminErrorKind::Conflict);
    assert!(ask(&mut cluster, None).is_ok(), "a person has no token");
    cluster.kill(0);
    cluster.restart(0, |_| {});
    cluster.run(Duration::from_secs(5));
    assert_eq!(ask(&mut cluster, Some(4)).expect_err("overtaken").kind, AdminErrorKind::Conflict);
    assert!(ask(&mut cluster, Some(5)).is_ok());
}
