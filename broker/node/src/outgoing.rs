//! The queue of bytes from the core to one socket, and writing it with few system calls.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

/// Slices that one system call takes.
const SLICES: usize = 64;
/// Pieces up to this size are copied together; a slice of its own costs more.
const SMALL_BYTES: usize = 512;
/// How much is copied together at most.
const JOINED_BYTES: usize = 16 << 10;

/// What the core sends to a socket's writer.
pub enum ToSocket {
    Write(Vec<Bytes>),
    /// Close once all before it is written.
    Close,
}

/// The core's end. The queue itself has no bound; whoever fills it looks at [`Sender::queued`] (clients are not read
/// while it is high, links are cut).
#[derive(Clone)]
pub struct Sender {
    queue: mpsc::UnboundedSender<ToSocket>,
    level: Arc<Level>,
}

/// Bytes that wait for a socket.
#[derive(Default)]
pub struct Level {
    queued: AtomicUsize,
    fell: Notify,
}

impl Level {
    /// Bytes now.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Waits until at most `bytes` are queued.
    pub async fn at_most(&self, bytes: usize) {
        loop {
            let fell = self.fell.notified();
            if self.queued() <= bytes {
                return;
            }
            fell.await;
        }
    }

    fn add(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        self.fell.notify_one();
    }
}

/// A new queue.
pub fn queue() -> (Sender, Writer) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let level = Arc::new(Level::default());
    (
        Sender { queue: sender, level: level.clone() },
        Writer { queue: receiver, level, pending: VecDeque::new(), closing: false },
    )
}

impl Sender {
    /// Queues pieces, in order. When the socket is gone they are dropped.
    pub fn write(&self, pieces: Vec<Bytes>) {
        self.level.add(pieces.iter().map(Bytes::len).sum());
        let _ = self.queue.send(ToSocket::Write(pieces));
    }

    /// Closes after everything queued before.
    pub fn close(&self) {
        let _ = self.queue.send(ToSocket::Close);
    }

    /// Bytes that the socket has not taken yet.
    pub fn queued(&self) -> usize {
        self.level.queued()
    }
}

/// The socket's end.
pub struct Writer {
    queue: mpsc::UnboundedReceiver<ToSocket>,
    level: Arc<Level>,
    pending: VecDeque<Bytes>,
    closing: bool,
}

impl Writer {
    /// The count of waiting bytes.
    pub fn level(&self) -> Arc<Level> {
        self.level.clone()
    }

    /// Writes what waits, or waits for it. Returns the bytes that the socket took, or `None` once everything before a
    /// close is written.
    pub async fn write_some(&mut self, socket: &mut (impl AsyncWrite + Unpin)) -> io::Result<Option<usize>> {
        while self.pending.is_empty() {
            if self.closing {
                return Ok(None);
            }
            match self.queue.recv().await {
                Some(item) => self.take(item),
                None => self.closing = true,
            }
        }
        while let Ok(item) = self.queue.try_recv() {
            self.take(item);
        }
        self.join_small();
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for piece in self.pending.iter().take(SLICES) {
            slices[count] = IoSlice::new(piece);
            count += 1;
        }
        let taken = socket.write_vectored(&slices[..count]).await?;
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.advance(taken);
        self.level.remove(taken);
        if self.pending.is_empty() {
            socket.flush().await?;
        }
        Ok(Some(taken))
    }

    fn take(&mut self, item: ToSocket) {
        match item {
            ToSocket::Write(pieces) => self.pending.extend(pieces.into_iter().filter(|piece| !piece.is_empty())),
            ToSocket::Close => self.closing = true,
        }
    }

    fn advance(&mut self, mut taken: usize) {
        while let Some(front) = self.pending.front_mut() {
            if taken < front.len() {
                front.advance(taken);
                return;
            }
            taken -= front.len();
            self.pending.pop_front();
        }
    }

    /// Copies neighbouring small pieces together, in as much of the queue as one system call takes.
    fn join_small(&mut self) {
        let small = self.pending.iter().take(SLICES).filter(|piece| piece.len() <= SMALL_BYTES).count();
        if small < 4 {
            return;
        }
        let pieces = std::mem::take(&mut self.pending);
        let mut joined = BytesMut::new();
        for piece in pieces {
            if piece.len() > SMALL_BYTES || joined.len() + piece.len() > JOINED_BYTES {
                if !joined.is_empty() {
                    self.pending.push_back(joined.split().freeze());
                }
                if piece.len() > SMALL_BYTES {
                    self.pending.push_back(piece);
                    continue;
                }
            }
            joined.extend_from_slice(&piece);
        }
        if !joined.is_empty() {
            self.pending.push_back(joined.freeze());
        }
    }
}

impl Drop for Writer {
    /// What was never written no longer counts.
    fn drop(&mut self) {
        self.level.remove(self.level.queued());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn pieces_of_all_sizes_arrive_in_order_and_the_level_falls_to_zero() {
        let (sender, mut writer) = queue();
        let mut expected = Vec::new();
        for round in 0..200usize {
            let pieces: Vec<Bytes> =
                (0..round % 7).map(|i| Bytes::from(vec![(round + i) as u8; (i * 311 + round) % 1500])).collect();
            pieces.iter().for_each(|piece| expected.extend_from_slice(piece));
            sender.write(pieces);
        }
        assert_eq!(sender.queued(), expected.len());
        sender.close();
        let (mut near, mut far) = tokio::io::duplex(1000);
        let read = tokio::spawn(async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            got
        });
        let mut total = 0;
        while let Some(taken) = writer.write_some(&mut near).await.unwrap() {
            total += taken;
        }
        drop(near);
        assert_eq!((total, sender.queued()), (expected.len(), 0));
        assert_eq!(read.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn whoever_waits_for_the_level_is_woken_when_it_has_fallen() {
        let (sender, mut writer) = queue();
        sender.write(vec![Bytes::from_static(&[1; 100])]);
        let level = writer.level();
        let waiting = tokio::spawn(async move { level.at_most(10).await });
        let mut sink = tokio::io::sink();
        writer.write_some(&mut sink).await.unwrap();
        waiting.await.unwrap();
    }
}
