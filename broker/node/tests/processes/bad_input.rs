//! Clients that make mistakes get a clear error, and nobody else notices.

use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::{Cluster, PATIENCE, uri};

const HEADER: &[u8] = b"AMQP\0\0\x09\x01";

/// Class and method of `connection.close`, as they stand in a frame.
const CLOSE: [u8; 4] = [0, 10, 0, 50];

/// Sends `bytes` and gives what comes back until the broker closes the connection or says that it will.
async fn exchange(address: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while stream.read_buf(&mut answer).await.unwrap() > 0 {
            if says_close(&answer) {
                return;
            }
        }
    };
    let in_time = timeout(PATIENCE, read).await.is_ok();
    assert!(in_time, "the broker left the connection open after {answer:?}");
    answer
}

fn says_close(answer: &[u8]) -> bool {
    answer.windows(CLOSE.len()).any(|window| window == CLOSE)
}

async fn connect_error(uri: &str) -> String {
    let attempt = Connection::connect(uri, ConnectionProperties::default());
    match timeout(PATIENCE, attempt).await.expect("an answer") {
        Ok(_) => panic!("{uri} was let in"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistaken_clients_are_told_what_is_wrong_and_the_broker_goes_on() {
    let cluster = Cluster::start().await;
    let address = cluster.members()[0].amqp;

    println!("wrong protocol headers");
    for wrong in [&b"HTTP/1.1 GET /\r\n\r\n"[..], b"AMQP\x01\x01\x00\x09", b"\0\0\0\0\0\0\0\0"] {
        assert_eq!(exchange(address, wrong).await, HEADER, "after {wrong:?}");
    }

    println!("garbage instead of frames");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20 {
        let mut bytes = HEADER.to_vec();
        for _ in 0..200 + round * 50 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.push(seed as u8);
        }
        let answer = exchange(address, &bytes).await;
        assert_eq!(&answer[..1], [1], "connection.start comes first");
        assert!(says_close(&answer), "and connection.close follows");
    }

    println!("a frame that claims 4 GiB");
    let answer = exchange(address, &[HEADER, &[1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]].concat()).await;
    assert!(says_close(&answer));

    println!("a wrong password, an unknown user, an unknown virtual host");
    let good = uri(address);
    let refused = connect_error(&good.replace("guest:guest", "guest:wrong")).await;
    assert!(refused.contains("ACCESS") || refused.contains("403"), "{refused}");
    let refused = connect_error(&good.replace("guest:guest", "nobody:guest")).await;
    assert!(refused.contains("ACCESS") || refused.contains("403"), "{refused}");
    let refused = connect_error(&good.replace("%2f", "elsewhere")).await;
    assert!(refused.contains("530") || refused.contains("elsewhere"), "{refused}");

    println!("everybody else goes on");
    for member in cluster.members() {
        let uri = uri(member.amqp);
        let attempt = Connection::connect(&uri, ConnectionProperties::default());
        let connection = timeout(Duration::from_secs(20), attempt).await.unwrap().unwrap();
        connection.close(200, "done".into()).await.unwrap();
    }
}
