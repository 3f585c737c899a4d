//! Why the process cannot start or cannot go on, in words for the person who reads its last line.

use std::fmt;

/// The exit code of the process, by kind of failure. The numbers are those of `sysexits.h`, so that a supervisor can
/// tell a mistake of the user from trouble of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// Data on disk that cannot be used as it is (65).
    Data,
    /// A port, a peer or a service that cannot be had (69).
    Unavailable,
    /// A defect of this program (70).
    Internal,
    /// The disk or the network refused (74).
    Io,
    /// Would probably work later, such as a lock that another process holds (75).
    Temporary,
    /// Wrong configuration or certificates (78).
    Config,
}

impl ExitKind {
    /// The process exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Data => 65,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Io => 74,
            Self::Temporary => 75,
            Self::Config => 78,
        }
    }

    /// The kind that a process of this program ended with.
    pub fn of_code(code: i32) -> Option<Self> {
        let kinds = [Self::Data, Self::Unavailable, Self::Internal, Self::Io, Self::Temporary, Self::Config];
        kinds.into_iter().find(|kind| i32::from(kind.code()) == code)
    }
}

/// A failure that ends the process: what is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: ExitKind,
    pub problem: String,
    pub remedy: String,
}

impl Failure {
    /// A failure of `kind`; `remedy` is an instruction to the reader.
    pub fn new(kind: ExitKind, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  what to do: {}", self.problem, self.remedy)
    }
}

impl std::error::Error for Failure {}
