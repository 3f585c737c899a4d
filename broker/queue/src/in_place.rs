//! The steps of a restore in place, as whoever reads the backup sends them to a member of the cluster that runs.
//!
//! Each may be repeated, at any member: messages are counted from 0, and one that is there already is not taken again.

use crate::arguments::Arguments;
use crate::codec::{Codec, DecodeError, Message, Reader, Writer, codec_enum, codec_struct};
use crate::meta::Vhost;
use bytes::Bytes;

/// A queue that is brought back, and the restore that brings it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreTarget {
    /// Its new virtual host.
    pub vhost: String,
    /// Its new name; empty where the virtual host as a whole is meant.
    pub name: String,
    /// The restore's name: the same for every repeat of it, and for no other.
    pub id: String,
}

/// A message out of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoredMessage {
    /// How often it was delivered and came back.
    pub returns: u32,
    /// Its content.
    pub message: Message,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreStep {
    /// A virtual host with these exchanges and policies, which nobody may enter yet.
    BeginVhost {
        /// Which; without a queue's name.
        target: RestoreTarget,
        /// As the backup has it; of its queues nothing is taken.
        content: Vhost,
    },
    /// A queue that nobody can use yet.
    BeginQueue {
        /// Which.
        target: RestoreTarget,
        /// As it was declared.
        auto_delete: bool,
        /// As it was declared.
        arguments: Arguments,
    },
    /// How many messages are there.
    Progress {
        /// Of which queue.
        target: RestoreTarget,
    },
    /// The next messages, in order.
    Messages {
        /// Of which queue.
        target: RestoreTarget,
        /// How many come before the first of them.
        first: u64,
        /// They.
        messages: Vec<RestoredMessage>,
    },
    /// The queue is whole, and may be used; refused if it holds another number of messages.
    CompleteQueue {
        /// Which.
        target: RestoreTarget,
        /// How many it must hold.
        messages: u64,
    },
    /// All queues of the virtual host are whole: it gets its bindings and permissions, and may be used.
    CompleteVhost {
        /// Which; without a queue's name.
        target: RestoreTarget,
        /// As the backup has it.
        content: Vhost,
    },
    /// Takes what is there in part out again.
    Abandon {
        /// Which.
        target: RestoreTarget,
    },
}

codec_struct! {
    RestoreTarget { vhost, name, id }
    RestoredMessage { returns, message }
}

codec_enum!(RestoreStep, "restore step" {
    1 => BeginVhost { target, content },
    2 => BeginQueue { target, auto_delete, arguments },
    3 => Progress { target },
    4 => Messages { target, first, messages },
    5 => CompleteQueue { target, messages },
    6 => CompleteVhost { target, content },
    7 => Abandon { target },
});

/// Begins each encoded step; another version is refused.
const VERSION: u8 = 1;

impl RestoreStep {
    /// As it travels.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Writer::default();
        out.u8(VERSION);
        self.encode(&mut out);
        out.into_bytes()
    }

    /// As it arrives.
    ///
    /// # Errors
    /// When the bytes are not one whole step of this version.
    pub fn from_bytes(bytes: &Bytes) -> Result<RestoreStep, DecodeError> {
        let mut input = Reader::new(bytes.clone());
        match input.u8()? {
            VERSION => {}
            version => return Err(DecodeError::UnknownVersion { what: "restore step", version }),
        }
        let step = RestoreStep::decode(&mut input)?;
        input.finish()?;
        Ok(step)
    }
}
