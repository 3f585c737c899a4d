use thiserror::Error;

/// What is wrong with received bytes, or with a value that cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// A frame's payload is larger than the negotiated frame_max allows (AMQP 0-9-1 §4.2.3).
    #[error("frame payload of {size_bytes} octets is over the limit of {limit_bytes}")]
    FrameTooLarge {
        /// The size that the frame announces.
        size_bytes: u32,
        /// The largest payload allowed.
        limit_bytes: u32,
    },
    /// A frame does not end with 0xCE (§4.2.3).
    #[error("frame ends with octet {0:#04x} instead of 0xce")]
    FrameEnd(u8),
    /// The frame type is none of method, header, body, heartbeat.
    #[error("unknown frame type {0}")]
    FrameType(u8),
    /// The payload ended inside a field.
    #[error("payload ends inside a field")]
    Truncated,
    /// Octets were left after the last field.
    #[error("{0} octets left after the last field")]
    TrailingBytes(usize),
    /// No such method in 0-9-1 or RabbitMQ's extensions.
    #[error("unknown method id ({class}, {method})")]
    UnknownMethod {
        /// Class id.
        class: u16,
        /// Method id within the class.
        method: u16,
    },
    /// A short string in a method is not UTF-8 (RabbitMQ checks this; §4.2.5.3 asks for it).
    #[error("Malformed UTF-8 in shortstr")]
    Utf8,
    /// A field table holds a type octet that RabbitMQ does not know.
    #[error("unknown field type {0:#04x} in a table")]
    FieldType(u8),
    /// Tables and arrays are nested too deeply.
    #[error("field table is nested more than {0} levels deep")]
    TooDeep(usize),
    /// A string is longer than its length prefix can say.
    #[error("a short string of {0} octets; 255 is the limit")]
    StringTooLong(usize),
    /// The property flags have a continuation word, which the basic class does not define.
    #[error("property flags {0:#06x} are not of the basic class")]
    PropertyFlags(u16),
}

impl WireError {
    /// The reply code with which a server closes the connection because of this error.
    pub fn reply_code(&self) -> ReplyCode {
        match self {
            WireError::FieldType(_) | WireError::TooDeep(_) | WireError::StringTooLong(_) => ReplyCode::SyntaxError,
            WireError::UnknownMethod { .. } => ReplyCode::NotImplemented,
            _ => ReplyCode::FrameError,
        }
    }
}

macro_rules! reply_codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, hard: $hard:literal;)*) => {
        /// The reply codes of AMQP 0-9-1 §1.2, with the names that RabbitMQ puts at the start of each reply text.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ReplyCode { $($(#[$doc])* $variant = $code,)* }

        impl ReplyCode {
            /// The number on the wire.
            pub fn number(self) -> u16 { self as u16 }

            /// The name, e.g. `NOT_FOUND`.
            pub fn name(self) -> &'static str { match self { $(ReplyCode::$variant => $name,)* } }

            /// Hard errors close the connection, soft ones the channel.
            pub fn is_hard(self) -> bool { match self { $(ReplyCode::$variant => $hard,)* } }

            /// The code with this number; `None` where 0-9-1 has none.
            pub fn from_number(number: u16) -> Option<ReplyCode> {
                match number { $($code => Some(ReplyCode::$variant),)* _ => None }
            }
        }
    };
}

reply_codes! {
    /// Not an error.
    Success = 200, "SUCCESS", hard: false;
    /// Content too large for the target.
    ContentTooLarge = 311, "CONTENT_TOO_LARGE", hard: false;
    /// A mandatory message reached no queue.
    NoRoute = 312, "NO_ROUTE", hard: false;
    /// An immediate message found no consumer.
    NoConsumers = 313, "NO_CONSUMERS", hard: false;
    /// An operator closed the connection.
    ConnectionForced = 320, "CONNECTION_FORCED", hard: true;
    /// Unknown virtual host (kept for completeness; RabbitMQ answers 530).
    InvalidPath = 402, "INVALID_PATH", hard: true;
    /// No permission.
    AccessRefused = 403, "ACCESS_REFUSED", hard: false;
    /// No such queue or exchange.
    NotFound = 404, "NOT_FOUND", hard: false;
    /// Somebody else's exclusive queue.
    ResourceLocked = 405, "RESOURCE_LOCKED", hard: false;
    /// A precondition of the method does not hold.
    PreconditionFailed = 406, "PRECONDITION_FAILED", hard: false;
    /// A frame could not be decoded.
    FrameError = 501, "FRAME_ERROR", hard: true;
    /// A field holds an illegal value.
    SyntaxError = 502, "SYNTAX_ERROR", hard: true;
    /// A method came in the wrong order.
    CommandInvalid = 503, "COMMAND_INVALID", hard: true;
    /// A channel that was not opened, or was opened twice.
    ChannelError = 504, "CHANNEL_ERROR", hard: true;
    /// A content frame where none was expected, or the reverse.
    UnexpectedFrame = 505, "UNEXPECTED_FRAME", hard: true;
    /// The server lacks the resources.
    ResourceError = 506, "RESOURCE_ERROR", hard: true;
    /// The entity cannot be used in this way.
    NotAllowed = 530, "NOT_ALLOWED", hard: true;
    /// Not offered by this server.
    NotImplemented = 540, "NOT_IMPLEMENTED", hard: true;
    /// A fault of the server.
    InternalError = 541, "INTERNAL_ERROR", hard: true;
}
