use bytes::{BufMut, Bytes, BytesMut};

use crate::arguments::Argument;
use crate::frame::{FRAME_END, FrameKind};
use crate::{ArgumentReader, ArgumentWriter, FieldTable, LongStr, ShortStr, WireError};

/// Class and method id, as errors report them; (0, 0) where no method is to blame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MethodId {
    /// Class id.
    pub class: u16,
    /// Method id within the class.
    pub method: u16,
}

impl MethodId {
    /// No method.
    pub const NONE: MethodId = MethodId { class: 0, method: 0 };
}

/// One line a method: class, id, name, variant, reserved fields before, fields, reserved fields after.
macro_rules! methods {
    ($($class:literal $id:literal $name:literal $variant:ident
        [$($before:ty),*] { $($(#[$doc:meta])* $field:ident: $kind:ty),* } [$($after:ty),*];)*) => {
        /// Every method of AMQP 0-9-1 and of RabbitMQ's extensions, in both directions. Fields that the specification
        /// reserves are skipped when read and zero when written.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Method { $(#[doc = concat!("`", $name, "`")] $variant { $($(#[$doc])* $field: $kind),* },)* }

        impl Method {
            /// Class and method id.
            pub fn id(&self) -> MethodId {
                match self { $(Method::$variant { .. } => MethodId { class: $class, method: $id },)* }
            }

            /// The name in the specification, e.g. `queue.declare`.
            pub fn name(&self) -> &'static str {
                match self { $(Method::$variant { .. } => $name,)* }
            }

            /// Decodes the payload of a method frame.
            pub fn decode(payload: Bytes) -> Result<Method, WireError> {
                let mut from = ArgumentReader::new(payload);
                let (class, method) = (from.short()?, from.short()?);
                let decoded = match (class, method) {
                    $(($class, $id) => {
                        $(<$before>::read(&mut from)?;)*
                        $(let $field = <$kind>::read(&mut from)?;)*
                        $(<$after>::read(&mut from)?;)*
                        Method::$variant { $($field),* }
                    })*
                    _ => return Err(WireError::UnknownMethod { class, method }),
                };
                from.finish()?;
                Ok(decoded)
            }

            fn encode_arguments(&self, to: &mut ArgumentWriter<'_>) {
                match self {
                    $(Method::$variant { $($field),* } => {
                        $(<$before>::default().write(to);)*
                        $($field.write(to);)*
                        $(<$after>::default().write(to);)*
                    })*
                }
            }

            /// One of each method, its fields made by `sample`.
            #[cfg(test)]
            fn samples(source: &mut tests::Source) -> Vec<Method> {
                use tests::Sample;
                vec![$(Method::$variant { $($field: <$kind>::sample(source)),* },)*]
            }
        }
    };
}

impl Method {
    /// Appends the whole method frame.
    pub fn encode(&self, channel: u16, out: &mut BytesMut) {
        out.put_u8(FrameKind::Method as u8);
        out.put_u16(channel);
        let length_at = out.len();
        out.put_u32(0);
        let id = self.id();
        out.put_u16(id.class);
        out.put_u16(id.method);
        self.encode_arguments(&mut ArgumentWriter::new(out));
        let length = (out.len() - length_at - 4) as u32;
        out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
        out.put_u8(FRAME_END);
    }

    /// The whole method frame as bytes of its own.
    pub fn to_frame(&self, channel: u16) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        self.encode(channel, &mut out);
        out.freeze()
    }

    /// True for the three client or server methods that a content header and body follow in the client's direction
    /// (`basic.publish`) or the server's (`basic.return`, `basic.deliver`, `basic.get-ok`).
    pub fn has_content(&self) -> bool {
        matches!(
            self,
            Method::BasicPublish { .. }
                | Method::BasicReturn { .. }
                | Method::BasicDeliver { .. }
                | Method::BasicGetOk { .. }
        )
    }
}

methods! {
    10 10 "connection.start" ConnectionStart [] { version_major: u8, version_minor: u8, server_properties: FieldTable, mechanisms: LongStr, locales: LongStr } [];
    10 11 "connection.start-ok" ConnectionStartOk [] { client_properties: FieldTable, mechanism: ShortStr, response: LongStr, locale: ShortStr } [];
    10 20 "connection.secure" ConnectionSecure [] { challenge: LongStr } [];
    10 21 "connection.secure-ok" ConnectionSecureOk [] { response: LongStr } [];
    10 30 "connection.tune" ConnectionTune [] { channel_max: u16, frame_max: u32, heartbeat_s: u16 } [];
    10 31 "connection.tune-ok" ConnectionTuneOk [] { channel_max: u16, frame_max: u32, heartbeat_s: u16 } [];
    10 40 "connection.open" ConnectionOpen [] { virtual_host: ShortStr } [ShortStr, bool];
    10 41 "connection.open-ok" ConnectionOpenOk [] {} [ShortStr];
    10 50 "connection.close" ConnectionClose [] { reply_code: u16, reply_text: ShortStr, class_id: u16, method_id: u16 } [];
    10 51 "connection.close-ok" ConnectionCloseOk [] {} [];
    10 60 "connection.blocked" ConnectionBlocked [] { reason: ShortStr } [];
    10 61 "connection.unblocked" ConnectionUnblocked [] {} [];
    10 70 "connection.update-secret" ConnectionUpdateSecret [] { new_secret: LongStr, reason: ShortStr } [];
    10 71 "connection.update-secret-ok" ConnectionUpdateSecretOk [] {} [];

    20 10 "channel.open" ChannelOpen [ShortStr] {} [];
    20 11 "channel.open-ok" ChannelOpenOk [LongStr] {} [];
    20 20 "channel.flow" ChannelFlow [] { active: bool } [];
    20 21 "channel.flow-ok" ChannelFlowOk [] { active: bool } [];
    20 40 "channel.close" ChannelClose [] { reply_code: u16, reply_text: ShortStr, class_id: u16, method_id: u16 } [];
    20 41 "channel.close-ok" ChannelCloseOk [] {} [];

    30 10 "access.request" AccessRequest [] { realm: ShortStr, exclusive: bool, passive: bool, active: bool, write: bool, read: bool } [];
    30 11 "access.request-ok" AccessRequestOk [] { ticket: u16 } [];

    40 10 "exchange.declare" ExchangeDeclare [u16] { exchange: ShortStr, kind: ShortStr, passive: bool, durable: bool, auto_delete: bool, internal: bool, no_wait: bool, arguments: FieldTable } [];
    40 11 "exchange.declare-ok" ExchangeDeclareOk [] {} [];
    40 20 "exchange.delete" ExchangeDelete [u16] { exchange: ShortStr, if_unused: bool, no_wait: bool } [];
    40 21 "exchange.delete-ok" ExchangeDeleteOk [] {} [];
    40 30 "exchange.bind" ExchangeBind [u16] { destination: ShortStr, source: ShortStr, routing_key: ShortStr, no_wait: bool, arguments: FieldTable } [];
    40 31 "exchange.bind-ok" ExchangeBindOk [] {} [];
    40 40 "exchange.unbind" ExchangeUnbind [u16] { destination: ShortStr, source: ShortStr, routing_key: ShortStr, no_wait: bool, arguments: FieldTable } [];
    40 51 "exchange.unbind-ok" ExchangeUnbindOk [] {} [];

    50 10 "queue.declare" QueueDeclare [u16] { queue: ShortStr, passive: bool, durable: bool, exclusive: bool, auto_delete: bool, no_wait: bool, arguments: FieldTable } [];
    50 11 "queue.declare-ok" QueueDeclareOk [] { queue: ShortStr, message_count: u32, consumer_count: u32 } [];
    50 20 "queue.bind" QueueBind [u16] { queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, no_wait: bool, arguments: FieldTable } [];
    50 21 "queue.bind-ok" QueueBindOk [] {} [];
    50 30 "queue.purge" QueuePurge [u16] { queue: ShortStr, no_wait: bool } [];
    50 31 "queue.purge-ok" QueuePurgeOk [] { message_count: u32 } [];
    50 40 "queue.delete" QueueDelete [u16] { queue: ShortStr, if_unused: bool, if_empty: bool, no_wait: bool } [];
    50 41 "queue.delete-ok" QueueDeleteOk [] { message_count: u32 } [];
    50 50 "queue.unbind" QueueUnbind [u16] { queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, arguments: FieldTable } [];
    50 51 "queue.unbind-ok" QueueUnbindOk [] {} [];

    60 10 "basic.qos" BasicQos [] { prefetch_size: u32, prefetch_count: u16, global: bool } [];
    60 11 "basic.qos-ok" BasicQosOk [] {} [];
    60 20 "basic.consume" BasicConsume [u16] { queue: ShortStr, consumer_tag: ShortStr, no_local: bool, no_ack: bool, exclusive: bool, no_wait: bool, arguments: FieldTable } [];
    60 21 "basic.consume-ok" BasicConsumeOk [] { consumer_tag: ShortStr } [];
    60 30 "basic.cancel" BasicCancel [] { consumer_tag: ShortStr, no_wait: bool } [];
    60 31 "basic.cancel-ok" BasicCancelOk [] { consumer_tag: ShortStr } [];
    60 40 "basic.publish" BasicPublish [u16] { exchange: ShortStr, routing_key: ShortStr, mandatory: bool, immediate: bool } [];
    60 50 "basic.return" BasicReturn [] { reply_code: u16, reply_text: ShortStr, exchange: ShortStr, routing_key: ShortStr } [];
    60 60 "basic.deliver" BasicDeliver [] { consumer_tag: ShortStr, delivery_tag: u64, redelivered: bool, exchange: ShortStr, routing_key: ShortStr } [];
    60 70 "basic.get" BasicGet [u16] { queue: ShortStr, no_ack: bool } [];
    60 71 "basic.get-ok" BasicGetOk [] { delivery_tag: u64, redelivered: bool, exchange: ShortStr, routing_key: ShortStr, message_count: u32 } [];
    60 72 "basic.get-empty" BasicGetEmpty [ShortStr] {} [];
    60 80 "basic.ack" BasicAck [] { delivery_tag: u64, multiple: bool } [];
    60 90 "basic.reject" BasicReject [] { delivery_tag: u64, requeue: bool } [];
    60 100 "basic.recover-async" BasicRecoverAsync [] { requeue: bool } [];
    60 110 "basic.recover" BasicRecover [] { requeue: bool } [];
    60 111 "basic.recover-ok" BasicRecoverOk [] {} [];
    60 120 "basic.nack" BasicNack [] { delivery_tag: u64, multiple: bool, requeue: bool } [];

    85 10 "confirm.select" ConfirmSelect [] { no_wait: bool } [];
    85 11 "confirm.select-ok" ConfirmSelectOk [] {} [];

    90 10 "tx.select" TxSelect [] {} [];
    90 11 "tx.select-ok" TxSelectOk [] {} [];
    90 20 "tx.commit" TxCommit [] {} [];
    90 21 "tx.commit-ok" TxCommitOk [] {} [];
    90 30 "tx.rollback" TxRollback [] {} [];
    90 31 "tx.rollback-ok" TxRollbackOk [] {} [];
}

#[cfg(test)]
#[path = "method_tests.rs"]
mod tests;
