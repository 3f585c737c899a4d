//! A plain AMQP client on blocking sockets, which costs the machine that it measures as little as it can.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use bytes::{Bytes, BytesMut};
use holdfast_wire::{
    ContentHeader, FieldTable, FrameDecoder, FrameKind, LongStr, Method, PROTOCOL_HEADER, ShortStr, write_body_frame,
    write_frame_end,
};

const READ_BYTES: usize = 256 << 10;
const FRAME_MAX: u32 = 131_072;
/// The one channel of each connection.
const CHANNEL: u16 = 1;

/// The reading half of a connection.
pub struct Reader {
    socket: TcpStream,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

/// The writing half.
pub struct Writer {
    socket: TcpStream,
    out: BytesMut,
}

/// A connection with one open channel, by its halves.
pub fn connect(address: &str) -> Result<(Reader, Writer)> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut writer = Writer { socket: socket.try_clone()?, out: BytesMut::new() };
    let mut reader = Reader { socket, decoder: FrameDecoder::new(), buffer: vec![0; READ_BYTES] };
    writer.socket.write_all(&PROTOCOL_HEADER)?;
    expect(reader.method()?, |method| matches!(method, Method::ConnectionStart { .. }))?;
    let start_ok = Method::ConnectionStartOk {
        client_properties: FieldTable::default(),
        mechanism: ShortStr::from_static("PLAIN"),
        response: LongStr::new("\0guest\0guest"),
        locale: ShortStr::from_static("en_US"),
    };
    writer.send_on(0, &start_ok)?;
    expect(reader.method()?, |method| matches!(method, Method::ConnectionTune { .. }))?;
    writer.send_on(0, &Method::ConnectionTuneOk { channel_max: 2047, frame_max: FRAME_MAX, heartbeat_s: 0 })?;
    writer.send_on(0, &Method::ConnectionOpen { virtual_host: ShortStr::from_static("/") })?;
    expect(reader.method()?, |method| matches!(method, Method::ConnectionOpenOk { .. }))?;
    writer.send(&Method::ChannelOpen {})?;
    expect(reader.method()?, |method| matches!(method, Method::ChannelOpenOk { .. }))?;
    Ok((reader, writer))
}

/// Refuses an answer that is not the one that comes next.
pub fn expect(method: Method, wanted: impl Fn(&Method) -> bool) -> Result<()> {
    if !wanted(&method) {
        bail!("the broker answered {method:?}");
    }
    Ok(())
}

impl Reader {
    /// The next method; contents that come before it are thrown away.
    pub fn method(&mut self) -> Result<Method> {
        loop {
            while let Some(frame) = self.decoder.next_frame(FRAME_MAX)? {
                if frame.kind == FrameKind::Method {
                    return Ok(Method::decode(frame.payload)?);
                }
            }
            let count = self.socket.read(&mut self.buffer)?;
            if count == 0 {
                bail!("the broker closed the connection");
            }
            self.decoder.feed(Bytes::copy_from_slice(&self.buffer[..count]));
        }
    }
}

impl Writer {
    /// Sends a method on the channel.
    pub fn send(&mut self, method: &Method) -> Result<()> {
        self.send_on(CHANNEL, method)
    }

    fn send_on(&mut self, channel: u16, method: &Method) -> Result<()> {
        method.encode(channel, &mut self.out);
        self.flush()
    }

    /// Adds a persistent message to what the next flush sends.
    pub fn publish(&mut self, queue: &ShortStr, body: &[u8]) {
        let (exchange, routing_key) = (ShortStr::default(), queue.clone());
        let publish = Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false };
        publish.encode(CHANNEL, &mut self.out);
        // One property: delivery_mode 2.
        ContentHeader::encode(CHANNEL, body.len() as u64, &[0x10, 0, 2], &mut self.out);
        write_body_frame(CHANNEL, body.len(), &mut self.out);
        self.out.extend_from_slice(body);
        write_frame_end(&mut self.out);
    }

    /// Sends what was added.
    pub fn flush(&mut self) -> Result<()> {
        self.socket.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// The socket, for whoever ends the connection.
    pub fn socket(&self) -> Result<TcpStream> {
        Ok(self.socket.try_clone()?)
    }
}
