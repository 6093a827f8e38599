//! A way between clients and a node that can be cut: its address stays while nodes come and go behind it.
//!
//! Bytes towards the node pass at a bounded rate for each connection, so that an upload lasts long enough to be cut. A
//! gate leads nowhere until it is told; connections meanwhile are closed at once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const PIECE_BYTES: usize = 16 << 10;

pub struct Gate {
    addr: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    to: Mutex<Option<SocketAddr>>,
    open: AtomicUsize,
    /// Counts the cuts, and whether the last one was a reset.
    cuts: watch::Sender<(usize, bool)>,
    pause: Duration,
}

impl Gate {
    pub async fn open(bytes_per_second: usize) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let pause = Duration::from_secs_f64(PIECE_BYTES as f64 / bytes_per_second as f64);
        let (to, open, cuts) = (Mutex::new(None), AtomicUsize::new(0), watch::Sender::new((0, false)));
        let inner = Arc::new(Inner { to, open, cuts, pause });
        let of_task = Arc::downgrade(&inner);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // It ends with the gate.
                let Some(inner) = of_task.upgrade() else { return };
                tokio::spawn(async move { inner.pass(client).await });
            }
        });
        Gate { addr, inner }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn lead_to(&self, node: Option<SocketAddr>) {
        *self.inner.to.lock().unwrap() = node;
    }

    /// Ends every connection, by a reset or as if both sides had closed. Returns how many there were.
    pub fn cut(&self, reset: bool) -> usize {
        let open = self.inner.open.load(SeqCst);
        self.inner.cuts.send_modify(|(cuts, how)| (*cuts, *how) = (*cuts + 1, reset));
        open
    }
}

impl Inner {
    async fn pass(&self, client: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        let to = *self.to.lock().unwrap();
        let Some(to) = to else { return };
        let Ok(node) = TcpStream::connect(to).await else { return };
        self.open.fetch_add(1, SeqCst);
        let (mut client, mut node) = (client, node);
        {
            let ((mut from_client, mut to_client), (mut from_node, mut to_node)) = (client.split(), node.split());
            let up = async {
                let mut buffer = vec![0; PIECE_BYTES];
                while let Ok(bytes @ 1..) = from_client.read(&mut buffer).await {
                    if to_node.write_all(&buffer[..bytes]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(self.pause.mul_f64(bytes as f64 / PIECE_BYTES as f64)).await;
                }
                let _ = to_node.shutdown().await;
            };
            let down = async {
                let _ = copy(&mut from_node, &mut to_client).await;
                let _ = to_client.shutdown().await;
            };
            tokio::select! {
                _ = async { tokio::join!(up, down) } => {}
                _ = cuts.changed() => {}
            }
        }
        let (_, reset) = *cuts.borrow();
        if reset {
            let _ = client.set_zero_linger();
            let _ = node.set_zero_linger();
        }
        self.open.fetch_sub(1, SeqCst);
    }
}
