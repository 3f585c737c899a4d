/// Heartbeats in both directions (AMQP 0-9-1 §4.2.7). One is sent when nothing was for half an interval; the client
/// is lost when nothing was heard for two.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// 0 = off.
    interval_us: u64,
    last_sent_us: u64,
    last_received_us: u64,
}

impl Heartbeat {
    pub fn new(now_us: u64) -> Heartbeat {
        Heartbeat { interval_us: 0, last_sent_us: now_us, last_received_us: now_us }
    }

    pub fn tuned(&mut self, interval_s: u16, now_us: u64) {
        self.interval_us = u64::from(interval_s) * 1_000_000;
        self.received(now_us);
    }

    pub fn sent(&mut self, now_us: u64) {
        self.last_sent_us = now_us;
    }

    pub fn received(&mut self, now_us: u64) {
        self.last_received_us = now_us;
    }

    /// When something was heard last.
    pub fn last_received_us(&self) -> u64 {
        self.last_received_us
    }

    fn send_due(&self) -> u64 {
        self.last_sent_us.saturating_add(self.interval_us / 2)
    }

    fn loss_due(&self) -> u64 {
        self.last_received_us.saturating_add(self.interval_us * 2)
    }

    pub fn next_due(&self) -> Option<u64> {
        (self.interval_us > 0).then(|| self.send_due().min(self.loss_due()))
    }

    pub fn must_send(&self, now_us: u64) -> bool {
        self.interval_us > 0 && now_us >= self.send_due()
    }

    pub fn is_lost(&self, now_us: u64) -> bool {
        self.interval_us > 0 && now_us >= self.loss_due()
    }
}
