//! Whose connection it is: agents may dial any hub, and reach the one that decides.
//!
//! Owns the agents' listener. A hub that decides serves what comes; one that stands by passes bytes on to
//! the one that decides, and sees none of what is in them: TLS ends there. While nobody decides,
//! connections wait for a moment, so that agents that were thrown out are the next hub's at once.
//! Never looks at a certificate or a message.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::metrics::Metrics;
use crate::office::Seat;

/// How long a connection waits for somebody to decide: a little longer than a dead hub's claim lives.
/// Agents give up after 5 s.
const HOLD: Duration = Duration::from_millis(4_700);
/// Pause between tries to reach the one that decides.
const RETRY: Duration = Duration::from_millis(200);
/// It is near: whoever does not answer in that time is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections at once that wait or are passed on; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4_096;
/// Pause after an error of the listening socket (no file descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where agents' connections go.
#[derive(Debug, Clone, Default)]
pub enum Way {
    /// Nowhere as yet.
    #[default]
    Closed,
    /// To another hub.
    Pass(Arc<Seat>),
    /// To our own server.
    Own(mpsc::Sender<TcpStream>),
}

impl Way {
    /// Leads to another hub; whether that is news.
    pub fn lead_to(&mut self, seat: Seat) -> bool {
        let news = !self.is_to(&seat);
        if news {
            *self = Self::Pass(Arc::new(seat));
        }
        news
    }

    fn is_to(&self, seat: &Seat) -> bool {
        matches!(self, Self::Pass(to) if **to == *seat)
    }
}

/// Leads connections until it is dropped.
pub async fn run(listener: TcpListener, ways: watch::Receiver<Way>, metrics: Arc<Metrics>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let lead = Lead { ways: ways.clone(), metrics: Arc::clone(&metrics), permit };
                tokio::spawn(lead.run(socket));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection on its way.
struct Lead {
    ways: watch::Receiver<Way>,
    metrics: Arc<Metrics>,
    permit: OwnedSemaphorePermit,
}

impl Lead {
    async fn run(mut self, mut socket: TcpStream) {
        // Small messages must not wait for each other.
        let _ = socket.set_nodelay(true);
        let until = Instant::now() + HOLD;
        while Instant::now() < until {
            let way = self.ways.borrow_and_update().clone();
            match way {
                Way::Own(server) => match server.send(socket).await {
                    Ok(()) => return,
                    // The server has ended; perhaps another hub takes over.
                    Err(mpsc::error::SendError(back)) => socket = back,
                },
                Way::Pass(seat) => {
                    if let Some(next) = reach(&seat).await {
                        return self.pass(socket, next, &seat).await;
                    }
                }
                Way::Closed => {}
            }
            tokio::select! {
                _ = self.ways.changed() => {}
                () = tokio::time::sleep(RETRY) => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Carries bytes until either end is done, or another hub decides.
    async fn pass(mut self, mut socket: TcpStream, mut next: TcpStream, seat: &Seat) {
        let _passed = self.metrics.passed();
        tokio::select! {
            // However it ends, both ends see it.
            _ = copy_bidirectional(&mut socket, &mut next) => {}
            _ = self.ways.wait_for(|way| !way.is_to(seat)) => {}
        }
        drop(self.permit);
    }
}

async fn reach(seat: &Seat) -> Option<TcpStream> {
    let next = timeout(CONNECT_TIMEOUT, TcpStream::connect(seat.agents?)).await.ok()?.ok()?;
    let _ = next.set_nodelay(true);
    Some(next)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn mk_gate(way: Way) -> (watch::Sender<Way>, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ways, seen) = watch::channel(way);
        tokio::spawn(run(listener, seen, Arc::default()));
        (ways, address)
    }

    /// A hub that says its letter to whoever comes, and then echoes.
    async fn mk_hub(letter: u8) -> Arc<Seat> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agents = Some(listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    socket.write_all(&[letter]).await.unwrap();
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        Arc::new(Seat { agents, ..Seat::default() })
    }

    #[tokio::test]
    async fn a_connection_waits_is_passed_on_and_ends_when_another_hub_decides() {
        let (ways, address) = mk_gate(Way::Closed).await;
        let mut agent = TcpStream::connect(address).await.unwrap();
        agent.write_all(b"hello").await.unwrap();
        ways.send_replace(Way::Pass(mk_hub(b'a').await));
        let mut heard = [0; 6];
        agent.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ahello");
        ways.send_replace(Way::Pass(mk_hub(b'b').await));
        assert_eq!(agent.read(&mut heard).await.unwrap_or(0), 0, "it goes on with the old one");
        let mut agent = TcpStream::connect(address).await.unwrap();
        assert_eq!(agent.read_u8().await.unwrap(), b'b');
    }

    #[tokio::test]
    async fn what_is_ours_is_served_here() {
        let (server, mut served) = mpsc::channel(1);
        let (_ways, address) = mk_gate(Way::Own(server)).await;
        let mut agent = TcpStream::connect(address).await.unwrap();
        served.recv().await.unwrap().write_all(b"x").await.unwrap();
        assert_eq!(agent.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn while_the_one_that_decides_is_dead_a_connection_waits_for_the_next() {
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agents = Some(dead.local_addr().unwrap());
        drop(dead);
        let (ways, address) =
            mk_gate(Way::Pass(Arc::new(Seat { agents, ..Seat::default() }))).await;
        let mut agent = TcpStream::connect(address).await.unwrap();
        ways.send_replace(Way::Pass(mk_hub(b'c').await));
        assert_eq!(agent.read_u8().await.unwrap(), b'c');
    }
}
