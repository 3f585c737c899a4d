//! Sessions: what a close promises, what an error leaves behind, and what becomes of deliveries.

mod common;

use common::{Client, Cluster, short};
use holdfast_queue::time::Duration;
use holdfast_wire::Method;

fn connection_close() -> Method {
    Method::ConnectionClose { reply_code: 200, reply_text: short("bye"), class_id: 0, method_id: 0 }
}

fn channel_close() -> Method {
    Method::ChannelClose { reply_code: 200, reply_text: short("bye"), class_id: 0, method_id: 0 }
}

/// The code of a close by the broker, and its text.
fn refusal(method: &Method) -> (u16, String) {
    match method {
        Method::ChannelClose { reply_code, reply_text, .. }
        | Method::ConnectionClose { reply_code, reply_text, .. } => (*reply_code, reply_text.as_str().to_owned()),
        other => panic!("{other:?} instead of a close"),
    }
}

/// 100 messages to `q` that no disk has, without confirms.
fn publish_while_disks_are_slow(cluster: &mut Cluster, publisher: &mut Client) {
    publisher.declare(cluster, "q");
    (0..3).for_each(|at| cluster.stall_disk(at));
    for number in 0..100 {
        publisher.publish(cluster, "q", &number.to_string());
    }
}

#[test]
fn a_closed_channel_is_told_so_only_when_what_it_published_is_durable() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(2);
    publish_while_disks_are_slow(&mut cluster, &mut publisher);
    publisher.send(&mut cluster, 1, channel_close());
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_millis(200)), None);
    (0..3).for_each(|at| cluster.resume_disk(at));
    assert_eq!(publisher.method(&mut cluster).1, Method::ChannelCloseOk {});
    assert_eq!(cluster.client(0).declare(&mut cluster, "q"), (100, 0));
}

#[test]
fn a_closed_connection_is_told_so_only_when_a_failed_channel_s_publishes_are_durable_too() {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(2);
    publish_while_disks_are_slow(&mut cluster, &mut publisher);
    publisher.publish_to(&mut cluster, "none", "k", false, "nowhere");
    assert_eq!(refusal(&publisher.method(&mut cluster).1).0, 404);
    publisher.send(&mut cluster, 1, Method::ChannelCloseOk {});
    publisher.send(&mut cluster, 0, connection_close());
    assert_eq!(publisher.method_within(&mut cluster, Duration::from_millis(200)), None);
    (0..3).for_each(|at| cluster.resume_disk(at));
    assert_eq!(publisher.method(&mut cluster).1, Method::ConnectionCloseOk {});
    assert_eq!(cluster.client(0).declare(&mut cluster, "q"), (100, 0));
}
