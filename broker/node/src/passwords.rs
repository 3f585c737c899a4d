//! Password hashes: argon2id on threads of their own, few at a time, and a small memory of what was verified lately, so
//! that a fleet of clients that reconnects does not wait for one hash each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use argon2::{Algorithm, Argon2, Params, Version};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

/// Hashes at a time.
const AT_A_TIME: usize = 2;
/// Verified log-ins that are remembered, and for how long.
const REMEMBERED: usize = 1024;
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
/// Memory of one hash in KiB and passes over it: one of OWASP's recommended pairs, and the one that leaves a broker small.
const MEMORY_KIB: u32 = 7168;
const PASSES: u32 = 5;

/// Checks passwords. Clones share threads and memory.
#[derive(Clone)]
pub struct Passwords {
    turns: Arc<Semaphore>,
    verified: Arc<Mutex<VecDeque<Verified>>>,
    /// Keys the remembered digests, so that they tell nothing outside this process.
    secret: [u8; 16],
}

struct Verified {
    digest: [u8; 32],
    until: Instant,
}

impl Passwords {
    /// `secret` is random for this process.
    pub fn new(secret: u128) -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_A_TIME)), verified: Arc::default(), secret: secret.to_be_bytes() }
    }

    /// Does `password` belong to `hash` (a PHC string)? An unreadable hash fits no password.
    pub async fn check(&self, hash: String, password: Vec<u8>) -> bool {
        let digest = self.digest(&hash, &password);
        if self.remembers(&digest) {
            return true;
        }
        let Ok(_turn) = self.turns.acquire().await else { return false };
        if self.remembers(&digest) {
            return true;
        }
        let ok = tokio::task::spawn_blocking(move || matches(&hash, &password)).await.unwrap_or(false);
        if ok {
            self.remember(digest);
        }
        ok
    }

    fn digest(&self, hash: &str, password: &[u8]) -> [u8; 32] {
        let mut sha = Sha256::new();
        sha.update(self.secret);
        sha.update((hash.len() as u64).to_be_bytes());
        sha.update(hash);
        sha.update(password);
        sha.finalize().into()
    }

    fn remembers(&self, digest: &[u8; 32]) -> bool {
        let now = Instant::now();
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        while verified.front().is_some_and(|oldest| oldest.until <= now) {
            verified.pop_front();
        }
        verified.iter().any(|entry| entry.digest == *digest)
    }

    fn remember(&self, digest: [u8; 32]) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() == REMEMBERED {
            verified.pop_front();
        }
        verified.push_back(Verified { digest, until: Instant::now() + REMEMBERED_FOR });
    }
}

/// Hashes a password with a fresh salt, as a PHC string. Takes tens of milliseconds.
pub fn hash(password: &[u8]) -> Result<String, String> {
    let salt = crate::clock::random_u128().map_err(|error| error.to_string())?.to_be_bytes();
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(|error| error.to_string())?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_with_salt(password, &salt)
        .map(|hash| hash.to_string())
        .map_err(|error| error.to_string())
}

fn matches(hash: &str, password: &[u8]) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_right_password_passes_also_from_memory_and_no_other_does() {
        let hash = hash(b"guest").unwrap();
        let passwords = Passwords::new(7);
        assert!(!passwords.check(hash.clone(), b"wrong".to_vec()).await);
        assert!(passwords.check(hash.clone(), b"guest".to_vec()).await);
        assert!(passwords.remembers(&passwords.digest(&hash, b"guest")));
        assert!(passwords.check(hash.clone(), b"guest".to_vec()).await);
        assert!(!passwords.check(hash, b"wrong".to_vec()).await);
        assert!(!passwords.check("not a hash".into(), b"guest".to_vec()).await);
    }

    #[test]
    fn the_same_password_never_hashes_to_the_same_text() {
        assert_ne!(hash(b"guest").unwrap(), hash(b"guest").unwrap());
    }
}
