//! From the protocol header to `connection.open-ok` (AMQP 0-9-1 §2.2.4).

use holdfast_wire::{LongStr, Method, MethodId, ReplyCode, ShortStr};

use crate::connection::{Connection, Phase};
use crate::{AmqpError, LostReason, Refusal, Request, sasl};

/// Frames before `connection.tune-ok`, octets with overhead (RabbitMQ's `initial_frame_max`).
pub(crate) const FIRST_FRAME_MAX: u32 = 8192;

/// The least frame_max that a client may ask for (AMQP 0-9-1, constant frame-min-size).
const FRAME_MIN: u32 = 4096;

const TUNE: MethodId = MethodId { class: 10, method: 30 };

impl Connection {
    /// Sends `connection.start`.
    pub(crate) fn start(&mut self, deadline_us: u64) {
        let config = &self.shared.config;
        let start = Method::ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: config.server_properties(),
            mechanisms: LongStr::new(config.mechanism_names()),
            locales: LongStr::new("en_US"),
        };
        self.shared.out.method(0, &start);
        self.phase = Phase::Start { deadline_us };
    }

    pub(crate) fn handshake_method(&mut self, method: Method, now_us: u64) -> Result<(), AmqpError> {
        match (self.phase, method) {
            (
                Phase::Start { deadline_us },
                Method::ConnectionStartOk { client_properties, mechanism, response, .. },
            ) => {
                self.shared.client.introduce(client_properties);
                self.authenticate(&mechanism, &response, deadline_us, now_us)
            }
            (Phase::Tuning { deadline_us }, Method::ConnectionTuneOk { channel_max, frame_max, heartbeat_s }) => {
                let config = &self.shared.config;
                check_tuned("channel_max", 1, u32::from(config.channel_max), u32::from(channel_max))?;
                check_tuned("frame_max", FRAME_MIN, config.frame_max, frame_max)?;
                self.channel_max = channel_max;
                self.frame_max = frame_max;
                self.shared.out.frame_max = frame_max;
                self.heartbeat.tuned(heartbeat_s, now_us);
                self.phase = Phase::Opening { deadline_us };
                Ok(())
            }
            (Phase::Opening { deadline_us }, Method::ConnectionOpen { virtual_host }) => {
                self.phase = Phase::OpeningVhost { deadline_us };
                self.shared.client.vhost = Some(virtual_host.detached());
                self.shared.out.request(Request::OpenVhost { vhost: virtual_host });
                Ok(())
            }
            (phase, method) => {
                let text = format!("unexpected method in connection state {}", state_name(phase));
                Err(AmqpError::new(ReplyCode::ChannelError, text, method.id()))
            }
        }
    }

    fn authenticate(
        &mut self,
        name: &ShortStr,
        response: &LongStr,
        deadline_us: u64,
        now_us: u64,
    ) -> Result<(), AmqpError> {
        let config = &self.shared.config;
        let Some(mechanism) = config.mechanisms.iter().copied().find(|mechanism| *name == mechanism.name()) else {
            let text = format!("unknown authentication mechanism '{name}'");
            return Err(AmqpError::new(ReplyCode::CommandInvalid, text, MethodId { class: 10, method: 11 }));
        };
        self.phase = Phase::Authenticating { deadline_us };
        self.shared.client.mechanism = mechanism.name();
        match sasl::credentials(mechanism, response.as_bytes(), config.external_user.as_ref()) {
            Some(credentials) => {
                self.shared.client.user = Some(credentials.user.clone());
                self.shared.out.request(Request::Authenticate(credentials));
            }
            None => self.reply_authenticated(false, now_us),
        }
        Ok(())
    }

    /// The log-in is checked. A refused one is told 403 if the client can read it, else the socket closes.
    pub fn reply_authenticated(&mut self, accepted: bool, now_us: u64) {
        let Phase::Authenticating { deadline_us } = self.phase else { return };
        if accepted {
            let config = &self.shared.config;
            let tune = Method::ConnectionTune {
                channel_max: config.channel_max,
                frame_max: config.frame_max,
                heartbeat_s: config.heartbeat_s,
            };
            self.shared.out.method(0, &tune);
            self.phase = Phase::Tuning { deadline_us };
            return self.process(now_us);
        }
        let readable = self.shared.client.reads_authentication_failure;
        if readable {
            let text = format!(
                "Login was refused using authentication mechanism {}. For details see the broker logfile.",
                self.shared.client.mechanism
            );
            let error = AmqpError::new(ReplyCode::AccessRefused, text, MethodId::NONE);
            let close = Method::ConnectionClose {
                reply_code: error.code.number(),
                reply_text: error.reply_text(),
                class_id: 0,
                method_id: 0,
            };
            self.shared.out.method(0, &close);
        }
        self.lose(LostReason::LoginRefused);
        if readable {
            self.phase = Phase::Closing { deadline_us: now_us.saturating_add(self.shared.config.close_timeout_us) };
            self.process(now_us);
        }
    }

    /// The virtual host is open, or not (530).
    pub fn reply_vhost(&mut self, result: Result<(), Refusal>, now_us: u64) {
        if !matches!(self.phase, Phase::OpeningVhost { .. }) {
            return;
        }
        match result {
            Ok(()) => {
                self.shared.out.method(0, &Method::ConnectionOpenOk {});
                self.phase = Phase::Open;
                self.heartbeat.received(now_us);
                self.process(now_us);
            }
            Err(Refusal { code, text }) => {
                self.shared.client.vhost = None;
                self.fail(0, AmqpError::new(code, text, MethodId { class: 10, method: 40 }), now_us);
                self.process(now_us);
            }
        }
    }
}

/// Client and server agree on the client's value, within the server's limits; 0 asks for no limit.
fn check_tuned(field: &str, min: u32, server: u32, client: u32) -> Result<(), AmqpError> {
    let (direction, bound, limit) = if client != 0 && client < min {
        ("lower", "minimum", min)
    } else if server != 0 && (client == 0 || client > server) {
        ("higher", "maximum", server)
    } else {
        return Ok(());
    };
    let detail = if client == 0 { " (no limit)" } else { "" };
    let text = format!("negotiated {field} = {client}{detail} is {direction} than the {bound} allowed value ({limit})");
    Err(AmqpError::new(ReplyCode::NotAllowed, text, TUNE))
}

/// RabbitMQ's names of the states.
fn state_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Start { .. } => "starting",
        Phase::Authenticating { .. } => "securing",
        Phase::Tuning { .. } => "tuning",
        Phase::Opening { .. } | Phase::OpeningVhost { .. } => "opening",
        _ => "running",
    }
}
