//! The member's own seeded generator: jitter and names of server-named queues. Not for secrets.

/// SplitMix64 (Steele, Lea, Flood 2014): small, good enough, and the same on every platform.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

const NAME_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `prefix` and 22 characters, 132 bits, as RabbitMQ's `amq.gen-` and `amq.ctag-` names have.
    pub(crate) fn name(&mut self, prefix: &str) -> String {
        let mut name = String::with_capacity(prefix.len() + 22);
        name.push_str(prefix);
        let mut bits = 0;
        for i in 0..22 {
            if i % 10 == 0 {
                bits = self.next_u64();
            }
            name.push(NAME_ALPHABET[(bits & 63) as usize] as char);
            bits >>= 6;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_have_the_length_and_alphabet_that_clients_know() {
        let mut rng = Rng::new(7);
        let name = rng.name("amq.gen-");
        assert_eq!(name.len(), 8 + 22);
        assert!(name[8..].bytes().all(|b| NAME_ALPHABET.contains(&b)));
        assert_ne!(name, rng.name("amq.gen-"));
    }
}
