//! What a client sends: its octets as frames, and which frame may come in which phase of the connection and its channels.

use holdfast_wire::{Frame, FrameKind, Method, MethodId, ReplyCode};

use crate::assembly::PUBLISH;
use crate::channel::{Channel, Stage};
use crate::connection::{Connection, Phase};
use crate::{AmqpError, ChannelId, LostReason, Request};

impl Connection {
    /// Takes frames as long as the phase allows.
    pub(crate) fn process(&mut self, now_us: u64) {
        if matches!(self.phase, Phase::Header { .. }) {
            self.take_protocol_header();
        }
        while self.takes_frames() {
            match self.decoder.next_frame(self.frame_max) {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    let channel = frame.channel;
                    if let Err(error) = self.handle_frame(frame, now_us) {
                        self.fail(channel, error, now_us);
                    }
                }
                Err(error) => {
                    self.framing_lost = true;
                    return self.fail(0, error.into(), now_us);
                }
            }
        }
    }

    fn takes_frames(&self) -> bool {
        match self.phase {
            Phase::Start { .. } | Phase::Tuning { .. } | Phase::Opening { .. } => true,
            Phase::Open => self.wants_input(),
            Phase::Closing { .. } => !self.framing_lost,
            _ => false,
        }
    }

    fn take_protocol_header(&mut self) {
        let Phase::Header { deadline_us } = self.phase else { return };
        match self.decoder.protocol_header() {
            None => {}
            Some(holdfast_wire::ProtocolHeader::Amqp091) => self.start(deadline_us),
            Some(holdfast_wire::ProtocolHeader::Other { received }) => {
                self.shared.out.raw(&holdfast_wire::PROTOCOL_HEADER);
                self.lose(LostReason::ProtocolHeader { received });
            }
        }
    }

    fn handle_frame(&mut self, frame: Frame, now_us: u64) -> Result<(), AmqpError> {
        if matches!(self.phase, Phase::Closing { .. }) {
            self.frame_while_closing(frame);
            return Ok(());
        }
        match (frame.kind, frame.channel) {
            (FrameKind::Heartbeat, 0) => Ok(()),
            (FrameKind::Method, 0) => self.connection_method(Method::decode(frame.payload)?, now_us),
            (FrameKind::Header | FrameKind::Body, 0) | (FrameKind::Heartbeat, _) => {
                Err(hard(ReplyCode::UnexpectedFrame, "expected method frame, got non method frame instead"))
            }
            (_, _) if self.phase != Phase::Open => {
                Err(hard(ReplyCode::UnexpectedFrame, "channel frame before connection.open"))
            }
            (_, number) => self.channel_frame(number, frame),
        }
    }

    /// After a close of ours only its answer counts, or a close of the client's that crossed it. That one gets no close-ok: it
    /// would say that what came before it is durable, and what came since our own was dropped. The connection just ends.
    fn frame_while_closing(&mut self, frame: Frame) {
        if frame.kind != FrameKind::Method || frame.channel != 0 {
            return;
        }
        if let Ok(Method::ConnectionCloseOk {} | Method::ConnectionClose { .. }) = Method::decode(frame.payload) {
            self.phase = Phase::Closed;
        }
    }

    fn connection_method(&mut self, method: Method, now_us: u64) -> Result<(), AmqpError> {
        match method {
            Method::ConnectionClose { .. } => {
                // A client that has not answered the end of a channel may have closed without having seen it, and close-ok
                // would say that what was dropped there is durable.
                let unseen = |channel: &Channel| channel.dropped.clone().filter(|_| !channel.is_close_answered);
                if let Some(error) = self.channels.values().find_map(unseen) {
                    self.fail(0, error, now_us);
                    return Ok(());
                }
                self.phase = Phase::Draining;
                self.finish_draining();
                Ok(())
            }
            Method::ConnectionUpdateSecret { new_secret, reason } if self.phase == Phase::Open => {
                self.updating_secret = true;
                self.shared.out.request(Request::UpdateSecret { secret: new_secret.into_bytes(), reason });
                Ok(())
            }
            method if self.phase == Phase::Open => Err(AmqpError::new(
                ReplyCode::ChannelError,
                "unexpected method in connection state running",
                method.id(),
            )),
            method => self.handshake_method(method, now_us),
        }
    }

    /// Passes the client's close on once no channel waits for an answer.
    pub(crate) fn finish_draining(&mut self) {
        let waits = |channel: &Channel| channel.waiting.is_some() && channel.stage == Stage::Open;
        if self.phase == Phase::Draining && !self.channels.values().any(waits) {
            self.phase = Phase::ClientClosing;
            self.shared.out.request(Request::CloseConnection);
        }
    }

    fn channel_frame(&mut self, number: u16, frame: Frame) -> Result<(), AmqpError> {
        let Some(channel) = self.channels.get_mut(&number) else {
            return self.frame_without_channel(number, frame);
        };
        if channel.stage == Stage::Failed {
            return self.frame_on_failed_channel(number, frame);
        }
        let before_bytes = channel.assembly.held_bytes;
        let input = channel.assembly.frame(frame, &self.shared.config)?;
        self.shared.held_bytes = self.shared.held_bytes + channel.assembly.held_bytes - before_bytes;
        if let Some(input) = input {
            channel.accept(input, &mut self.shared)?;
        }
        self.check_held(number)
    }

    /// Bodies under way cannot shrink by waiting: too much of them ends the connection.
    pub(crate) fn check_held(&self, number: u16) -> Result<(), AmqpError> {
        let backlog = |channel: &Channel| !channel.backlog.is_empty();
        if self.shared.held_bytes < self.shared.config.assembly_max_bytes || self.channels.values().any(backlog) {
            return Ok(());
        }
        let text = format!("too much content under way on channel {number} and others");
        Err(AmqpError::new(ReplyCode::ResourceError, text, PUBLISH))
    }

    fn frame_without_channel(&mut self, number: u16, frame: Frame) -> Result<(), AmqpError> {
        if frame.kind != FrameKind::Method {
            return Err(hard(ReplyCode::UnexpectedFrame, "expected method frame, got non method frame instead"));
        }
        match Method::decode(frame.payload)? {
            Method::ChannelOpen {} => self.open_channel(number),
            // The answer to a close that crossed the client's own.
            Method::ChannelCloseOk {} => Ok(()),
            other => Err(AmqpError::new(ReplyCode::ChannelError, "expected 'channel.open'", other.id())),
        }
    }

    fn open_channel(&mut self, number: u16) -> Result<(), AmqpError> {
        let (count, max) = (self.channels.len(), self.channel_max);
        let text = if max != 0 && count >= usize::from(max) {
            Some(format!("number of channels opened ({count}) has reached the negotiated channel_max ({max})"))
        } else if max != 0 && number > max {
            Some(format!("channel number {number} is over the negotiated channel_max ({max})"))
        } else {
            None
        };
        if let Some(text) = text {
            return Err(AmqpError::new(ReplyCode::NotAllowed, text, MethodId { class: 20, method: 10 }));
        }
        self.generations += 1;
        let id = ChannelId { number, generation: self.generations };
        self.channels.insert(number, Channel::new(id));
        self.shared.out.request(Request::OpenChannel { channel: id });
        self.shared.out.method(number, &Method::ChannelOpenOk {});
        Ok(())
    }

    fn frame_on_failed_channel(&mut self, number: u16, frame: Frame) -> Result<(), AmqpError> {
        let Some(channel) = self.channels.get_mut(&number).filter(|_| frame.kind == FrameKind::Method) else {
            return Ok(());
        };
        match Method::decode(frame.payload) {
            Ok(Method::ChannelCloseOk {}) => {
                channel.is_close_answered = true;
                if !channel.is_closed_by_client {
                    self.channels.remove(&number);
                }
            }
            Ok(Method::ChannelClose { .. }) => channel.close_crossed(&mut self.shared),
            // It has closed the channel and answered our close: it need not wait for the answer to its own.
            Ok(Method::ChannelOpen {}) if channel.is_close_answered => {
                self.channels.remove(&number);
                return self.open_channel(number);
            }
            _ => {}
        }
        Ok(())
    }
}

fn hard(code: ReplyCode, text: &str) -> AmqpError {
    AmqpError::new(code, text, MethodId::NONE)
}
