use holdfast_wire::{MethodId, ReplyCode, ShortStr, WireError};

/// An error as the client is told about it: soft ones close the channel, hard ones the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} - {text}", code.name())]
pub struct AmqpError {
    /// The reply code.
    pub code: ReplyCode,
    /// What happened, without the code's name.
    pub text: String,
    /// The method to blame; (0, 0) if none.
    pub method: MethodId,
}

impl AmqpError {
    /// An error that blames `method`.
    pub fn new(code: ReplyCode, text: impl Into<String>, method: MethodId) -> AmqpError {
        AmqpError { code, text: text.into(), method }
    }

    /// The reply text: RabbitMQ's `NAME - text`, cut to what a short string holds.
    pub fn reply_text(&self) -> ShortStr {
        ShortStr::truncated(&self.to_string())
    }
}

impl From<WireError> for AmqpError {
    fn from(error: WireError) -> AmqpError {
        let method = match error {
            WireError::UnknownMethod { class, method } => MethodId { class, method },
            _ => MethodId::NONE,
        };
        AmqpError::new(error.reply_code(), error.to_string(), method)
    }
}
