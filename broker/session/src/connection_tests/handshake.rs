use super::*;
use crate::{LostReason, Mechanism, Refusal};

fn credentials_of(requests: &[Request]) -> &Credentials {
    match requests {
        [Request::Authenticate(credentials)] => credentials,
        other => panic!("not a log-in: {other:?}"),
    }
}

#[test]
fn start_offers_mechanisms_and_rabbitmqs_capabilities() {
    let mut script = Script::new(Config::default());
    script.bytes(Bytes::copy_from_slice(&PROTOCOL_HEADER));
    let seen = script.methods();
    let [(0, Method::ConnectionStart { version_major: 0, version_minor: 9, server_properties, mechanisms, locales })] =
        &seen[..]
    else {
        panic!("not a start: {seen:?}");
    };
    assert_eq!(&mechanisms.as_bytes()[..], b"PLAIN AMQPLAIN");
    assert_eq!(&locales.as_bytes()[..], b"en_US");
    let Some(FieldValue::Table(capabilities)) = server_properties.get("capabilities") else {
        panic!("no capabilities");
    };
    assert_eq!(capabilities.iter().count(), 8);
    // What is announced is used: a client would wait for replies that never come.
    assert_eq!(capabilities.get("direct_reply_to"), None);
    assert_eq!(capabilities.get("basic.nack"), Some(FieldValue::Bool(true)));
}

#[test]
fn another_protocol_header_is_answered_with_ours_and_the_end() {
    for header in [&b"AMQP\x01\x01\x00\x0a"[..], b"AMQP\x03\x01\x00\x00", b"GET / HTTP/1.1\r\n"] {
        let mut script = Script::new(Config::default());
        script.bytes(Bytes::copy_from_slice(header));
        assert_eq!(script.connection.poll_transmit(0).as_deref(), Some(&PROTOCOL_HEADER[..]));
        let received = Bytes::copy_from_slice(&header[..8]);
        assert_eq!(script.requests(), [Request::ConnectionLost { why: LostReason::ProtocolHeader { received } }]);
        assert!(script.connection.is_closed());
    }
}

