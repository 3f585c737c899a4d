//! CPU that each member's core spends on a message: published with confirms, replicated, delivered and acknowledged, with
//! an instant disk and network. Run with `cargo bench -p holdfast-engine`.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Cluster, consume, short};
use holdfast_wire::Method;

const MESSAGES: u64 = 200_000;
const IN_FLIGHT: u64 = 1_000;
const BATCH: u64 = 100;

fn main() {
    for consumer_at in [0, 1] {
        measure(consumer_at);
    }
}

fn measure(consumer_at: usize) {
    let mut cluster = Cluster::ready(3);
    let mut publisher = cluster.client(0);
    publisher.declare(&mut cluster, "q");
    publisher.confirm_select(&mut cluster);
    let mut consumer = cluster.client(consumer_at);
    consumer.qos(&mut cluster, 2_000);
    assert!(matches!(consumer.call(&mut cluster, 1, consume("q", "c", false)), Method::BasicConsumeOk { .. }));
    let body = "x".repeat(1024);
    cluster.spent = [std::time::Duration::ZERO; 3];
    let (mut published, mut confirmed, mut received, mut acked) = (0, 0, 0, 0);
    while received < MESSAGES {
        while published < MESSAGES && published - confirmed < IN_FLIGHT {
            let mut batch = Vec::new();
            for _ in 0..BATCH {
                batch.push(common::publish_frames("", "q", false, &body));
            }
            publisher.send_bytes(&mut cluster, batch.concat().into());
            published += BATCH;
        }
        cluster.run(holdfast_queue::time::Duration::from_millis(10));
        for method in publisher.methods(&mut cluster) {
            if let Method::BasicAck { delivery_tag, .. } = method {
                confirmed = confirmed.max(delivery_tag);
            }
        }
        for method in consumer.methods(&mut cluster) {
            if let Method::BasicDeliver { delivery_tag, .. } = method {
                received = received.max(delivery_tag);
            }
        }
        if received >= acked + 500 {
            acked = received;
            consumer.ack(&mut cluster, acked, true);
        }
    }
    let each = cluster.spent.map(|spent| spent.as_secs_f64() * 1e6 / MESSAGES as f64);
    println!("publisher on m0 (leader), consumer on m{consumer_at}: µs of core time for each message: {each:.2?}");
    let _ = short("");
}
