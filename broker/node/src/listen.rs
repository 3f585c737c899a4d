//! Listening sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::failure::{ExitKind, Failure};

const BACKLOG: i32 = 1024;

/// Listens on `address` for `purpose` (a word for messages). `[::]` takes IPv4 as well; where IPv6 is turned off it
/// becomes `0.0.0.0`.
pub fn listen(address: SocketAddr, purpose: &str) -> Result<TcpListener, Failure> {
    let listener = match bind(address) {
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && without_ipv6(&error) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        other => other,
    };
    listener.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            port_in_use(address, purpose, &format!("under listeners.{purpose} in the configuration"))
        }
        io::ErrorKind::PermissionDenied => Failure::new(
            ExitKind::Unavailable,
            format!("this user may not listen on {address} ({purpose}): {error}"),
            "choose a port above 1023 under `listeners`",
        ),
        _ => Failure::new(
            ExitKind::Unavailable,
            format!("cannot listen on {address} ({purpose}): {error}"),
            "correct the address under `listeners`",
        ),
    })
}

/// The failure of a port that is taken; `place` is where another one is chosen.
pub fn port_in_use(address: SocketAddr, purpose: &str, place: &str) -> Failure {
    Failure::new(
        ExitKind::Unavailable,
        format!("port {} ({purpose}) is in use", address.port()),
        format!(
            "see who has it with `ss -ltnp sport = :{}`: stop that, or choose another port {place}",
            address.port()
        ),
    )
}

fn without_ipv6(error: &io::Error) -> bool {
    let codes = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The next connection, without delay of small segments. Running out of file descriptors and connections that ended
/// before they were taken are passed over, after a pause in the first case.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                if stream.set_nodelay(true).is_ok() {
                    return (stream, from);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dual_stack_listener_takes_ipv4_and_a_taken_port_is_named() {
        let listener = listen("[::]:0".parse().unwrap(), "amqp").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (client, served) = tokio::join!(TcpStream::connect(("127.0.0.1", port)), accept(&listener));
        client.unwrap();
        assert!(served.0.nodelay().unwrap());
        let failure = listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), "amqp").unwrap_err();
        assert!(failure.problem.contains(&format!("port {port} (amqp) is in use")), "{failure}");
    }
}