#[test]
fn plain_and_amqplain_give_user_and_password() {
    let cases: [(&'static str, &'static [u8], Mechanism); 3] = [
        ("PLAIN", b"\0guest\0se\xffcret", Mechanism::Plain),
        ("PLAIN", b"guest\0guest\0se\xffcret", Mechanism::Plain),
        ("AMQPLAIN", b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x07se\xffcret", Mechanism::AmqPlain),
    ];
    for (name, response, mechanism) in cases {
        let mut script = Script::started();
        script.send(0, start_ok(name, response, FieldTable::default()));
        let requests = script.requests();
        let credentials = credentials_of(&requests);
        assert_eq!((credentials.mechanism, &credentials.user), (mechanism, &short("guest")));
        assert_eq!(&credentials.password[..], b"se\xffcret");
    }
}

#[test]
fn malformed_credentials_are_a_refused_log_in() {
    let cases: [(&'static str, &'static [u8]); 6] = [
        ("PLAIN", b""),
        ("PLAIN", b"guest"),
        ("PLAIN", b"\0guest"),
        ("PLAIN", b"\0a\0b\0c"),
        ("PLAIN", b"admin\0guest\0guest"),
        ("AMQPLAIN", b"\x05LOGIN"),
    ];
    for (name, response) in cases {
        let mut script = Script::started();
        script.send(0, start_ok(name, response, FieldTable::default()));
        assert_eq!(script.requests(), [Request::ConnectionLost { why: LostReason::LoginRefused }]);
        assert!(script.connection.is_closed(), "a client that cannot read the refusal is cut off");
        assert_eq!(script.seen(), []);
    }
}

#[test]
fn a_refused_log_in_is_told_to_clients_that_can_read_it() {
    let mut script = Script::started();
    script.send(0, start_ok("PLAIN", b"\0guest\0wrong", all_capabilities()));
    script.connection.reply_authenticated(false, 0);
    let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. \
                For details see the broker logfile.";
    script.expect_close(0, ReplyCode::AccessRefused, text, (0, 0));
    assert!(!script.connection.is_closed());
    script.send(0, Method::ConnectionCloseOk {});
    assert!(script.connection.is_closed());
}

#[test]
fn an_unknown_mechanism_is_refused_by_name() {
    let mut script = Script::started();
    script.send(0, start_ok("CRAM-MD5", b"", FieldTable::default()));
    let text = "COMMAND_INVALID - unknown authentication mechanism 'CRAM-MD5'";
    script.expect_close(0, ReplyCode::CommandInvalid, text, (10, 11));
}

#[test]
fn external_takes_the_certificates_name() {
    let config =
        Config { mechanisms: vec![Mechanism::External], external_user: Some(short("CN=app")), ..Config::default() };
    let mut script = Script::new(config);
    script.bytes(Bytes::copy_from_slice(&PROTOCOL_HEADER));
    script.send(0, start_ok("EXTERNAL", b"", FieldTable::default()));
    assert_eq!(credentials_of(&script.requests()).user, short("CN=app"));
}

#[test]
fn tuning_stays_within_the_servers_limits() {
    let lower = "NOT_ALLOWED - negotiated frame_max = 4095 is lower than the minimum allowed value (4096)";
    let higher = "NOT_ALLOWED - negotiated frame_max = 131073 is higher than the maximum allowed value (131072)";
    let unlimited =
        "NOT_ALLOWED - negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (2047)";
    let cases = [
        (tune_ok(2047, 131_072, 60), None),
        (tune_ok(1, 4096, 0), None),
        (tune_ok(2047, 4095, 60), Some(lower)),
        (tune_ok(2047, 131_073, 60), Some(higher)),
        (tune_ok(0, 131_072, 60), Some(unlimited)),
    ];
    for (answer, refusal) in cases {
        let mut script = Script::started();
        script.send(0, start_ok("PLAIN", b"\0guest\0guest", FieldTable::default()));
        script.connection.reply_authenticated(true, 0);
        let offer = Method::ConnectionTune { channel_max: 2047, frame_max: 131_072, heartbeat_s: 60 };
        assert_eq!(script.methods(), [(0, offer)]);
        script.send(0, answer);
        match refusal {
            None => assert_eq!(script.methods(), []),
            Some(text) => script.expect_close(0, ReplyCode::NotAllowed, text, (10, 30)),
        }
    }
}

#[test]
fn a_virtual_host_that_is_not_there_is_not_allowed() {
    let mut script = Script::started();
    script.send(0, start_ok("PLAIN", b"\0guest\0guest", FieldTable::default()));
    script.connection.reply_authenticated(true, 0);
    script.send(0, tune_ok(2047, 131_072, 60));
    script.send(0, Method::ConnectionOpen { virtual_host: short("/nowhere") });
    assert_eq!(script.requests().last(), Some(&Request::OpenVhost { vhost: short("/nowhere") }));
    script.seen();
    script.connection.reply_vhost(Err(Refusal::new(ReplyCode::NotAllowed, "vhost /nowhere not found")), 0);
    script.expect_close(0, ReplyCode::NotAllowed, "NOT_ALLOWED - vhost /nowhere not found", (10, 40));
}

#[test]
fn a_client_that_does_not_wait_for_answers_gets_them_all_the_same() {
    let mut script = Script::new(Config::default());
    let mut all = BytesMut::from(&PROTOCOL_HEADER[..]);
    start_ok("PLAIN", b"\0guest\0guest", FieldTable::default()).encode(0, &mut all);
    tune_ok(10, 8192, 0).encode(0, &mut all);
    Method::ConnectionOpen { virtual_host: short("/") }.encode(0, &mut all);
    Method::ChannelOpen {}.encode(1, &mut all);
    script.bytes(all.freeze());
    script.connection.reply_authenticated(true, 0);
    script.connection.reply_vhost(Ok(()), 0);
    assert_eq!(script.methods().last(), Some(&(1, Method::ChannelOpenOk {})));
    assert_eq!((script.connection.user(), script.connection.vhost()), (Some(&short("guest")), Some(&short("/"))));
}

#[test]
fn methods_out_of_order_are_channel_errors() {
    let mut script = Script::started();
    script.send(0, Method::ConnectionOpen { virtual_host: short("/") });
    let text = "CHANNEL_ERROR - unexpected method in connection state starting";
    script.expect_close(0, ReplyCode::ChannelError, text, (10, 40));
    let mut script = Script::open();
    script.send(0, tune_ok(1, 4096, 1));
    let text = "CHANNEL_ERROR - unexpected method in connection state running";
    script.expect_close(0, ReplyCode::ChannelError, text, (10, 31));
}

#[test]
fn a_handshake_that_stalls_is_cut_off() {
    let mut script = Script::started();
    script.wait(9_999_999);
    assert!(!script.connection.is_closed());
    script.wait(1);
    assert!(script.connection.is_closed());
    assert_eq!(script.requests(), [Request::ConnectionLost { why: LostReason::HandshakeTimeout }]);
}

#[test]
fn heartbeats_are_sent_when_idle_and_two_missed_ones_end_the_connection() {
    let mut script = Script::open();
    script.wait(30_000_000);
    assert_eq!(script.seen(), [Seen::Heartbeat]);
    script.bytes(Bytes::from_static(b"\x08\0\0\0\0\0\0\xce"));
    script.wait(119_000_000);
    assert!(!script.connection.is_closed());
    script.wait(1_000_000);
    assert!(script.connection.is_closed());
    assert_eq!(script.requests(), [Request::ConnectionLost { why: LostReason::Heartbeat }]);
}

#[test]
fn a_paused_connection_is_not_blamed_for_silence_and_loses_nothing() {
    let (mut script, channel) = Script::with_channel();
    script.connection.set_reading_paused(true, 0);
    assert!(!script.connection.wants_input());
    script.publish(1, "late");
    script.wait(600_000_000);
    assert!(!script.connection.is_closed());
    assert_eq!(script.requests(), []);
    script.connection.set_reading_paused(false, script.now_us);
    assert!(matches!(&script.requests()[..], [Request::Publish(publish)] if publish.channel == channel));
}

#[test]
fn a_new_secret_is_passed_on() {
    let mut script = Script::open();
    script.send(0, Method::ConnectionUpdateSecret { new_secret: LongStr::new("token"), reason: short("expired") });
    let secret = Bytes::from_static(b"token");
    assert_eq!(script.requests(), [Request::UpdateSecret { secret, reason: short("expired") }]);
    script.connection.reply_secret_updated(Ok(()));
    assert_eq!(script.methods(), [(0, Method::ConnectionUpdateSecretOk {})]);
}

#[test]
fn blocked_has_rabbitmqs_octets_and_clients_that_do_not_know_it_hear_nothing() {
    let mut script = Script::open();
    script.connection.set_blocked(Some("low on memory"));
    let frame = script.connection.poll_transmit(script.now_us).expect("a frame");
    assert_eq!(&frame[..], b"\x01\x00\x00\x00\x00\x00\x12\x00\x0a\x00\x3c\x0dlow on memory\xce");
    script.connection.set_blocked(None);
    let frame = script.connection.poll_transmit(script.now_us).expect("a frame");
    assert_eq!(&frame[..], b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x3d\xce");

    let mut script = Script::open_as(Config::default(), FieldTable::default());
    script.connection.set_blocked(Some("low on memory"));
    script.connection.set_blocked(None);
    assert_eq!(script.methods(), []);
}

#[test]
fn blocked_and_unblocked_are_told_once() {
    let mut script = Script::open();
    script.connection.set_blocked(Some("low on disk"));
    script.connection.set_blocked(Some("low on disk"));
    script.connection.set_blocked(None);
    let expected =
        [(0, Method::ConnectionBlocked { reason: short("low on disk") }), (0, Method::ConnectionUnblocked {})];
    assert_eq!(script.methods(), expected);
}
