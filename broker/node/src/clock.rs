//! The one place where this process reads clocks and draws random numbers for the deterministic core.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_queue::time::Instant;

/// A monotonic clock that starts at one second, so that subtracting a short time from an early instant stays in range.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: std::time::Instant,
}

const FIRST_MICROS: u64 = 1_000_000;

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { start: std::time::Instant::now() }
    }

    /// Now, as the core counts.
    pub fn now(&self) -> Instant {
        Instant(FIRST_MICROS + self.start.elapsed().as_micros() as u64)
    }

    /// From now until `instant`; zero when it is past.
    pub fn until(&self, instant: Instant) -> Duration {
        Duration::from_micros(instant.0.saturating_sub(self.now().0))
    }
}

/// The wall clock, ms since 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// 128 random bits from the operating system.
pub fn random_u128() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if count != bytes.len() {
        return Err(std::io::Error::other("the system gave too few random bytes"));
    }
    Ok(u128::from_be_bytes(bytes))
}

/// 64 random bits from the operating system.
pub fn random_u64() -> std::io::Result<u64> {
    random_u128().map(|bits| bits as u64)
}
