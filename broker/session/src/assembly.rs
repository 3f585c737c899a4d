use bytes::{BufMut, Bytes, BytesMut};
use holdfast_wire::{BASIC_CLASS, ContentHeader, Frame, FrameKind, Method, MethodId, Properties, ReplyCode, ShortStr};

use crate::{AmqpError, Config};

/// `basic.publish`.
pub(crate) const PUBLISH: MethodId = MethodId { class: 60, method: 40 };

/// A method, or a publish with all of its content.
#[derive(Debug)]
pub(crate) enum Input {
    Method(Method),
    Publish(Content),
}

/// The three parts of a publish.
#[derive(Debug)]
pub(crate) struct Content {
    pub exchange: ShortStr,
    pub routing_key: ShortStr,
    pub mandatory: bool,
    pub immediate: bool,
    pub properties: Properties,
    pub body: Bytes,
}

impl Input {
    /// Octets that it keeps alive, roughly.
    pub fn size_bytes(&self) -> usize {
        match self {
            Input::Method(_) => 256,
            Input::Publish(content) => 256 + content.properties.as_bytes().len() + content.body.len(),
        }
    }
}

/// Puts the frames of one channel together (AMQP 0-9-1 §4.2.6): a `basic.publish` is complete with its header and
/// as many octets of body as that announces. Nothing else may come in between on the same channel.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    state: State,
    /// Octets of the body under way.
    pub held_bytes: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Method,
    Header(Content),
    Body {
        content: Content,
        left_bytes: u64,
        pieces: BytesMut,
    },
}

impl Assembly {
    /// Takes a frame; gives what is complete with it.
    pub fn frame(&mut self, frame: Frame, config: &Config) -> Result<Option<Input>, AmqpError> {
        match (std::mem::take(&mut self.state), frame.kind) {
            (State::Method, FrameKind::Method) => self.method(Method::decode(frame.payload)?),
            (State::Method, _) => {
                Err(unexpected("expected method frame, got non method frame instead".into(), MethodId::NONE))
            }
            (State::Header(content), FrameKind::Header) => self.header(content, frame.payload, config),
            (State::Header(_), _) => Err(non_header()),
            (State::Body { content, left_bytes, pieces }, FrameKind::Body) => {
                self.body(content, left_bytes, pieces, frame.payload)
            }
            (State::Body { .. }, _) => {
                Err(unexpected("expected content body, got non content body frame instead".into(), PUBLISH))
            }
        }
    }

    fn method(&mut self, method: Method) -> Result<Option<Input>, AmqpError> {
        let Method::BasicPublish { exchange, routing_key, mandatory, immediate } = method else {
            return Ok(Some(Input::Method(method)));
        };
        let (properties, body) = (Properties::default(), Bytes::new());
        self.state = State::Header(Content { exchange, routing_key, mandatory, immediate, properties, body });
        Ok(None)
    }

    fn header(&mut self, mut content: Content, payload: Bytes, config: &Config) -> Result<Option<Input>, AmqpError> {
        let header = ContentHeader::decode(payload)?;
        if header.weight != 0 {
            return Err(non_header());
        }
        if header.class_id != BASIC_CLASS {
            let text = format!("expected content header for class 60, got one for class {} instead", header.class_id);
            return Err(unexpected(text, PUBLISH));
        }
        if header.body_bytes > config.message_max_bytes {
            let (size, max) = (header.body_bytes, config.message_max_bytes);
            let text = format!("message size {size} is larger than configured max size {max}");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text, PUBLISH));
        }
        content.properties = header.properties;
        if header.body_bytes == 0 {
            return Ok(Some(Input::Publish(content)));
        }
        self.state = State::Body { content, left_bytes: header.body_bytes, pieces: BytesMut::new() };
        Ok(None)
    }

    fn body(
        &mut self,
        mut content: Content,
        left_bytes: u64,
        mut pieces: BytesMut,
        piece: Bytes,
    ) -> Result<Option<Input>, AmqpError> {
        let Some(left_bytes) = left_bytes.checked_sub(piece.len() as u64) else {
            let text = format!("content body is {} octets longer than announced", piece.len() as u64 - left_bytes);
            return Err(AmqpError::new(ReplyCode::FrameError, text, PUBLISH));
        };
        if left_bytes == 0 {
            // A body of one frame stays the slice that it is.
            content.body = if pieces.is_empty() {
                piece
            } else {
                pieces.put_slice(&piece);
                pieces.freeze()
            };
            self.held_bytes = 0;
            return Ok(Some(Input::Publish(content)));
        }
        pieces.put_slice(&piece);
        self.held_bytes = pieces.len();
        self.state = State::Body { content, left_bytes, pieces };
        Ok(None)
    }
}

fn non_header() -> AmqpError {
    let text = "expected content header for class 60, got non content header frame instead";
    unexpected(text.into(), PUBLISH)
}

fn unexpected(text: String, method: MethodId) -> AmqpError {
    AmqpError::new(ReplyCode::UnexpectedFrame, text, method)
}
